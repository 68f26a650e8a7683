"""The discretised logistic, and samples of the mixture against its probabilities."""

import pytest
import torch

from fastvae.likelihoods import discretized_logistic_log_prob, logistic_mixture_sample
from fastvae.ops.logistic_mixture import logistic_mixture_log_prob
from fastvae.reference import logistic_mixture as reference
from tests.support.implementations import DTYPES


def levels_of(levels, dtype=torch.float64):
    return torch.arange(levels, dtype=dtype) * (2 / (levels - 1)) - 1


@pytest.mark.parametrize("levels", [2, 256])
@pytest.mark.parametrize("mean", [0.0, 0.3, -1.0, 1e4, -1e4])
@pytest.mark.parametrize("log_scale", [-20.0, -7.0, 0.0, 7.0])
def test_probabilities_sum_up_to_1(log_scale, mean, levels):
    mu, log_scale = (torch.tensor(value, dtype=torch.float64) for value in (mean, log_scale))
    log_p = discretized_logistic_log_prob(levels_of(levels), mu, log_scale, levels=levels)
    assert torch.isfinite(log_p).all()
    assert abs(log_p.exp().sum().item() - 1) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_a_mixture_of_one(dtype):
    x = levels_of(256, torch.float32)[torch.randint(256, (3, 1, 4, 5))]
    mu, log_scale = torch.randn(2, 3, 1, 4, 5).to(dtype)
    log_p = discretized_logistic_log_prob(x, mu, log_scale)
    params = torch.cat([torch.zeros_like(mu), mu, log_scale], 1)
    torch.testing.assert_close(log_p.sum((1, 2, 3)), logistic_mixture_log_prob(x, params, impl="reference"))
    assert log_p.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_one_scale_for_each_channel():
    x = levels_of(256, torch.float32)[torch.randint(256, (2, 3, 4, 5))]
    mu, log_scale = torch.randn(2, 3, 4, 5), torch.randn(3, 1, 1, requires_grad=True)
    log_p = discretized_logistic_log_prob(x, mu, log_scale)
    assert log_p.shape == x.shape
    log_p.sum().backward()
    assert log_scale.grad.shape == (3, 1, 1)


def test_gradcheck():
    x = levels_of(256)[torch.tensor([0, 1, 100, 254, 255])]
    mu, log_scale = torch.randn(5).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: discretized_logistic_log_prob(x, *p), (mu, log_scale))
    assert torch.autograd.gradgradcheck(lambda *p: discretized_logistic_log_prob(x, *p), (mu, log_scale))


def test_log_scales_below_the_clamp_get_no_gradient():
    x, mu = torch.tensor([0.0, 1.0]), torch.zeros(2)
    log_scale = torch.tensor([-9.0, -6.0], requires_grad=True)
    log_p = discretized_logistic_log_prob(x, mu, log_scale, levels=3)
    assert torch.equal(log_p[0], discretized_logistic_log_prob(x, mu, torch.tensor(-7.0), levels=3)[0])
    (gradient,) = torch.autograd.grad(log_p.sum(), log_scale)
    assert (gradient != 0).tolist() == [False, True]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("components", [1, 4])
def test_samples_have_the_mixtures_probabilities(components, channels):
    """Frequencies of all values of a pixel on 200 000 draws: a chi-squared statistic near its degrees of freedom."""
    levels, draws = (16, 200_000) if channels == 1 else (4, 200_000)
    size = reference.PARAMS_PER_COMPONENT[channels] * components
    params = torch.randn(1, size, 1, 1, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(1)
    wide = params.expand(1, size, 1, draws)
    images = logistic_mixture_sample(wide, channels=channels, levels=levels, generator=generator)
    assert (images.dtype, images.shape) == (torch.float32, (1, channels, 1, draws))
    index = torch.round((images + 1) * ((levels - 1) / 2)).long()[0, :, 0]
    cell = sum(index[c] * levels ** (channels - 1 - c) for c in range(channels))
    grid = levels_of(levels)
    values = grid[:, None] if channels == 1 else torch.cartesian_prod(grid, grid, grid)
    x = values.view(-1, channels, 1, 1)
    p = logistic_mixture_log_prob(x, params.double().expand(len(x), size, 1, 1), levels=levels).exp()
    expected = p * draws
    seen = torch.bincount(cell, minlength=len(x)).double()
    likely = expected > 5
    statistic = ((seen - expected).square() / expected)[likely].sum().item()
    freedom = int(likely.sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_samples_lie_on_levels():
    images = logistic_mixture_sample(4 * torch.randn(2, 20, 5, 5), channels=3, levels=17)
    position = (images + 1) * 8
    torch.testing.assert_close(position, position.round(), rtol=0, atol=1e-5)
    assert (images.abs() <= 1).all()


def test_extreme_parameters():
    params = torch.zeros(1, 9, 1, 4)
    params[0, 3:6] = torch.tensor([1e4, -1e4, 1e4, -1e4])
    images = logistic_mixture_sample(params, channels=1)
    assert images.flatten().tolist() == [1, -1, 1, -1]
    ends = torch.tensor([[0.5, 1e-30], [0.5, 1 - 2**-24]])
    low, high = reference.logistic_mixture_sample(torch.zeros(2, 3), ends)
    assert (low.item(), high.item()) == (-1, 1)


def test_temperature():
    """Towards 0: the likeliest component's mean, shifted by the channels before."""
    params = torch.zeros(1, 20, 2, 2)
    params[:, 1] = 1.0  # the second component
    params[:, [3, 5, 7]] = 0.25
    params[:, 15], params[:, 17], params[:, 19] = 0.5, -0.5, 0.75
    images = logistic_mixture_sample(params, channels=3, temperature=1e-6, levels=65536)
    t1, t2, t3 = torch.tanh(torch.tensor([0.5, -0.5, 0.75])).tolist()
    red, green = 0.25, 0.25 + t1 * 0.25
    expected = torch.tensor([red, green, 0.25 + t2 * red + t3 * green]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


def test_the_generator_decides():
    params = torch.randn(2, 100, 4, 4, requires_grad=True)
    first, second = (logistic_mixture_sample(params, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not torch.equal(first, logistic_mixture_sample(params, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_layouts(dtype):
    params = torch.randn(2, 10, 4, 4).to(dtype)
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    images = logistic_mixture_sample(params, generator=seeds[0])
    assert images.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    last = logistic_mixture_sample(params.contiguous(memory_format=torch.channels_last), generator=seeds[1])
    assert torch.equal(images, last)


ZERO = torch.zeros(2, 3)
PARAMS = torch.zeros(2, 20, 4, 4)
ERRORS = [
    (lambda: discretized_logistic_log_prob(0.0, ZERO, ZERO), TypeError, "x must be a tensor, got float"),
    (lambda: discretized_logistic_log_prob(ZERO.int(), ZERO, ZERO), TypeError, "x must be float16"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO.int(), ZERO), TypeError, "mu must be float16"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO, 0.0), TypeError, "log_scale must be a tensor"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO, ZERO.half()), TypeError, "log_scale must have the dtype of mu"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO[:, :2], ZERO), ValueError, r"mu \(2, 2\)"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO.to("meta"), ZERO.to("meta")), ValueError, "device of x, cpu"),
    (lambda: discretized_logistic_log_prob(ZERO, ZERO, ZERO, levels=1), ValueError, "levels must lie in"),
    (lambda: discretized_logistic_log_prob(ZERO.clone().requires_grad_(), ZERO, ZERO), ValueError, "detach it"),
    (lambda: logistic_mixture_sample(0.0), TypeError, "params must be a tensor"),
    (lambda: logistic_mixture_sample(PARAMS[0]), ValueError, r"\(N, 3 K, H, W\) or \(N, 10 K, H, W\), got"),
    (lambda: logistic_mixture_sample(PARAMS, channels=1), ValueError, r"\(N, 3 K, H, W\), got \(2, 20, 4, 4\)"),
    (lambda: logistic_mixture_sample(PARAMS[:, :7]), ValueError, r"got \(2, 7, 4, 4\)"),
    (lambda: logistic_mixture_sample(torch.zeros(1, 30, 2, 2)), ValueError, "channels must be given, 1 or 3"),
    (lambda: logistic_mixture_sample(PARAMS, channels=2), ValueError, "channels must be 1 or 3, got 2"),
    (lambda: logistic_mixture_sample(PARAMS, temperature=0.0), ValueError, "temperature must be above 0, got 0.0"),
    (lambda: logistic_mixture_sample(PARAMS, temperature=float("nan")), ValueError, "temperature must be above 0"),
    (lambda: logistic_mixture_sample(PARAMS, levels=True), TypeError, "levels must be an int, got bool"),
    (lambda: logistic_mixture_sample(PARAMS, generator=3), TypeError, "generator must be a torch.Generator"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_errors_name_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
