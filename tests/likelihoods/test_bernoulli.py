"""The Bernoulli log-likelihood against torch.distributions and an fp64 oracle."""

import math

import pytest
import torch
from torch.distributions import Bernoulli
from torch.utils._python_dispatch import TorchDispatchMode

from fastvae.likelihoods import bernoulli as likelihoods
from fastvae.likelihoods import bernoulli_log_prob
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager


@pytest.fixture(params=[1 << 20, 16, 1], ids=["one_block", "small_blocks", "block_below_an_event"])
def block(request, monkeypatch):
    monkeypatch.setattr(likelihoods, "_CPU_BLOCK", request.param)
    monkeypatch.setattr(likelihoods, "_BLOCK", request.param)


def binary(*shape):
    return (torch.rand(shape) < 0.4).float()


def oracle(x, logits, event_ndims=1):
    """In float64, without cancellation: log sigma(l) where x = 1, log sigma(-l) where x = 0."""
    x, logits = torch.broadcast_tensors(x.double(), logits.double())
    log_p = x * torch.nn.functional.logsigmoid(logits) + (1 - x) * torch.nn.functional.logsigmoid(-logits)
    return log_p.sum(list(range(-event_ndims, 0))) if event_ndims else log_p


def compute(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x_shape", "shape"),
    [
        ((7, 33), (7, 33)),
        ((7, 33), (5, 7, 33)),
        ((1, 33), (5, 7, 33)),
        ((33,), (5, 7, 33)),
        ((5, 1, 33), (5, 7, 33)),
        ((33,), (33,)),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"] if GPU else ["cpu"])
def test_values_and_gradients(block, device, dtype, x_shape, shape):
    x, logits = binary(*x_shape).to(device), (torch.randn(shape) * 4).to(device, dtype).requires_grad_()
    upstream = torch.randn(shape[:-1], dtype=compute(dtype), device=device)
    log_p_x = bernoulli_log_prob(x, logits)
    (d_logits,) = torch.autograd.grad(log_p_x, logits, upstream)
    assert log_p_x.dtype == compute(dtype)
    assert d_logits.dtype == dtype

    plain = logits.detach().to(compute(dtype)).requires_grad_()
    reference = Bernoulli(logits=plain.expand(shape)).log_prob(x.to(plain.dtype).expand(shape)).sum(-1)
    (d_reference,) = torch.autograd.grad(reference, plain, upstream)
    exact_logits = logits.detach().double().requires_grad_()
    exact = oracle(x, exact_logits)
    (d_exact,) = torch.autograd.grad(exact, exact_logits, upstream.double())
    assert_as_close_as_eager(log_p_x.detach(), reference.detach(), exact.detach(), "log_p_x")
    assert_as_close_as_eager(d_logits, d_reference.to(dtype), d_exact, "d_logits")
    with torch.no_grad():
        assert torch.equal(bernoulli_log_prob(x, logits), log_p_x)


@pytest.mark.parametrize("x_dtype", [torch.bool, torch.uint8, torch.int64, torch.float64, torch.bfloat16])
def test_data_types(block, x_dtype):
    x, logits = binary(4, 9), torch.randn(3, 4, 9)
    expected = bernoulli_log_prob(x, logits)
    assert torch.equal(bernoulli_log_prob(x.to(x_dtype), logits), expected)


def test_fractional_data_is_the_cross_entropy(block):
    x, logits = torch.rand(4, 9), torch.randn(4, 9)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    torch.testing.assert_close(bernoulli_log_prob(x, logits), expected)


@pytest.mark.parametrize("event_ndims", [0, 1, 2, 3])
def test_event_dimensions(block, event_ndims):
    x, logits = binary(4, 2, 3, 5), torch.randn(6, 4, 2, 3, 5, dtype=torch.float64, requires_grad=True)
    log_p_x = bernoulli_log_prob(x, logits, event_ndims)
    torch.testing.assert_close(log_p_x, oracle(x, logits, event_ndims))
    upstream = torch.randn_like(log_p_x)
    actual = torch.autograd.grad(log_p_x, logits, upstream)
    torch.testing.assert_close(actual, torch.autograd.grad(oracle(x, logits, event_ndims), logits, upstream))


def test_strided_logits(block):
    x, wide = binary(4, 9), torch.randn(9, 4, 6)
    logits = wide.permute(2, 1, 0)
    torch.testing.assert_close(bernoulli_log_prob(x, logits), bernoulli_log_prob(x, logits.contiguous()))
    (d_wide,) = torch.autograd.grad(bernoulli_log_prob(x, logits.requires_grad_()).sum(), logits)
    torch.testing.assert_close(d_wide, x - logits.sigmoid())


def test_gradcheck(block):
    x = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bernoulli_log_prob, (x, logits))
    assert torch.autograd.gradgradcheck(bernoulli_log_prob, (x, logits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [25.0, 1e3, 1e4])
def test_saturated_logits(dtype, magnitude):
    logits = torch.tensor([[magnitude], [-magnitude]], dtype=dtype, requires_grad=True)
    right = bernoulli_log_prob(torch.tensor([[1.0], [0.0]]), logits)
    wrong = bernoulli_log_prob(torch.tensor([[0.0], [1.0]]), logits)
    size = logits[0].item()
    exact = -math.log1p(math.exp(-size))
    eps = torch.finfo(compute(dtype)).eps
    assert (right.double() - exact).abs().max() <= eps * size
    assert (wrong.double() - (exact - size)).abs().max() <= eps * size
    (d_wrong,) = torch.autograd.grad(wrong.sum(), logits)
    torch.testing.assert_close(d_wrong, torch.tensor([[-1.0], [1.0]], dtype=dtype))


@pytest.mark.parametrize("logit", [math.inf, -math.inf, math.nan])
def test_non_finite_logits_propagate_as_in_torch(logit):
    x, logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[logit, 0.0], [logit, 0.0]])
    formula = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(bernoulli_log_prob(x, logits), formula, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7), (0, 3, 7), (3, 0)])
def test_empty(block, shape):
    logits = torch.randn(shape, requires_grad=True)
    log_p_x = bernoulli_log_prob(torch.zeros(shape[-1]), logits)
    assert log_p_x.shape == shape[:-1]
    assert (log_p_x == 0).all()
    assert torch.autograd.grad(log_p_x.sum(), logits)[0].shape == shape


class Largest(TorchDispatchMode):
    """The largest number of elements that any operation allocates."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        known = {t.untyped_storage().data_ptr() for t in given if isinstance(t, torch.Tensor)}
        for t in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_temporary_of_the_size_of_the_logits(monkeypatch, dtype):
    monkeypatch.setattr(likelihoods, "_CPU_BLOCK", 64)
    x, logits = binary(8, 16).bool(), torch.randn(32, 8, 16).to(dtype).requires_grad_()
    with Largest() as forward:
        log_p_x = bernoulli_log_prob(x, logits)
    assert forward.numel == max(log_p_x.numel(), x.numel())
    with Largest() as backward:
        log_p_x.backward(torch.ones(32, 8))
    # The gradient itself is the only large tensor, and only one.
    assert backward.numel == logits.numel()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.untyped_storage().nbytes()), id):
        bernoulli_log_prob(x, logits)
    assert sorted(saved) == [x.nbytes, logits.nbytes]


def test_autocast_leaves_it_in_float32():
    x, logits = binary(4, 9), torch.randn(4, 9)
    expected = bernoulli_log_prob(x, logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bernoulli_log_prob(x, logits), expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    x = binary(4, 9)
    compiled = torch.compile(bernoulli_log_prob, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for samples in (3, 5):
        logits = torch.randn(samples, 4, 9, requires_grad=True)
        eager = bernoulli_log_prob(x, logits)
        log_p_x = compiled(x, logits)
        torch.testing.assert_close(log_p_x, eager)
        actual, expected = (torch.autograd.grad(t.sum(), logits) for t in (log_p_x, eager))
        torch.testing.assert_close(actual, expected)


def test_transforms():
    x, logits = binary(4, 9), torch.randn(4, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(bernoulli_log_prob)(x, logits), bernoulli_log_prob(x, logits))
    per_example = torch.func.vmap(torch.func.grad(bernoulli_log_prob, argnums=1))(x.double(), logits)
    torch.testing.assert_close(per_example, x - logits.sigmoid())
    tangent = torch.randn_like(logits)
    _, d_log_p_x = torch.func.jvp(lambda y: bernoulli_log_prob(x, y), (logits,), (tangent,))
    torch.testing.assert_close(d_log_p_x, ((x - logits.sigmoid()) * tangent).sum(-1))


@pytest.mark.parametrize(
    ("x", "logits", "event_ndims", "error", "match"),
    [
        ([0.0], torch.zeros(1), 1, TypeError, "x must be a tensor, got list"),
        (torch.zeros(1), 0.0, 1, TypeError, "logits must be a tensor, got float"),
        (torch.zeros(1), torch.zeros(1, dtype=torch.int64), 1, TypeError, "logits .*int64"),
        (torch.zeros(1, dtype=torch.complex64), torch.zeros(1), 1, TypeError, "x must be .*complex64"),
        (
            torch.zeros(1, device="meta"),
            torch.zeros(1),
            1,
            ValueError,
            "x must be on the device of logits, cpu",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 4), 1, ValueError, r"x must end in the event shape \(4,\)"),
        (torch.zeros(3, 4), torch.zeros(2, 4), 1, ValueError, r"got \(3, 4\)"),
        (torch.zeros(5, 2, 4), torch.zeros(2, 4), 1, ValueError, r"got \(5, 2, 4\)"),
        (torch.zeros(1, 4), torch.zeros(2, 3, 4), 2, ValueError, r"event shape \(3, 4\)"),
        (torch.zeros(4), torch.zeros(4), 2, ValueError, r"event_ndims must lie in \[0, 1\].*got 2"),
        (torch.zeros(4), torch.zeros(4), -1, ValueError, "event_ndims must lie in"),
    ],
)
def test_bad_arguments(x, logits, event_ndims, error, match):
    with pytest.raises(error, match=match):
        bernoulli_log_prob(x, logits, event_ndims)
