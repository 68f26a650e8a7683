"""The gate's launchers against the reference in float64: layouts, conditions, awkward sizes."""

import pytest
import torch
import triton.language as tl
from torch import Tensor

from fastvae.kernels import gated_activation as module
from fastvae.kernels._launch import forget_rules
from fastvae.kernels.gated_activation import gated_activation_bwd, gated_activation_fwd
from fastvae.reference.gated_activation import KINDS, gated_activation
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"
CONDITIONS = ("none", "vector", "map", "map of the other layout")
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "range of channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
}

kinds = pytest.mark.parametrize("kind", KINDS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
conditions = pytest.mark.parametrize("condition", CONDITIONS)


def results(inputs: list[Tensor], upstream: Tensor, kind: str) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y = gated_activation(leaves[0], leaves[1] if len(leaves) > 1 else None, kind)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y))]


def check(shape, kind="tanh", layout="contiguous", condition="none", dtype=torch.float32) -> None:
    n, f, h, w = shape
    x = LAYOUTS[layout](torch.randn(n, 2 * f, h, w, device=DEVICE).to(dtype))
    inputs = [x]
    if condition == "vector":
        inputs.append(torch.randn(n, 2 * f, 1, 1, device=DEVICE).to(dtype))
    elif condition != "none":
        other = {"contiguous": "channels_last"}.get(layout, "contiguous") if "other" in condition else layout
        inputs.append(LAYOUTS[other](torch.randn(n, 2 * f, h, w, device=DEVICE).to(dtype)))
    upstream = torch.randn(n, f, h, w, device=DEVICE).to(dtype)
    exact = results([t.double() for t in inputs], upstream.double(), kind)
    if dtype == torch.float64:
        eager = results([torch.nextafter(t, t + torch.randn_like(t)) for t in inputs], upstream, kind)
    else:
        eager = results(inputs, upstream, kind)
    added = inputs[1] if len(inputs) > 1 else None
    y, d_x = gated_activation_fwd(x, added, kind), gated_activation_bwd(upstream, x, added, kind)
    actual = [y, d_x] if added is None else [y, d_x, d_x.sum_to_size(added.shape)]
    for index, (a, e, o) in enumerate(zip(actual, eager, exact, strict=True)):
        assert_as_close_as_eager(a, e, o, f"{kind}, {layout}, condition {condition}: result {index}")


@kinds
@layouts
@conditions
def test_layouts(kind, layout, condition):
    check((2, 5, 3, 4), kind, layout, condition)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(0, 3, 2, 2), (1, 1, 1, 1), (2, 1, 7, 9), (1, 16, 4, 4), (2, 33, 1, 5), (1, 3, 0, 4)]
)
def test_shapes(shape, layout):
    check(shape, layout=layout, condition="vector")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@kinds
def test_dtypes(kind, layout, dtype):
    check((2, 3, 5, 4), kind, layout, "vector", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@kinds
def test_every_number_is_right(kind, dtype):
    """Not only the largest, as elsewhere: tiny arguments, large ones, and where one formula follows another."""
    least = {torch.float16: -3.0, torch.float64: -30.0}.get(dtype, -15.0)
    sizes = torch.cat([torch.logspace(least, 1.6, 90), torch.linspace(0.6, 0.65, 21), torch.tensor([0.0])])
    a, b = (
        t.flatten() for t in torch.meshgrid(torch.cat([sizes, -sizes]), torch.linspace(-8.0, 8.0, 9), indexing="ij")
    )
    x = torch.cat([a, b]).view(1, 2, 1, -1).to(DEVICE, dtype)
    exact = gated_activation(x.double(), None, kind)
    y = gated_activation_fwd(x, None, kind)
    error = (y.double() - exact).abs() / exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert error.max() <= 8.0 * torch.finfo(dtype).eps


@kinds
def test_saturation_is_finite(kind):
    x = torch.tensor([-1e4, 1e4, -1e2, 1e2], device=DEVICE).view(1, 4, 1, 1)
    y = gated_activation_fwd(x, None, kind)
    assert y.isfinite().all()
    assert gated_activation_bwd(torch.ones_like(y), x, None, kind).isfinite().all()


def test_the_type_of_indices_does_not_matter(monkeypatch):
    x = torch.randn(3, 10, 5, 7, device=DEVICE)
    upstream = torch.randn(3, 5, 5, 7, device=DEVICE)
    expected = gated_activation_fwd(x, None, "tanh"), gated_activation_bwd(upstream, x, None, "tanh")
    monkeypatch.setattr(module, "index_type", lambda _: tl.int64)
    forget_rules()
    got = gated_activation_fwd(x, None, "tanh"), gated_activation_bwd(upstream, x, None, "tanh")
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_nan_shows():
    x = torch.zeros(1, 4, 1, 2, device=DEVICE)
    x[0, 0, 0, 0] = x[0, 3, 0, 1] = float("nan")
    y = gated_activation_fwd(x, None, "tanh")
    assert y.isnan().flatten().tolist() == [True, False, False, True]
