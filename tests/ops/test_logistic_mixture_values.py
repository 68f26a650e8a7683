"""The mixture's probabilities: against the plain formula, summed over all values, and at the extremes."""

import itertools
import math

import pytest
import torch

from fastvae.ops.logistic_mixture import logistic_mixture_log_prob
from tests.support.implementations import GPU, IMPLEMENTATIONS, device_of
from tests.support.mixtures import PER_COMPONENT, images, parameters

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
channel_counts = pytest.mark.parametrize("channels", [1, 3])


def plain(x, params, levels):
    """The plain formula, pixel by pixel, in float64: differences of distribution functions."""
    n, channels, height, width = x.shape
    k = params.shape[1] // PER_COMPONENT[channels]
    log_prob = torch.zeros(n, dtype=torch.float64)
    for image, h, w in itertools.product(range(n), range(height), range(width)):
        pixel, numbers = x[image, :, h, w].double(), params[image, :, h, w].double()
        weights = torch.softmax(numbers[:k], 0)
        means = numbers[k : (1 + channels) * k].reshape(channels, k).clone()
        scales = numbers[(1 + channels) * k : (1 + 2 * channels) * k].reshape(channels, k).clamp(min=-7).exp()
        if channels == 3:
            t = numbers[7 * k :].reshape(3, k).tanh()
            means[1] += t[0] * pixel[0]
            means[2] += t[1] * pixel[0] + t[2] * pixel[1]
        p = weights.clone()
        for c in range(channels):
            half = 1 / (levels - 1)
            upper = torch.sigmoid((pixel[c] - means[c] + half) / scales[c])
            lower = torch.sigmoid((pixel[c] - means[c] - half) / scales[c])
            lowest, highest = pixel[c] < -1 + half / 2, pixel[c] > 1 - half / 2
            p *= (1.0 if highest else upper) - (0.0 if lowest else lower)
        log_prob[image] += p.sum().log()
    return log_prob


@every_impl
@channel_counts
@pytest.mark.parametrize("levels", [2, 256])
def test_is_the_difference_of_distribution_functions(levels, channels, impl):
    x, params = images(2, channels, 3, 4, levels), parameters(2, channels, 3, 3, 4).double()
    params[:, 4 * channels :] *= 0.3  # or differences would lose digits
    device = device_of(impl)
    got = logistic_mixture_log_prob(x.to(device), params.to(device), levels=levels, impl=impl).cpu()
    torch.testing.assert_close(got, plain(x, params, levels), rtol=1e-10, atol=1e-10)


def test_parameters_in_the_original_order():
    """PixelCNN++ keeps the numbers of a channel together; the docstring says how they are reordered."""
    k, x = 4, images(2, 3, 3, 4)
    params = parameters(2, 3, k, 3, 4)
    ours = params.movedim(1, -1)
    original = ours[..., k:].unflatten(-1, (3, 3, k)).transpose(-3, -2).flatten(-3)
    means, log_scales, coefficients = original.reshape(2, 3, 4, 3, 3 * k).split(k, -1)
    blocks = [block.movedim(-2, 1).movedim(-1, 2).flatten(1, 2) for block in (means, log_scales, coefficients)]
    torch.testing.assert_close(torch.cat([params[:, :k], *blocks], 1), params)
    back = original.unflatten(-1, (3, 3, k)).transpose(-3, -2).flatten(-3)
    again = torch.cat([ours[..., :k], back], -1).movedim(-1, 1)
    assert torch.equal(logistic_mixture_log_prob(x, again), logistic_mixture_log_prob(x, params))


# Means and log-scales of three components each.
HARD = [
    ([0.0, 0.5, -0.5], [-7.0, -7.0, -7.0]),
    ([1e4, -1e4, 0.1], [-7.0, 7.0, -20.0]),
    ([1.0, -1.0, 3.0], [7.0, 0.0, 30.0]),
    ([-5.0, 5.0, 1e4], [-3.0, -3.0, 7.0]),
]


@every_impl
@pytest.mark.parametrize(("means", "log_scales"), HARD)
def test_probabilities_of_all_levels_sum_up_to_1(means, log_scales, impl):
    # An interpreted kernel takes its time for every image.
    device, levels = device_of(impl), 8 if impl == "triton" and not GPU else 256
    x = (torch.arange(levels, dtype=torch.float64, device=device) * (2 / (levels - 1)) - 1).view(levels, 1, 1, 1)
    params = torch.tensor([0.3, -0.2, 0.5, *means, *log_scales], dtype=torch.float64, device=device)
    log_p = logistic_mixture_log_prob(x, params.view(1, 9, 1, 1).expand(levels, 9, 1, 1), levels=levels, impl=impl)
    assert abs(log_p.exp().sum().item() - 1) < 1e-12


@every_impl
def test_probabilities_of_all_colours_sum_up_to_1(impl):
    device, levels = device_of(impl), 3 if impl == "triton" and not GPU else 6
    grid = torch.arange(levels, dtype=torch.float64, device=device) * (2 / (levels - 1)) - 1
    x = torch.cartesian_prod(grid, grid, grid).view(-1, 3, 1, 1)
    params = torch.randn(1, 30, 1, 1, dtype=torch.float64, device=device).expand(len(x), 30, 1, 1)
    log_p = logistic_mixture_log_prob(x, params, levels=levels, impl=impl)
    assert abs(log_p.exp().sum().item() - 1) < 1e-13


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [0.0, 0.99, 1e4, -1e4])
@pytest.mark.parametrize("log_scale", [-7.0, 7.0, 40.0])
def test_extremes(log_scale, mean, dtype, impl):
    """Narrow and wide, near and far: finite, and wrong by no more than rounding of a log-probability costs."""
    x, params = images(2, 3, 3, 3), parameters(2, 3, 2, 3, 3)
    params[:, 2:8], params[:, 8:14] = mean, log_scale
    results = []
    for name, device, precision in ((impl, device_of(impl), dtype), ("reference", "cpu", torch.float64)):
        leaf = params.to(device, precision).requires_grad_()
        log_prob = logistic_mixture_log_prob(x.to(device), leaf, impl=name)
        results.append([log_prob.detach().cpu(), torch.autograd.grad(log_prob.sum(), leaf)[0].cpu()])
    (log_prob, gradient), (expected, expected_gradient) = results
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(gradient).all()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(log_prob.double(), expected, rtol=16 * eps, atol=16 * eps)
    bound = 16 * eps * 3 * (math.exp(-log_scale) * (abs(mean) + 4) + abs(log_scale) + 5)
    if bound < 0.1:  # else the components' shares are lost, in any implementation
        error = (gradient.double() - expected_gradient).abs().max()
        assert error <= bound * expected_gradient.abs().max()


@every_impl
def test_log_scales_below_the_clamp(impl):
    device = device_of(impl)
    x, params = images(2, 3, 3, 3).to(device), parameters(2, 3, 2, 3, 3).to(device)
    params[:, 8:14] = -7.0
    expected = logistic_mixture_log_prob(x, params, impl=impl)
    params[:, 8:14] = -9.0
    params.requires_grad_()
    got = logistic_mixture_log_prob(x, params, impl=impl)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(got.sum(), params)
    assert (gradient[:, 8:14] == 0).all()
    assert (gradient[:, :8] != 0).any()


@every_impl
@pytest.mark.parametrize("block", [0, 1, 2], ids=["weight", "mean", "log_scale"])
def test_nan_shows_in_its_image_only(block, impl):
    device = device_of(impl)
    x, params = images(3, 1, 4, 4).to(device), parameters(3, 1, 2, 4, 4).to(device)
    params[1, 2 * block + 1, 2, 3] = float("nan")
    log_prob = logistic_mixture_log_prob(x, params, impl=impl)
    assert log_prob.isnan().tolist() == [False, True, False]


def test_scales_wider_than_the_range():
    """Scales so wide that only the outermost bins are left, one half each."""
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    params = torch.tensor([0.0, 0.0, 40.0]).view(1, 3, 1, 1).expand(2, 3, 1, 1)
    for impl in IMPLEMENTATIONS:
        log_prob = logistic_mixture_log_prob(x.to(device_of(impl)), params.to(device_of(impl)), impl=impl)
        torch.testing.assert_close(log_prob.cpu(), torch.full((2,), -math.log(2.0)))
