"""Integer levels, and dtypes that do not tell the levels apart."""

import math

import numpy as np
import pytest
import torch

import fastvae.functional as F
from fastvae.nn import GatedPixelCNN, PixelCNN, PixelCNNpp
from fastvae.precision import tells_apart
from fastvae.recipes.systems.pixelvae.prior import GaussianPixels, GaussianPrior
from fastvae.sampling import Bernoulli, Categorical, CausalSampler, LogisticMixture
from tests.support.causal_networks import Plain
from tests.support.causal_stacks import scale_weights

LIKELIHOODS = [Bernoulli(), Categorical(7), LogisticMixture(2, 9)]
likelihoods = pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda likelihood: type(likelihood).__name__)
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
SIZE = (3, 5)


def codes_of(likelihood, channels=1, n=2):
    return torch.randint(0, likelihood.levels, (n, channels, *SIZE))


def network(kind=GatedPixelCNN, likelihood="bernoulli", channels=1, **options):
    torch.manual_seed(0)
    net = kind(channels, 6 * channels, 2, first_kernel_size=3, likelihood=likelihood, **options)
    return scale_weights(net, 1.5)


# Which dtypes tell levels apart


def survives(dtype, levels, symmetric):
    k = torch.arange(levels, dtype=torch.float64)
    values = 2 * k / (levels - 1) - 1 if symmetric else k / (levels - 1)
    rounded = values.to(dtype).float()
    back = torch.round((rounded + 1) * (0.5 * (levels - 1)) if symmetric else rounded * (levels - 1))
    return torch.equal(back.double(), k)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_levels_that_survive_rounding(dtype, symmetric):
    counts = range(2, 1200) if dtype == torch.bfloat16 else [*range(2, 50), *range(2000, 2100), *range(4000, 4200)]
    for levels in [*counts, 256, 512, 65536]:
        assert tells_apart(dtype, levels, symmetric=symmetric) == survives(dtype, levels, symmetric), levels


def test_images_of_eight_bits_are_read_in_every_dtype():
    codes = torch.arange(256).view(1, 1, 16, 16)
    for likelihood in (Categorical(), LogisticMixture()):
        for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            x = likelihood.to_values(codes, torch.float64).to(dtype)
            likelihood.check("x", x)
            assert torch.equal(likelihood.to_codes(x), codes)
            if dtype in (torch.bfloat16, torch.float16):
                assert torch.equal(likelihood.to_numbers(x, torch.float32), likelihood.to_values(codes))


REFUSED = "x must have a dtype that tells levels={} values .* apart, got torch.{}.* Pass the integers k, or float32"


@pytest.mark.parametrize(
    ("likelihood", "dtype", "outputs"),
    [
        (Categorical(512), torch.bfloat16, 512),
        (Categorical(4096), torch.float16, 4096),
        (LogisticMixture(1, 1024), torch.bfloat16, 3),
        (LogisticMixture(1, 65536), torch.float16, 3),
    ],
)
def test_dtypes_that_do_not_tell_levels_apart(likelihood, dtype, outputs):
    x = torch.ones(1, 1, 2, 2, dtype=dtype)  # a level that is read: the dtype decides, not the values
    words = REFUSED.format(likelihood.levels, str(dtype).partition(".")[2])
    sampler = CausalSampler(Plain(outputs=outputs).eval(), likelihood)
    net = network(PixelCNN, likelihood)
    for call in (
        lambda: likelihood.check("x", x),
        lambda: likelihood.to_codes(x),
        lambda: likelihood.log_prob(x, torch.zeros(1, outputs, 2, 2)),
        lambda: sampler.parameters(x),
        lambda: sampler.log_prob(x),
        lambda: net.log_prob(x),
        lambda: net.to(dtype).log_prob(x),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match=words.replace("x must", "given must", 1)):
        sampler.sample(1, 2, given=x)
    for wide in (x.float(), x.double()):
        likelihood.check("x", wide)
    sampler.log_prob(x.float())


def test_functions_refuse_them_too():
    x, params = torch.zeros(1, 1, 2, 2).bfloat16(), torch.zeros(1, 3, 2, 2)
    for impl in ("reference", "cpp"):
        with pytest.raises(ValueError, match=REFUSED.format(1024, "bfloat16")):
            F.logistic_mixture_log_prob(x, params, levels=1024, impl=impl)
    with pytest.raises(ValueError, match=REFUSED.format(1024, "bfloat16")):
        F.discretized_logistic_log_prob(x, params[:, :1], params[:, 1:2], levels=1024)
    F.logistic_mixture_log_prob(x, params)
    F.discretized_logistic_log_prob(x, params[:, :1], params[:, 1:2])


def test_a_mixture_takes_half_precision_to_its_levels():
    """Bins around what was rounded would overlap: their probabilities would not add up to 1."""
    likelihood = LogisticMixture(1)
    x = likelihood.to_values(torch.arange(256).view(256, 1, 1, 1)).bfloat16()
    params = torch.tensor([0.0, 0.1, -4.0]).view(1, 3, 1, 1).expand(256, 3, 1, 1)
    torch.testing.assert_close(likelihood.log_prob(x, params).exp().sum(), torch.tensor(1.0))
    sampler = network(PixelCNN, likelihood)._sampler()
    assert torch.equal(sampler.log_prob(x), sampler.log_prob(likelihood.to_values(likelihood.to_codes(x))))


# Integers


@likelihoods
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_levels(likelihood, dtype):
    codes = codes_of(likelihood)
    values = likelihood.to_values(codes)
    likelihood.check("x", codes.to(dtype))
    assert torch.equal(likelihood.to_codes(values), codes)
    assert torch.equal(likelihood.to_codes(codes.to(dtype)), codes)
    parameters = torch.randn(2, likelihood.parameter_channels(1), *SIZE)
    expected = likelihood.log_prob(values, parameters)
    assert torch.equal(likelihood.log_prob(codes.to(dtype), parameters), expected)


@likelihoods
def test_values_of_levels_are_those_that_are_drawn(likelihood):
    parameters, uniforms = torch.randn(500, likelihood.parameter_channels(1)), torch.rand(500, likelihood.columns(1))
    drawn = likelihood.draw(parameters, uniforms)
    assert torch.equal(likelihood.to_values(likelihood.to_codes(drawn)), drawn)


@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN, PixelCNNpp])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Categorical(512), LogisticMixture(1, 700)])
def test_networks_take_integers(kind, likelihood):
    net = network(kind, likelihood)
    codes = codes_of(likelihood)
    values = likelihood.to_values(codes)
    assert torch.equal(net(codes), net(values))
    assert torch.equal(net.log_prob(codes), net.log_prob(values))
    torch.testing.assert_close(net._sampler().log_prob(codes), net.log_prob(values), rtol=1e-4, atol=1e-3)
    assert torch.equal(net._sampler().parameters(codes), net._sampler().parameters(values))
    assert torch.equal(net.sample(2, SIZE, given=codes), values)


@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN, PixelCNNpp])
def test_networks_in_half_precision_read_every_level(kind):
    """The likelihood has the exact levels, whatever the layers see."""
    likelihood = Categorical(512)
    net = network(kind, likelihood, dtype=torch.bfloat16)
    codes = codes_of(likelihood)
    values = likelihood.to_values(codes)
    parameters = net(values.bfloat16())
    assert parameters.dtype == torch.bfloat16
    expected = likelihood.log_prob(codes, parameters)
    assert torch.equal(net.log_prob(codes), expected)
    assert torch.equal(net.log_prob(values), expected)
    net.log_prob(codes).sum().backward()
    assert torch.equal(net.sample(2, SIZE, given=codes), values)


def test_given_values_of_half_precision_become_levels():
    likelihood = Categorical()
    net = network(PixelCNN, likelihood)
    codes = codes_of(likelihood)
    given = likelihood.to_values(codes).bfloat16()
    given[:, :, 1] = math.nan
    images = net.sample(2, SIZE, given=given)
    assert torch.equal(images[:, :, [0, 2]], likelihood.to_values(codes)[:, :, [0, 2]])
    assert torch.equal(images, likelihood.to_values(likelihood.to_codes(images)))


@likelihoods
@pytest.mark.parametrize("offset", ["below", "above"])
def test_integers_out_of_range(likelihood, offset):
    net = network(likelihood=likelihood)
    codes = codes_of(likelihood)
    codes[1, 0, 2, 3] = wrong = -1 if offset == "below" else likelihood.levels
    words = f"must hold integers 0 to {likelihood.levels - 1}, the levels, got {wrong}"
    sampler = net._sampler()
    for call in (
        lambda: likelihood.check("x", codes),
        lambda: net(codes),
        lambda: net.log_prob(codes),
        lambda: sampler.log_prob(codes),
        lambda: sampler.parameters(codes),
        lambda: likelihood.log_prob(codes, torch.zeros(2, likelihood.parameter_channels(1), *SIZE)),
    ):
        with pytest.raises(ValueError, match="^x " + words):
            call()
    with pytest.raises(ValueError, match="^given " + words):
        sampler.sample(2, SIZE, given=codes)
    with pytest.raises(ValueError, match="^codes " + words):
        likelihood.to_values(codes)


def test_truth_values():
    """Bits for a Bernoulli likelihood; elsewhere a mask that was mistaken for an image."""
    net, bits = network(), torch.rand(2, 1, *SIZE) < 0.5
    assert torch.equal(net.log_prob(bits), net.log_prob(bits.float()))
    with pytest.raises(TypeError, match="x must hold integers 0 to 4 or values"):
        network(likelihood=Categorical(5)).log_prob(bits)


def test_likelihoods_without_levels():
    codes = torch.zeros(1, 2, 3, 3, dtype=torch.long)
    with pytest.raises(TypeError, match="x must be a floating-point tensor: GaussianPixels has no levels"):
        GaussianPrior(2, 4, 2, 3)(codes)
    with pytest.raises(TypeError, match="GaussianPixels has no levels"):
        GaussianPixels().to_codes(codes.float())
    prior = GaussianPrior(2, 4, 2, 3).eval()
    with pytest.raises(TypeError, match="given must be a floating-point tensor: GaussianPixels has no levels"):
        prior.sample(1, (3, 3), given=codes)
    assert prior.sample(1, (3, 3), given=torch.zeros(1, 2, 3, 3).bfloat16()).eq(0).all()


def test_codes_under_compile():
    torch._dynamo.reset()
    net, likelihood = network(impl="reference", likelihood=Categorical(5)), Categorical(5)
    codes = codes_of(likelihood)
    compiled = torch.compile(net.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(codes), net.log_prob(codes))
    torch.testing.assert_close(compiled(likelihood.to_values(codes)), net.log_prob(codes))


# Sizes


def test_numpy_integers_are_sizes():
    for kind in (PixelCNN, GatedPixelCNN, PixelCNNpp):
        one, two, three = np.int64(1), np.int32(2), np.uint8(3)
        likelihood = LogisticMixture(two, np.int64(16)) if kind is PixelCNNpp else Categorical(np.int64(5))
        net = kind(
            one, np.int64(6), two, three, first_kernel_size=three, context_features=np.int64(4), likelihood=likelihood
        )
        x = net.eval().sample(two, (np.int64(3), three), context=torch.zeros(2, 4))
        assert x.shape == (2, 1, 3, 3)
        assert type(net.in_channels) is type(net.likelihood.levels) is type(net.parameter_channels) is int
        net.log_prob(x, torch.zeros(2, 4))
    sampler = CausalSampler(Plain().eval(), in_channels=np.int64(1))
    generator = torch.Generator().manual_seed(1)
    images = sampler.sample(np.int64(2), np.int64(4), row_offset=np.int64(3), generator=generator)
    assert torch.equal(images, sampler.sample(2, 4, row_offset=3, generator=generator.manual_seed(1)))
    assert PixelCNN(1, 6, 2, head_channels=np.int64(4)).head.first.out_channels == 4
    x, params = torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2)
    for impl in ("reference", "cpp"):
        expected = F.logistic_mixture_log_prob(x, params, levels=3, impl=impl)
        assert torch.equal(F.logistic_mixture_log_prob(x, params, levels=np.int64(3), impl=impl), expected)


@pytest.mark.parametrize("value", [True, 2.0, "2"])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("levels", Categorical),
        ("levels", lambda v: LogisticMixture(1, v)),
        ("components", LogisticMixture),
        ("in_channels", lambda v: PixelCNN(v, 4, 2)),
        ("hidden_channels", lambda v: GatedPixelCNN(1, v, 2)),
        ("num_layers", lambda v: PixelCNNpp(1, 4, v)),
        ("kernel_size", lambda v: GatedPixelCNN(1, 4, 2, v)),
        ("first_kernel_size", lambda v: PixelCNNpp(1, 4, 2, first_kernel_size=v)),
        ("head_channels", lambda v: PixelCNN(1, 4, 2, head_channels=v)),
        ("context_features", lambda v: PixelCNN(1, 4, 2, context_features=v)),
        ("in_channels", lambda v: CausalSampler(Plain().eval(), in_channels=v)),
        ("n", lambda v: CausalSampler(Plain().eval()).sample(v, 3)),
        ("row_offset", lambda v: CausalSampler(Plain().eval()).sample(1, 3, row_offset=v)),
    ],
)
def test_other_things_are_no_sizes(name, make, value):
    with pytest.raises(TypeError, match=f"{name} must be an int"):
        make(value)


@pytest.mark.parametrize("image_size", [True, 2.5, (2, True), (2, 2.0), "44", (2, 3, 4), 0])
def test_image_sizes(image_size):
    with pytest.raises(ValueError, match=r"image_size must be \(H, W\), both >= 1"):
        CausalSampler(Plain().eval()).sample(1, image_size)
