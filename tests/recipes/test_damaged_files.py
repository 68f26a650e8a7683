"""Compressed files that are damaged or lie give an error of one line, early, or the image; sound ones are decoded."""

import math
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.nn.gated_pixelcnn import GatedPixelCNN
from fastvae.nn.pixelcnn import PixelCNN
from fastvae.recipes import RecipeError
from fastvae.recipes.uses.compress import OVERHEAD, _reach, _window, compress_images, decompress_images
from fastvae.recipes.uses.compressed_file import least_bits, read_file, read_header
from fastvae.sampling.likelihoods import Categorical
from fastvae.sampling.sampler import CausalSampler
from tests.recipes.damaged_files import damage, example, outcome, rewrite

constriction = pytest.importorskip("constriction", reason="needs the extra compress")


@pytest.fixture
def runs(monkeypatch):
    """The windows of the sampler's runs."""
    found = []
    plain = CausalSampler.sample_with_parameters

    def count(self, n, image_size, **kwargs):
        found.append(image_size)
        return plain(self, n, image_size, **kwargs)

    monkeypatch.setattr(CausalSampler, "sample_with_parameters", count)
    return found


def sure(likelihood="bernoulli", logit=60.0, **options):
    """A network that expects level 0 everywhere, as surely as the coder can say it."""
    network = PixelCNN(1, 2, 2, likelihood=likelihood, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        last = list(network.parameters())[-1]
        last[0] = -logit if likelihood == "bernoulli" else logit
    return network


def test_damaged_files():
    network, x, data = example()
    assert outcome(network, x, data) == "image"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance = random.Random(3)
    found = {outcome(network, x, damage(data, chance)) for _ in range(120)}
    assert found <= {"image", "error"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize(
    "claim",
    [{"height": 65535, "width": 65535}, {"images": 2**32 - 1}, {"images": 2**32 - 1, "height": 65535, "width": 65535}],
)
def test_more_numbers_than_words_hold_are_refused_before_decoding(claim, runs):
    network, _, data = example()
    with pytest.raises(RecipeError, match=r"says that it holds \d+ numbers, and its \d words hold at most \d+"):
        decompress_images(network, rewrite(data, **claim))
    assert not runs


@pytest.mark.parametrize("claim", [{"height": 0}, {"width": 0}, {"levels": 1}, {"levels": 0}])
def test_sizes_that_no_image_has(claim):
    _, _, data = example()
    with pytest.raises(RecipeError, match="every size is at least 1"):
        read_header(rewrite(data, **claim))


@pytest.mark.parametrize(
    "claim", [{"height": 300, "width": 300}, {"height": 1, "width": 65535}, {"height": 65535}, {"images": 100_000}]
)
def test_decoding_ends_with_the_bits(claim, runs):
    network, _, data = example()
    with pytest.raises(RecipeError, match="does not decode with this network"):
        decompress_images(network, rewrite(data, **claim))
    bits = 8 * (len(data) - OVERHEAD)
    # A wrong guess takes a bit or nearly so, and no window goes far beyond what the bits can decode.
    assert len(runs) <= 2 * bits
    assert max(math.prod(window) for window in runs) < 4096


@pytest.mark.parametrize("likelihood", ["bernoulli", Categorical(256)], ids=["2 levels", "256 levels"])
def test_images_of_next_to_no_bits(likelihood):
    network = sure(likelihood, impl="cpp")
    x = torch.zeros(1, 1, 200, 300)
    data = compress_images(network, x)
    assert len(data) == OVERHEAD + 4
    assert torch.equal(decompress_images(network, data), x)


def test_images_that_the_network_holds_impossible():
    network = sure(impl="cpp")
    x = torch.ones(1, 1, 5, 5)
    data = compress_images(network, x)
    # Each number takes the 24 bits of the least probability.
    assert len(data) - OVERHEAD <= 4 * (25 * 24 // 32 + 2)
    assert torch.equal(decompress_images(network, data), x)


@pytest.mark.parametrize("levels", [2, 3, 256, 65535])
def test_numbers_take_at_least_these_bits(levels):
    stream = constriction.stream
    count = int(3.2 * 32 / least_bits(levels)) if levels > 256 else 20_000
    weights = np.zeros((1, levels))
    weights[0, 0] = 1.0
    encoder = stream.queue.RangeEncoder()
    model = stream.model.Categorical(perfect=False)
    table = np.repeat(weights, 100, 0)
    for _ in range(count // 100):
        encoder.encode(np.zeros(100, np.int32), model, table)
    assert 32 * len(encoder.get_compressed()) >= count // 100 * 100 * least_bits(levels)


@pytest.mark.parametrize("impl", ["cpp", "reference"])
@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN])
def test_windows_have_the_parameters_of_the_image(kind, impl):
    network = kind(1, 6, 3, impl=impl).eval()
    sampler = CausalSampler(network, network.likelihood, impl=impl)
    # Biases make numbers of pixels that no layer reads.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    x = torch.bernoulli(torch.full((1, 1, 5, 60), 0.5))
    whole = sampler.parameters(x)
    for pixels in (1, 5, 30, 60, 61, 200, 300):
        height, width = _window(pixels, 5, 60, _reach(network))
        window = sampler.parameters(x[..., :height, :width]).flatten()[:pixels]
        assert torch.equal(window, whole.flatten()[:pixels])


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (20, 30)])
@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN])
def test_images_of_many_windows(size, kind):
    network = kind(1 + (kind is PixelCNN), 6, 3, impl="cpp").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    x = network.sample(1, size)
    assert torch.equal(decompress_images(network, compress_images(network, x)), x)


def test_only_the_header_of_other_files_is_read(tmp_path):
    with pytest.raises(RecipeError, match="/dev/zero: this is no compressed file"):
        read_file(Path("/dev/zero"))
    _, _, data = example()
    path = tmp_path / "file"
    path.write_bytes(data)
    assert read_file(path) == data
    path.write_bytes(data + bytes(1000))
    assert read_file(path) == data + b"\0"
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
