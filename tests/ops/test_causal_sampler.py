"""Cached sampling against the whole network run for every pixel: the same images, from the same parameters."""

import itertools
import math

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from fastvae.nn import GatedPixelCNN
from fastvae.sampling import Categorical, CausalSampler, LogisticMixture
from tests.support.causal_networks import Colored, Gated, make_masked
from tests.support.causal_stacks import SIZE, Case, Stack, make_generator, scale_weights, stacks

IMPLEMENTATIONS = ("reference", "cpp")
STACKS = stacks()


def colors_of(name, stack):
    return (
        tuple(range(stack.channels)) if name.startswith("colored ") and "mixture" not in name else (0,) * stack.channels
    )


def close(got, expected, ulps=64):
    eps = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(got, expected, rtol=ulps * eps, atol=ulps * eps * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("n", [1, 3, 17])
@pytest.mark.parametrize("name", STACKS)
def test_caches_change_nothing(name, n, impl):
    case = Case(STACKS[name], n)
    images, parameters = case.sample(impl)
    expected, expected_parameters = case.naive(colors_of(name, STACKS[name]))
    close(images, expected)
    close(parameters, expected_parameters)
    # What was drawn is varied enough for a wrong neighbour to show.
    assert images.std() > 0.1


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STACKS)
def test_parameters_are_those_that_were_drawn_from(name, dtype, impl):
    """Bit for bit, in batches of any size: what an entropy coder needs."""
    case = Case(STACKS[name], 5, dtype=dtype)
    images, parameters = case.sample(impl)
    sampler = case.sampler(impl)
    again = sampler.parameters(images, case.context)
    close(again, case.forward(images))
    if impl == "cpp":
        assert torch.equal(again, parameters)
        for first, count in ((0, 1), (1, 3), (4, 1)):
            context = None if case.context is None else case.context[first : first + count]
            part = sampler.parameters(images[first : first + count], context)
            close(part, parameters[first : first + count])
            # PyTorch's layers, which make something of a context, round as the batch's size will have it.
            assert case.context is not None or torch.equal(part, parameters[first : first + count])
    else:
        close(again, parameters)
    expected = sampler.likelihood.log_prob(images, case.forward(images))
    torch.testing.assert_close(sampler.log_prob(images, case.context), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
@pytest.mark.parametrize("name", ["PixelCNN", "GatedPixelCNN"])
@pytest.mark.parametrize("n", [1, 5])
def test_parallel_forward_has_the_same_bits(name, likelihood, n):
    """With our layers in C++ the network itself gives what the sampler used."""
    from fastvae.nn import gated_pixelcnn, pixelcnn

    kind = getattr(pixelcnn if name == "PixelCNN" else gated_pixelcnn, name)
    network = scale_weights(kind(1, 6, 3, likelihood=likelihood, impl="cpp"))
    images, parameters = CausalSampler(network, likelihood, impl="cpp").sample_with_parameters(n, SIZE)
    assert torch.equal(network(images), parameters)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kept", ["none", "all", "prefix", "suffix", "random", "some channels"])
@pytest.mark.parametrize("name", ["gated vector", "shifted", "colored contiguous", "categorical", "colored mixture"])
def test_inpainting(name, kept, impl):
    case = Case(STACKS[name], 3)
    whole, _ = case.sample("reference")
    mask = torch.zeros_like(whole, dtype=torch.bool)
    if kept == "all":
        mask[:] = True
    elif kept == "prefix":
        mask[:, :, :3] = True
    elif kept == "suffix":
        mask[:, :, 3:, 2:] = True
    elif kept == "random":
        mask = torch.rand(whole.shape[0], 1, *SIZE).expand_as(whole) < 0.5
    elif kept == "some channels":
        shape = whole.shape if STACKS[name].likelihood in ("bernoulli", "categorical") else (3, 1, *SIZE)
        mask = (torch.rand(shape) < 0.5).expand_as(whole)
    # Of another image, so that what is given is not what would be drawn.
    given = torch.where(mask, whole.flip(0, 2), math.nan)
    before = given.clone()
    images, parameters = case.sample(impl, given=given)
    expected, expected_parameters = case.naive(colors_of(name, STACKS[name]), given)
    close(images, expected)
    close(parameters, expected_parameters)
    assert torch.equal(images[mask], given[mask])
    torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)
    if kept == "none":
        close(images, whole)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("name", ["gated", "colored categorical", "mixture", "colored mixture"])
def test_temperature(name, temperature, impl):
    case = Case(STACKS[name], 4)
    images, _ = case.sample(impl, temperature=temperature)
    expected, _ = case.naive(colors_of(name, STACKS[name]), temperature=temperature)
    close(images, expected)
    assert not torch.equal(images, case.sample(impl)[0])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_low_temperature_takes_the_likeliest(impl):
    case = Case(STACKS["categorical"], 2)
    images, parameters = case.sample(impl, temperature=1e-4)
    likeliest = parameters.argmax(1, keepdim=True).double() / 255
    close(images, likeliest)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_seeds_shards_and_generators(impl):
    case = Case(STACKS["gated"], 7)
    sampler = case.sampler(impl)
    whole = sampler.sample(7, SIZE, generator=make_generator())
    parts = [
        sampler.sample(n, SIZE, generator=make_generator(), row_offset=start) for start, n in ((0, 3), (3, 1), (4, 3))
    ]
    assert torch.equal(torch.cat(parts), whole)
    generator = make_generator()
    first, second = sampler.sample(7, SIZE, generator=generator), sampler.sample(7, SIZE, generator=generator)
    assert torch.equal(first, whole)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["gated", "colored contiguous"])
def test_threads_share_the_work(name):
    """How many images a thread draws side by side does not show in their bits."""
    case, before, results = Case(STACKS[name], 29), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(case.sample("cpp"))
    finally:
        torch.set_num_threads(before)
    for images, parameters in results[1:]:
        assert torch.equal(images, results[0][0])
        assert torch.equal(parameters, results[0][1])


def test_threads_share_the_rows_of_one_image():
    torch.manual_seed(2)
    sampler = CausalSampler(GatedPixelCNN(1, 40, 2).eval(), "bernoulli", impl="cpp")
    before, drawn, parameters = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 3, 9):
            torch.set_num_threads(threads)
            image = sampler.sample(1, (5, 31), generator=make_generator())
            drawn.append(image)
            parameters.append(sampler.parameters(image))
    finally:
        torch.set_num_threads(before)
    assert drawn[0].std() > 0.1
    for found in (drawn, parameters):
        assert all(torch.equal(one, found[0]) for one in found)


def test_implementations_draw_the_same_images():
    for name in STACKS:
        case = Case(STACKS[name], 4, dtype=torch.float32)
        close(case.sample("cpp")[0], case.sample("reference")[0])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("name", ["plain", "gated", "shifted", "joint channels"])
def test_images_smaller_than_kernels(name, size, impl):
    case = Case(STACKS[name], 2, size)
    images, parameters = case.sample(impl)
    expected, expected_parameters = case.naive(colors_of(name, STACKS[name]))
    close(images, expected)
    close(parameters, expected_parameters)
    assert torch.equal(case.sampler(impl).sample(2, size, generator=make_generator()), images)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_images(impl):
    images, parameters = Case(STACKS["gated"], 0).sample(impl)
    assert images.shape == (0, 1, *SIZE)
    assert parameters.shape == (0, 1, *SIZE)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_weights_are_read_at_each_call(impl):
    case = Case(STACKS["plain"], 2)
    sampler = case.sampler(impl)
    before = sampler.sample(2, SIZE, generator=make_generator())
    with torch.no_grad():
        case.network.last[1].bias += 20
    assert sampler.sample(2, SIZE, generator=make_generator()).all()
    assert not before.all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype, impl):
    case = Case(STACKS["gated vector"], 3, dtype=dtype)
    images, parameters = case.sample(impl)
    assert images.dtype == parameters.dtype == torch.float32
    constant = case.network.vector(case.context).float()
    single = case.network.float()
    single.vector = nn.Identity()
    expected = CausalSampler(single, impl="reference").sample(3, SIZE, context=constant, generator=make_generator())
    assert torch.equal(images, expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_masked_weights_may_be_nan(impl):
    case = Case(STACKS["colored contiguous"], 2)
    expected, _ = case.sample(impl)
    with torch.no_grad():
        for module in case.network.modules():
            if hasattr(module, "mask_type"):
                module.weight[~module.mask()] = math.nan
    assert torch.equal(case.sample(impl)[0], expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_context_of_one_image_serves_all(impl):
    case = Case(STACKS["gated vector"], 3)
    sampler = case.sampler(impl)
    one = case.context[:1]
    images = sampler.sample(3, SIZE, context=one, generator=make_generator())
    assert torch.equal(images, sampler.sample(3, SIZE, context=one.expand(3, -1), generator=make_generator()))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("channels", [1, 2])
def test_distribution_of_a_tiny_model(channels, impl):
    """All images of 2 x 2 pixels are counted, chi-square against their probabilities."""
    network = scale_weights(Gated(outputs=1) if channels == 1 else Colored(2), 3.0).double()
    size = (2, 2) if channels == 1 else (2, 1)
    sampler = CausalSampler(network, in_channels=channels, impl=impl)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4)), dtype=torch.float64).view(16, channels, *size)
    probabilities = sampler.log_prob(every).exp()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64))
    n = 20_000
    codes = (
        sampler.sample(n, size, generator=make_generator()).view(n, 4) @ torch.tensor([8.0, 4, 2, 1]).double()
    ).long()
    expected = n * probabilities
    statistic = ((torch.bincount(codes, minlength=16) - expected).square() / expected).sum()
    # 15 degrees of freedom: exceeded by one seed in 10^5.
    assert statistic < 50


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_distribution_of_the_heads(impl):
    """One pixel, whose parameters are biases: levels are counted."""

    class Constant(nn.Module):
        def __init__(self, values):
            super().__init__()
            self.layer = make_masked(1, len(values), 1, "A")
            with torch.no_grad():
                self.layer.bias.copy_(values)

        def forward(self, x):
            return self.layer(x)

    n = 20_000
    every = torch.arange(6.0).view(6, 1, 1, 1)
    mixture = torch.tensor([0.5, -0.5, -0.4, 0.7, -1.5, -0.7])
    for likelihood, values, images in (
        (Categorical(6), torch.randn(6), every / 5),
        (LogisticMixture(2, 6), mixture, every * 2 / 5 - 1),
    ):
        sampler = CausalSampler(Constant(values), likelihood, impl=impl)
        expected = n * sampler.log_prob(images).exp()
        torch.testing.assert_close(expected.sum(), torch.tensor(float(n)), rtol=1e-5, atol=0)
        got = sampler.sample(n, 1, generator=make_generator()).flatten()
        low, high = float(images.min()), float(images.max())
        counts = torch.bincount(((got - low) / (high - low) * 5).round().long(), minlength=6)
        assert ((counts - expected).square() / expected).sum() < 30


# Any stack


@st.composite
def random_stacks(draw):
    """Layers of random kernels on two streams, joined at random."""
    width = draw(st.integers(1, 3))
    kernels = st.tuples(st.integers(1, 3), st.integers(1, 4))
    layers = []
    for depth in range(draw(st.integers(1, 3))):
        kernel = draw(kernels)
        origin = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
        layers.append(
            {
                "vertical": draw(st.booleans()),
                "kernel": kernel,
                "origin": origin,
                "dilation": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
                "join": draw(st.sampled_from(["none", "add", "cat", "mul", "gate"])) if depth else "none",
                "activation": draw(st.sampled_from([None, "relu", "elu", "tanh", "softplus", "gelu", "silu"])),
            }
        )
    return width, layers


class Random(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.spec, self.layers, self.joins = layers, nn.ModuleList(), nn.ModuleList()
        # Until a first layer stands before the stream, it may not see the pixel itself or its row.
        for depth, layer in enumerate(layers):
            for stream in ("vertical", "horizontal"):
                types = ("vertical_A", "vertical_B") if stream == "vertical" else ("A", "B")
                self.layers.append(
                    make_masked(
                        width if depth else 1, width, layer["kernel"], types[depth > 0], origin=layer["origin"],
                        dilation=layer["dilation"], activation=layer["activation"],
                    )
                )  # fmt: skip
            self.joins.append(make_masked(width, 2 * width, 1, "B"))
        self.last = nn.Conv2d(2 * width, 1, 1)

    def forward(self, x):
        v = h = x
        for depth, layer in enumerate(self.spec):
            v, h = self.layers[2 * depth](v), self.layers[2 * depth + 1](h)
            if layer["join"] == "add":
                h = h + v
            elif layer["join"] == "mul":
                h = h * v - 0.5
            elif layer["join"] == "cat":
                h = torch.cat([v, h], 1)[:, : h_channels(self.layers[2 * depth])]
            elif layer["join"] == "gate":
                a, b = self.joins[depth](h).chunk(2, 1)
                h = a * torch.sigmoid(b) + v
        return self.last(torch.cat([v, h], 1))


def h_channels(layer):
    return layer.out_channels


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=25)
@drawn(spec=random_stacks(), n=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5))
def test_any_stack(impl, spec, n, height, width):
    torch.manual_seed(0)
    case = Case(Stack(lambda: Random(*spec)), n, (height, width))
    images, parameters = case.sample(impl)
    expected, expected_parameters = case.naive((0,))
    close(images, expected)
    close(parameters, expected_parameters)
    close(case.sampler(impl).parameters(images), parameters)
