"""The one-sweep inverse and its transposed sweep, against the reference and its autograd in float64.

The transposed sweep multiplies matrices; bfloat16 is left to GPUs (see test_masked_linear.py).
"""

import pytest
import torch

from fastvae.kernels import autoregressive_inverse as kernels
from fastvae.kernels._launch import compute_dtype
from fastvae.kernels.autoregressive_inverse import autoregressive_inverse_fwd, autoregressive_inverse_solve
from fastvae.reference.affine_flow import KINDS
from fastvae.reference.masked_linear import ACTIVATIONS
from fastvae.structure import LAYOUTS
from tests.support.flow_steps import (
    DEVICE,
    Flow,
    check_masked_weights_of_any_value,
    check_rows_that_lie_apart,
    flow_of,
    inverse_results,
)
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager


@pytest.fixture(autouse=True)
def triton_kernels(monkeypatch):
    """Also where the sweeps in CUDA C++ would run, see test_inverse_sweep.py."""
    monkeypatch.setattr(kernels, "find_sweep", lambda *_: None)


dtypes = pytest.mark.parametrize("dtype", [d for d in DTYPES if GPU or d != torch.bfloat16])


def check(n: int, flow: Flow, dtype: torch.dtype = torch.float32, shares: bool = False) -> None:
    flow = flow.to(dtype)
    d = flow.structure.features
    z, d_x = torch.randn(2, n, d).to(DEVICE, dtype).unbind()
    d_log_det = torch.randn(*((n, d) if shares else (n,))).to(DEVICE, compute_dtype(dtype))
    exact = inverse_results(flow.to(torch.float64), z.double(), d_x, d_log_det)
    # In float64 eager is the oracle itself: an input with one more rounding gives its errors.
    inexact = torch.nextafter(z, z + torch.randn_like(z)) if dtype == torch.float64 else z
    eager = inverse_results(flow, inexact, d_x, d_log_det)
    x, log_det = autoregressive_inverse_fwd(z, *flow.arguments(), shares)
    assert_as_close_as_eager(x, eager[0], exact[0], "x")
    assert_as_close_as_eager(log_det, eager[1].to(log_det), exact[1], "log_det")
    lam = autoregressive_inverse_solve(d_x, d_log_det, eager[0], *flow.arguments())
    assert_as_close_as_eager(lam, eager[2], exact[2], "lam")


@pytest.mark.parametrize(
    ("n", "features", "hidden"),
    [
        (0, 3, (4,)),  # no rows
        (3, 1, (4, 4)),  # one feature, whose parameters are constants
        (2, 17, (40, 9)),  # layers of different widths, one of them with fewer units than features
        (2, 4, (70,)),  # many units of each degree
        (2, 6, (8, 8, 8, 8)),  # deep
    ],
)
def test_shapes(n, features, hidden):
    check(n, flow_of(n, features, hidden))


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    check(3, flow_of(kind=kind))


@pytest.mark.parametrize("kind", ["gated", "location_only"])
def test_shares(kind):
    check(3, flow_of(kind=kind), shares=True)


@pytest.mark.thorough
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_activations(activation, residual):
    check(3, flow_of(hidden=(10, 10, 10), activation=activation, residual=residual, scaled=True))


@pytest.mark.thorough
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "shuffled"])
@pytest.mark.parametrize("params", [2, 3])
def test_structures(layout, shuffled, params):
    check(3, flow_of(layout=layout, shuffled=shuffled, params=params))
    check(3, flow_of(hidden=(9,), residual=True, layout=layout, shuffled=shuffled, params=params, context=False))


@pytest.mark.thorough
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_optional_parameters(bias, scaled):
    check(3, flow_of(bias=bias, scaled=scaled, context=False))


@dtypes
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_dtypes(dtype, residual):
    check(3, flow_of(hidden=(12, 12, 12), residual=residual), dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("sizes", [(1, 1, 16), (4, 2, 16), (2, 8, 32)])
def test_blocks_do_not_matter(monkeypatch, sizes):
    monkeypatch.setattr(kernels, "_choose_blocks", lambda *_: sizes)
    check(5, flow_of(5, hidden=(40, 20)))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_forward_undoes_inverse(residual):
    flow, z = flow_of(4, hidden=(10, 10, 10), residual=residual), torch.randn(4, 5).to(DEVICE)
    x, log_det = autoregressive_inverse_fwd(z, *flow.arguments())
    back, minus_log_det = flow.forward(x)
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-4, atol=1e-5)


def test_solve_balances_the_step():
    """d_x + VJP of the forward step at x, with upstream gradients -lam and -d_log_det, is zero."""
    flow = flow_of(4).to(torch.float64)
    x, d_x = torch.randn(2, 4, 5, dtype=torch.float64).to(DEVICE).unbind()
    d_log_det = torch.randn(4, dtype=torch.float64).to(DEVICE)
    lam = autoregressive_inverse_solve(d_x, d_log_det, x, *flow.arguments())
    x = x.clone().requires_grad_()
    (sent_back,) = torch.autograd.grad(flow.forward(x), x, [-lam, -d_log_det])
    torch.testing.assert_close(sent_back, -d_x, rtol=1e-12, atol=1e-12)


def test_rows_may_lie_apart():
    check_rows_that_lie_apart()


def test_masked_weights_may_be_anything():
    check_masked_weights_of_any_value()
