import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import _C
from tests.support.gaussians import gaussian_inputs, packed_size, problems, tril_input
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, SHAPES, device_of
from tests.support.oracle import check_against_oracle

ENTRY_POINTS = ("rsample", "with_kl", "with_kl_of_dimensions", "log_prob", "kl")
LAYOUTS = pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])


@LAYOUTS
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_forward_and_backward(batch, features, entry, impl, dense):
    check_against_oracle(problems("tril_gaussian", batch, features, dense=dense)[entry], impl, torch.float32)


@LAYOUTS
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, entry, impl, dense):
    check_against_oracle(problems("tril_gaussian", (6,), 34, dense=dense)[entry], impl, dtype)


@LAYOUTS
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("sample_shape", [(1,), (5,), (2, 3), (0,)])
def test_samples(sample_shape, impl, dense):
    made = problems("tril_gaussian", (4,), 9, sample_shape, dense)
    for entry in ("rsample", "with_kl", "with_kl_of_dimensions", "log_prob"):
        check_against_oracle(made[entry], impl, torch.float32)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [16, 35])
@pytest.mark.parametrize("features", [1, 5, 8, 23, 67])
def test_samples_that_fill_vectors(features, samples, dtype, dense):
    made = problems("tril_gaussian", (3,), features, (samples,), dense)
    for entry in ("rsample", "with_kl", "with_kl_of_dimensions", "log_prob"):
        check_against_oracle(made[entry], "cpp", dtype)


@given(
    batch=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    features=st.integers(1, 80),
    sample_shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    entry=st.sampled_from(ENTRY_POINTS),
    dense=st.booleans(),
)
def test_any_shape(batch, features, sample_shape, entry, dense):
    made = problems("tril_gaussian", batch, features, sample_shape, dense)[entry]
    check_against_oracle(made, "cpp", torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_agrees_with_multivariate_normal(impl):
    device = device_of(impl)
    mu, log_sigma = (t.to(device) for t in gaussian_inputs((4,), 7))
    tril = tril_input((4,), 7, dense=True).to(device)
    factor = tril.tril(-1) + torch.diag_embed(log_sigma.exp())
    peer = torch.distributions.MultivariateNormal(mu, scale_tril=factor)
    z, log_q = F.tril_gaussian_rsample(mu, log_sigma, tril, (3,), impl=impl)
    torch.testing.assert_close(log_q, peer.log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(F.tril_gaussian_log_prob(z, mu, log_sigma, tril, impl=impl), peer.log_prob(z))
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(mu), scale_tril=torch.eye(7, device=device))
    expected = torch.distributions.kl_divergence(peer, prior)
    torch.testing.assert_close(F.tril_gaussian_kl(mu, log_sigma, tril, impl=impl), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_packed_and_dense_agree(impl):
    device, features = device_of(impl), 21
    mu, log_sigma = (t.to(device) for t in gaussian_inputs((3,), features))
    dense = tril_input((3,), features, dense=True).to(device).requires_grad_()
    row, column = torch.tril_indices(features, features, -1)
    packed = dense.detach()[:, row, column].requires_grad_()
    eps = torch.randn(3, features, device=device)
    results = []
    for tril in (packed, dense):
        z, log_q = F.tril_gaussian_rsample(mu, log_sigma, tril, eps=eps, impl=impl)
        kl = F.tril_gaussian_kl(mu, log_sigma, tril, impl=impl)
        log_prob = F.tril_gaussian_log_prob(eps, mu, log_sigma, tril, impl=impl)
        (gradient,) = torch.autograd.grad(z.square().sum() + kl.sum() + log_prob.sum(), tril)
        results.append((z, log_q, kl, log_prob, gradient))
    upper = torch.ones(features, features, dtype=torch.bool).triu()
    assert (results[1][-1][:, upper] == 0).all(), "the gradient above the diagonal must be exactly zero"
    results[1] = (*results[1][:-1], results[1][-1][:, row, column])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_jacobian_is_triangular_and_gives_log_det(impl):
    """d z / d eps by columns: exactly zero above the diagonal, and its slogdet is the sum of log_sigma."""
    device, features = device_of(impl), 9
    mu, log_sigma = (t.to(device) for t in gaussian_inputs((), features))
    tril = tril_input((), features, dense=False).to(device)
    unit = torch.eye(features, device=device)
    origin, _ = F.tril_gaussian_rsample(mu, log_sigma, tril, eps=torch.zeros_like(mu), impl=impl)
    shifted, _ = F.tril_gaussian_rsample(mu, log_sigma, tril, (features,), eps=unit, impl=impl)
    jacobian = (shifted - origin).T
    assert (jacobian.triu(1) == 0).all()
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_sigma.sum(), rtol=1e-4, atol=1e-4)


@LAYOUTS
@pytest.mark.parametrize("impl", ["cpp", "triton"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_strides(entry, impl, dense):
    made = problems("tril_gaussian", (6,), 12, dense=dense)[entry].to(torch.float32, device_of(impl))
    expected = made.outputs(impl)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], 1)[:, 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in made.inputs]
        for got, want in zip(made.call(impl, strided), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@LAYOUTS
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_shared_factor(impl, dense):
    """One factor for a whole batch: read in place, its gradient summed."""
    device, features = device_of(impl), 6
    mu, log_sigma = (t.to(device) for t in gaussian_inputs((5,), features))
    tril = tril_input((), features, dense).to(device).requires_grad_()
    eps = torch.randn(5, features, device=device)
    z, _ = F.tril_gaussian_rsample(mu, log_sigma, tril, eps=eps, impl=impl)
    (gradient,) = torch.autograd.grad(z.sum(), tril)
    expected = eps.sum(0).expand(features, features).tril(-1)
    row, column = torch.tril_indices(features, features, -1)
    torch.testing.assert_close(gradient, expected if dense else expected[row, column])


def test_three_features_are_packed_unless_a_dimension_more():
    """D = 3 is the one size whose packed triangle is as wide as its matrix."""
    mu = log_sigma = torch.zeros(3, 3)
    eps = torch.ones(3, 3)
    packed = torch.arange(9.0).view(3, 3)
    z, _ = F.tril_gaussian_rsample(mu, log_sigma, packed, eps=eps)
    torch.testing.assert_close(z[1], 1 + torch.tensor([0.0, 3.0, 9.0]))
    z, _ = F.tril_gaussian_rsample(mu, log_sigma, packed.expand(3, 3, 3), eps=eps)
    torch.testing.assert_close(z[1], 1 + torch.tensor([0.0, 3.0, 13.0]))


@LAYOUTS
@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_gradcheck(sample_shape, entry, impl, dense):
    made = problems("tril_gaussian", (2,), 5, sample_shape, dense)[entry].to(torch.float64, "cpu")
    if dense:  # NaN has no finite differences
        made.inputs[-1] = made.inputs[-1].detach().nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p)), made.inputs)


@pytest.mark.parametrize("sample_shape", [(), (70,)])
def test_gradcheck_of_drawn_noise(sample_shape):
    """Backward draws the noise of forward again, also when the samples do not fit one batch of counters."""

    def draw(mu, log_sigma, tril):
        generator = torch.Generator().manual_seed(3)
        return F.tril_gaussian_rsample(mu, log_sigma, tril, sample_shape, generator=generator, impl="cpp")

    inputs = [*gaussian_inputs((2,), 6), tril_input((2,), 6, dense=False)]
    assert torch.autograd.gradcheck(draw, [t.double().requires_grad_() for t in inputs])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_log_prob_of_own_sample_without_solve(impl):
    device = device_of(impl)
    mu, log_sigma = (t.double().to(device) for t in gaussian_inputs((4,), 33))
    tril = tril_input((4,), 33, dense=False).double().to(device)
    z, log_q = F.tril_gaussian_rsample(mu, log_sigma, tril, (2,), impl=impl)
    torch.testing.assert_close(F.tril_gaussian_log_prob(z, mu, log_sigma, tril, impl=impl), log_q)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_extremes_of_the_factor_propagate(value, impl):
    """A NaN in row i spoils z_i and nothing before it."""
    device = device_of(impl)
    mu = log_sigma = torch.zeros(1, 6, device=device)
    tril = torch.zeros(1, packed_size(6), device=device)
    tril[0, packed_size(4)] = value  # row 4, column 0
    z, log_q = F.tril_gaussian_rsample(mu, log_sigma, tril, eps=torch.ones(1, 6, device=device), impl=impl)
    assert torch.isfinite(z[0, [0, 1, 2, 3, 5]]).all()
    assert not torch.isfinite(z[0, 4])
    assert torch.isfinite(log_q).all()
    kl = F.tril_gaussian_kl(mu, log_sigma, tril, impl=impl)
    assert math.isnan(kl) if math.isnan(value) else kl == float("inf")


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_instruction_set(entry, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            for features in (1, 2, 17, 64, 79):
                for dense in (False, True):
                    made = problems("tril_gaussian", (3,), features, (2,), dense)[entry]
                    check_against_oracle(made, "cpp", dtype)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("isa", _C.available_isas())
def test_infinite_noise_does_not_reach_the_rows_before_it(isa, dense):
    """A row is a sum over the noise up to its own, whatever the vectors that hold the rest are."""
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for d in (1, 3, 4, 5, 9, 18):
            tril = torch.randn(2, d, d) if dense else torch.randn(2, d * (d - 1) // 2)
            for place in range(d):
                eps = torch.randn(2, d)
                eps[1, place] = float("inf")
                z, _ = F.tril_gaussian_rsample(torch.zeros(2, d), torch.zeros(2, d), tril, eps=eps, impl="cpp")
                assert z[0].isfinite().all()
                assert z[1, :place].isfinite().all()
                assert not z[1, place:].isfinite().any()
    finally:
        _C.set_isa(before)
