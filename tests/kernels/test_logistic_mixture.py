"""The mixture's launchers against the reference in float64: all layouts, half a block and several of them."""

import pytest
import torch
from torch import Tensor

from fastvae.kernels.logistic_mixture import logistic_mixture_bwd, logistic_mixture_fwd
from fastvae.reference.logistic_mixture import PARAMS_PER_COMPONENT, logistic_mixture_log_prob
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if GPU else "cpu"

# Images, channels, components, height, width.
SHAPES = [
    (0, 3, 2, 4, 4),
    (2, 3, 2, 0, 3),
    (1, 1, 1, 1, 1),
    (2, 3, 3, 5, 7),
    (2, 1, 4, 8, 16),  # one whole block
    (1, 3, 1, 11, 13),  # a block and a bit
]


def inputs(n: int, channels: int, components: int, height: int, width: int, levels: int = 256) -> tuple[Tensor, Tensor]:
    level = torch.randint(levels, (n, channels, height, width), device=DEVICE)
    level.view(-1)[::5], level.view(-1)[3::5] = 0, levels - 1
    params = torch.randn(n, PARAMS_PER_COMPONENT[channels] * components, height, width, device=DEVICE)
    params[:, (1 + channels) * components : (1 + 2 * channels) * components] -= 3.0
    return level * (2.0 / (levels - 1)) - 1.0, params


def results(x: Tensor, params: Tensor, upstream: Tensor, levels: int) -> list[Tensor]:
    """Log-likelihoods and gradient of the reference in the dtype of the parameters."""
    leaf = params.detach().clone().requires_grad_()
    log_prob = logistic_mixture_log_prob(x, leaf, levels)
    return [log_prob.detach(), *torch.autograd.grad(log_prob, leaf, upstream.to(log_prob))]


def check(x: Tensor, params: Tensor, levels: int = 256, dtype: torch.dtype = torch.float32) -> Tensor:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    x, params = x.to(compute), params.to(dtype)
    upstream = torch.randn(len(x), device=DEVICE, dtype=compute)
    exact = results(x, params.double(), upstream, levels)
    # One rounding of the parameters gives float64's own error.
    nearby = torch.nextafter(params, params + torch.randn_like(params)) if dtype == torch.float64 else params
    eager = results(x, nearby, upstream, levels)
    log_prob = logistic_mixture_fwd(x, params, levels)
    gradient = logistic_mixture_bwd(upstream, x, params, levels)
    assert_as_close_as_eager(log_prob, eager[0], exact[0], "log_prob")
    assert_as_close_as_eager(gradient, eager[1], exact[1], "d_params")
    return gradient


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    check(*inputs(*shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtypes(channels, dtype):
    check(*inputs(2, channels, 2, 4, 5), dtype=dtype)


@pytest.mark.parametrize("levels", [2, 32, 65536])
def test_levels(levels):
    check(*inputs(2, 3, 2, 4, 5, levels), levels=levels)


@pytest.mark.parametrize("of_x", [False, True], ids=["x contiguous", "x channels last"])
@pytest.mark.parametrize("of_params", ["contiguous", "channels_last", "transposed", "sliced"])
def test_layouts(of_params, of_x):
    x, params = inputs(2, 3, 2, 5, 7)
    if of_x:
        x = x.contiguous(memory_format=torch.channels_last)
    if of_params == "channels_last":
        params = params.contiguous(memory_format=torch.channels_last)
    elif of_params == "transposed":
        params = params.mT.contiguous().mT
    elif of_params == "sliced":
        params = torch.nn.functional.pad(params, (1, 2, 0, 1))[:, :, :-1, 1:-2]
    gradient = check(x, params)
    assert gradient.is_contiguous(memory_format=torch.channels_last) == (of_params == "channels_last")


def test_narrow_wide_and_far_components_are_finite():
    x, params = inputs(1, 3, 4, 4, 4)
    params[:, 4:8], params[:, 8:12] = 1e4, -1e4
    params[:, 16:20], params[:, 20:24], params[:, 24:28] = -7.0, 7.0, -30.0
    ones = torch.ones(1, device=DEVICE)
    assert logistic_mixture_fwd(x, params, 256).isfinite().all()
    assert logistic_mixture_bwd(ones, x, params, 256).isfinite().all()


def test_nan_shows():
    x, params = inputs(2, 1, 2, 3, 3)
    params[1, 3, 2, 1] = float("nan")
    assert logistic_mixture_fwd(x, params, 256).isnan().tolist() == [False, True]
    gradient = logistic_mixture_bwd(torch.ones(2, device=DEVICE), x, params, 256)
    assert gradient.isnan().any(1).nonzero().tolist() == [[1, 2, 1]]
