import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import _C
from tests.support.gaussians import problems
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, SHAPES, device_of
from tests.support.oracle import check_against_oracle

ENTRY_POINTS = ("rsample", "with_kl", "with_kl_of_dimensions", "log_prob", "kl", "kl_prior")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_forward_and_backward(batch, features, entry, impl):
    check_against_oracle(problems("diag_gaussian", batch, features)[entry], impl, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, entry, impl):
    check_against_oracle(problems("diag_gaussian", (6,), 34)[entry], impl, dtype)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("sample_shape", [(1,), (5,), (2, 3), (0,)])
def test_samples(sample_shape, impl):
    made = problems("diag_gaussian", (4,), 9, sample_shape)
    for entry in ("rsample", "with_kl", "with_kl_of_dimensions", "log_prob"):
        check_against_oracle(made[entry], impl, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_rows_longer_than_a_batch_of_counters(impl):
    check_against_oracle(problems("diag_gaussian", (2,), 2100)["rsample"], impl, torch.float32)


@given(
    batch=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    features=st.integers(1, 80),
    sample_shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    entry=st.sampled_from(ENTRY_POINTS),
)
def test_any_shape(batch, features, sample_shape, entry):
    check_against_oracle(problems("diag_gaussian", batch, features, sample_shape)[entry], "cpp", torch.float32)


@pytest.mark.parametrize("impl", ["cpp", "triton"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_strides(entry, impl):
    """Halves of one layer's output, transposed, expanded: read in place, with the values of contiguous inputs."""
    made = problems("diag_gaussian", (6,), 20)[entry].to(torch.float32, device_of(impl))
    expected = made.outputs(impl)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], 1)[:, 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in made.inputs]
        for got, want in zip(made.call(impl, strided), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_broadcast_parameters(impl):
    """A shared log_sigma gets the summed gradient."""
    device = device_of(impl)
    mu = torch.randn(5, 1, 8, device=device, requires_grad=True)
    log_sigma = torch.randn(3, 8, device=device, requires_grad=True)
    eps = torch.randn(5, 3, 8, device=device)
    z, log_q = F.diag_gaussian_rsample(mu, log_sigma, eps=eps, impl=impl)
    d_mu, d_log_sigma = torch.autograd.grad(z.square().sum() + log_q.sum(), (mu, log_sigma))
    expected = 2 * (mu + log_sigma.exp() * eps)
    torch.testing.assert_close(d_mu, expected.sum(1, keepdim=True))
    torch.testing.assert_close(d_log_sigma, (expected * log_sigma.exp() * eps - 1).sum(0))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_only_one_gradient_wanted(impl):
    mu, log_sigma = (t.to(device_of(impl)) for t in torch.randn(2, 4, 6))
    z, _ = F.diag_gaussian_rsample(mu, log_sigma.requires_grad_(), impl=impl)
    (z - mu).sum().backward()
    torch.testing.assert_close(log_sigma.grad, (z - mu).detach())


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_gradcheck(sample_shape, entry, impl):
    made = problems("diag_gaussian", (3,), 5, sample_shape)[entry].to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p)), made.inputs)


@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_gradcheck_of_drawn_noise(sample_shape):
    """Backward draws the noise of forward again."""

    def draw(mu, log_sigma):
        generator = torch.Generator().manual_seed(3)
        return F.diag_gaussian_rsample(mu, log_sigma, sample_shape, generator=generator, impl="cpp")

    inputs = [t.double().detach().requires_grad_() for t in torch.randn(2, 4, 11)]
    assert torch.autograd.gradcheck(draw, inputs)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e4, -1e4, 90.0, -100.0])
def test_extremes_propagate_as_in_the_reference(value, impl):
    device = device_of(impl)
    for position in range(2):
        parameters = [torch.randn(2, 6, device=device), 0.1 * torch.randn(2, 6, device=device)]
        parameters[position][0, 1] = value
        eps = torch.randn(2, 6, device=device)
        for got, want in (
            *zip(
                F.diag_gaussian_rsample(*parameters, eps=eps, impl=impl),
                F.diag_gaussian_rsample(*parameters, eps=eps, impl="reference"),
                strict=True,
            ),
            (F.diag_gaussian_kl(*parameters, impl=impl), F.diag_gaussian_kl(*parameters, impl="reference")),
            (
                F.diag_gaussian_log_prob(eps, *parameters, impl=impl),
                F.diag_gaussian_log_prob(eps, *parameters, impl="reference"),
            ),
        ):
            torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_instruction_set(entry, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        assert _C.isa() == isa
        for dtype in (torch.float32, torch.float64):
            for features in (1, 17, 64, 79):
                check_against_oracle(problems("diag_gaussian", (3,), features)[entry], "cpp", dtype)
    finally:
        _C.set_isa(before)


GRADIENTS_OF_SAMPLES = {
    "whole": lambda z, log_q: (torch.randn_like(z), torch.randn_like(log_q)),
    "expanded": lambda z, log_q: tuple(torch.randn((), dtype=t.dtype).expand_as(t) for t in (z, log_q)),
    "transposed": lambda z, log_q: (torch.randn(z.shape[::-1]).t().to(z), torch.randn_like(log_q)),
    "only z": lambda z, log_q: (torch.randn_like(z), None),
    "only log_q": lambda z, log_q: (None, torch.randn_like(log_q)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given_gradients", GRADIENTS_OF_SAMPLES)
@pytest.mark.parametrize("shape", [(1, 1), (6, 5), (7, 64)])
def test_gradient_at_once_is_the_usual_one(shape, given_gradients, dtype, monkeypatch):
    mu, log_sigma = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    z, log_q = F.diag_gaussian_rsample(mu, log_sigma, generator=torch.Generator().manual_seed(0), impl="cpp")
    gradients = GRADIENTS_OF_SAMPLES[given_gradients](z.detach(), log_q.detach())
    pairs = [(o, g) for o, g in zip((z, log_q), gradients, strict=True) if g is not None]
    at_once, answers = _C.diag_gaussian_bwd_at_once, []
    monkeypatch.setattr(_C, "diag_gaussian_bwd_at_once", lambda *a: answers.append(at_once(*a)) or answers[-1])

    def differentiate():
        outputs, given = zip(*pairs, strict=True)
        return torch.autograd.grad(outputs, (mu, log_sigma), given, retain_graph=True, allow_unused=True)

    found = differentiate()
    monkeypatch.setattr(_C, "diag_gaussian_bwd_at_once", lambda *_: None)
    for a, b in zip(found, differentiate(), strict=True):
        assert a is b is None or torch.equal(a, b)
    # Gradients that lie in memory as the kernel reads them go to it at once; others never do.
    simple = given_gradients == "whole" or (1 in shape and given_gradients in ("transposed", "expanded"))
    assert (answers[0] is not None) == (simple and dtype in (torch.float32, torch.float64))
