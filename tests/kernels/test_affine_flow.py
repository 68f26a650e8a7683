"""The affine step's launchers against the reference in float64: all kinds, both directions, awkward rows."""

import pytest
import torch
from torch import Tensor

from fastvae.kernels.affine_flow import affine_flow_bwd, affine_flow_fwd
from fastvae.reference.affine_flow import KINDS, affine_flow
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"

kinds = pytest.mark.parametrize("kind", KINDS)
directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def results(inputs: list[Tensor], upstream: list[Tensor], *options: str | bool) -> list[Tensor]:
    """Outputs and gradients of the reference in the dtype of the inputs."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out, log_det = affine_flow(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None, *options)
    # log_det of a mere shift is a constant.
    value = (out * upstream[0].to(out)).sum() + (log_det * upstream[1].to(log_det)).sum()
    return [out.detach(), log_det.detach(), *torch.autograd.grad(value, leaves)]


def check(
    n: int,
    d: int,
    kind: str,
    inverse: bool,
    dtype: torch.dtype = torch.float32,
    halves: bool = False,
    shares: bool = False,
) -> None:
    z = torch.randn(n, d, device=DEVICE).to(dtype)
    params = torch.randn(n, 2 * d, device=DEVICE).to(dtype)
    if not halves:  # rows that lie apart from each other
        z = torch.randn(n, d + 3, device=DEVICE).to(dtype)[:, 1 : d + 1]
    inputs = [z, params[:, :d], params[:, d:]][: 2 if kind == "location_only" else 3]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = [
        torch.randn(n, d, device=DEVICE).to(dtype),
        torch.randn(*((n, d) if shares else (n,)), device=DEVICE).to(compute),
    ]
    options = kind, inverse, shares
    exact = results([t.double() for t in inputs], upstream, *options)
    if dtype == torch.float64:
        eager = results([torch.nextafter(t, t + torch.randn_like(t)) for t in inputs], upstream, *options)
    else:
        eager = results(inputs, upstream, *options)
    arguments = (*inputs, None)[:3]
    outputs = affine_flow_fwd(*arguments, *options)
    gradients = affine_flow_bwd(*upstream, *arguments, kind, inverse)
    assert (gradients[2] is None) == (kind == "location_only")
    actual = [*outputs, *(g for g in gradients if g is not None)]
    for index, (a, e, o) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_as_close_as_eager(a, e, o, f"{kind} result {index}")


@kinds
@directions
@pytest.mark.parametrize(("n", "d"), [(0, 3), (5, 1), (3, 63), (4, 64), (2, 130)])
def test_shapes(kind, inverse, n, d):
    check(n, d, kind, inverse)


@kinds
@directions
def test_shares(kind, inverse):
    check(3, 65, kind, inverse, shares=True)


@directions
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gated", "exp", "softplus", "location_only"])
def test_dtypes(kind, inverse, dtype):
    check(3, 65, kind, inverse, dtype, halves=True)


@kinds
def test_inverse_undoes_forward(kind):
    z, shift, scale_logit = torch.randn(3, 4, 33, device=DEVICE).unbind()
    scale_logit = None if kind == "location_only" else scale_logit
    out, log_det = affine_flow_fwd(z, shift, scale_logit, kind, False)
    back, minus_log_det = affine_flow_fwd(out, shift, scale_logit, kind, True)
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-6, atol=1e-6)


@kinds
@directions
def test_saturation_is_finite(kind, inverse):
    scale_logit = torch.tensor([[-1e4, 1e4, -1e3, 1e3]], device=DEVICE)
    z, shift = torch.randn(2, 1, 4, device=DEVICE).unbind()
    arguments = (z, shift, None if kind == "location_only" else scale_logit)
    results = [
        *affine_flow_fwd(*arguments, kind, inverse),
        *affine_flow_bwd(z, torch.ones(1, device=DEVICE), *arguments, kind, inverse),
    ]
    assert all(t.isfinite().all() for t in results if t is not None)


@pytest.mark.parametrize("kind", ["gated", "clamped_exp", "iaf_release"])
@directions
def test_clamps_pass_no_gradient(kind, inverse):
    scale_logit = torch.tensor([[-1e4, 1e4]], device=DEVICE)
    z, shift = torch.randn(2, 1, 2, device=DEVICE).unbind()
    gradients = affine_flow_bwd(z, torch.ones(1, device=DEVICE), z, shift, scale_logit, kind, inverse)
    assert (gradients[2] == 0).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "location_only"])
def test_nan_shows(kind):
    scale_logit = torch.tensor([[float("nan"), 0.0]], device=DEVICE)
    ones = torch.ones(1, 2, device=DEVICE)
    out, log_det = affine_flow_fwd(ones, ones, scale_logit, kind, False)
    assert out.isnan().tolist() == [[True, False]]
    assert log_det.isnan().all()
