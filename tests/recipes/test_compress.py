"""Images that are compressed come back bit for bit, at the size that the network promises, or not at all."""

import math
import sys
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from fastvae.nn.gated_pixelcnn import GatedPixelCNN
from fastvae.nn.pixelcnn import PixelCNN
from fastvae.recipes import RecipeError
from fastvae.recipes.cli import compression
from fastvae.recipes.data.static_mnist import BinaryImages
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelTrainConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN
from fastvae.recipes.uses import image_files
from fastvae.recipes.uses.compress import CRC, LAYOUT, OVERHEAD, compress_images, decompress_images, read_header
from fastvae.sampling.likelihoods import Categorical, LogisticMixture
from fastvae.sampling.sampler import CausalSampler

pytest.importorskip("constriction", reason="needs the extra compress")
WORD = 32
IMPLEMENTATIONS = ("cpp", "reference")


def network(likelihood="bernoulli", channels=1, *, kind=PixelCNN, factor=2.0, **options):
    """Weights so large that pixels depend on each other strongly."""
    torch.manual_seed(1)
    net = kind(channels, 6, 3, likelihood=likelihood, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    return net.eval()


def sampler_of(net):
    return CausalSampler(net, net.likelihood, in_channels=net.in_channels, impl=net.impl)


def bits_of(net, x, context=None):
    return -sampler_of(net).log_prob(x, context).double().sum().item() / math.log(2)


def coded_bits(data):
    assert len(data) == OVERHEAD + 4 * read_header(data).words
    return 8 * (len(data) - OVERHEAD)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("likelihood", "channels"),
    [("bernoulli", 1), ("bernoulli", 2), (Categorical(5), 1), (Categorical(4), 3)],
    ids=["bernoulli", "colored bernoulli", "categorical", "colored categorical"],
)
@pytest.mark.parametrize("n", [1, 3])
def test_round_trip(impl, likelihood, channels, n):
    net = network(likelihood, channels, impl=impl)
    x = net.sample(n, (4, 5))
    data = compress_images(net, x)
    images = decompress_images(net, data)
    assert images.dtype == x.dtype
    assert torch.equal(images, x)
    ideal = bits_of(net, x)
    assert ideal - 1 <= coded_bits(data) <= 1.01 * ideal + 2 * WORD


def test_256_levels_of_an_image_that_the_network_does_not_expect():
    net = network("categorical", impl="cpp")
    x = torch.randint(256, (1, 1, 7, 9)) / 255
    assert torch.equal(decompress_images(net, compress_images(net, x)), x)


def test_double_precision():
    net = network(dtype=torch.float64)
    x = net.sample(2, (5, 5))
    images = decompress_images(net, compress_images(net, x))
    assert images.dtype == torch.float64
    assert torch.equal(images, x)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_context_of_each_image(impl):
    net = network(kind=GatedPixelCNN, context_features=3, impl=impl)
    context = torch.randn(3, 3)
    x = net.sample(3, (5, 6), context=context)
    data = compress_images(net, x, context)
    assert torch.equal(decompress_images(net, data, context), x)
    for other in (context + 1, context[:1], None):
        with pytest.raises(RecipeError, match="made with another context"):
            decompress_images(net, data, other)
    with pytest.raises(ValueError, match="context must belong to 1 or 3 images"):
        compress_images(net, x, context[:2])


def test_one_context_for_all_images():
    net = network(kind=GatedPixelCNN, context_features=3)
    context = torch.randn(1, 3)
    x = net.sample(2, (5, 6), context=context)
    assert torch.equal(decompress_images(net, compress_images(net, x, context), context), x)


def test_many_images_take_the_bits_that_the_network_gives_them():
    net = network(factor=1.5, impl="cpp")
    x = net.sample(60, (12, 12))
    ideal, coded = bits_of(net, x), coded_bits(compress_images(net, x))
    assert ideal > 50 * WORD
    assert coded == pytest.approx(ideal, rel=0.01, abs=2 * WORD)
    # Of its own files the network makes larger ones than of others.
    assert coded < coded_bits(compress_images(net, torch.bernoulli(torch.full_like(x, 0.5))))


def test_nothing_but_a_header_for_no_images():
    net = network()
    data = compress_images(net, torch.zeros(0, 1, 4, 4))
    assert len(data) == OVERHEAD
    assert decompress_images(net, data).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("likelihood", ["bernoulli", Categorical(3)])
def test_decoding_runs_the_sampler_once_for_each_wrong_guess(likelihood, monkeypatch):
    net = network(likelihood, impl="cpp")
    x = net.sample(1, (8, 8))
    parameters = sampler_of(net).parameters(x)
    guess = (parameters > 0).float() if likelihood == "bernoulli" else parameters.argmax(1, keepdim=True) / 2
    wrong = (guess != x).flatten()
    data = compress_images(net, x)
    calls = []
    plain = CausalSampler.sample_with_parameters

    def count(self, *args, **kwargs):
        calls.append(args)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(CausalSampler, "sample_with_parameters", count)
    assert torch.equal(decompress_images(net, data), x)
    assert 0 < wrong.sum() < wrong.numel()
    assert len(calls) == 1 + wrong[:-1].sum()


def test_default_generator_is_left_alone():
    net = network()
    data = compress_images(net, torch.ones(1, 1, 4, 4))
    before = torch.get_rng_state()
    decompress_images(net, data)
    assert torch.equal(torch.get_rng_state(), before)


# Refusals


@pytest.fixture
def file():
    net = network(impl="reference")
    return net, compress_images(net, torch.bernoulli(torch.full((1, 1, 4, 5), 0.5)))


def rewrite(data, **fields):
    content = LAYOUT.pack(*read_header(data)._replace(**fields)) + data[LAYOUT.size : -CRC.size]
    return content + CRC.pack(zlib.crc32(content))


def test_other_weights_are_refused(file):
    net, data = file
    with torch.no_grad():
        net.first.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(RecipeError, match="made with other weights"):
        decompress_images(net, data)


def test_every_truncation_is_refused(file):
    net, data = file
    for length in range(1, len(data)):
        with pytest.raises(RecipeError, match="is truncated"):
            decompress_images(net, data[:length])


def test_every_damaged_byte_is_refused(file):
    net, data = file
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1
        with pytest.raises(RecipeError, match=r"no compressed file|format version 1, got|is truncated|is damaged"):
            decompress_images(net, bytes(damaged))
    with pytest.raises(RecipeError, match="is damaged"):
        decompress_images(net, data + b"\0")


@pytest.mark.parametrize("data", [b"", b"PK\3\4 and so on", b"FVPY"])
def test_other_files_are_refused(data, file):
    with pytest.raises(RecipeError, match="this is no compressed file"):
        decompress_images(file[0], data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"impl": 0}, "made with the implementation cpp, the network's is reference"),
        ({"impl": 9}, r"made with the implementation unknown \(9\)"),
        ({"likelihood": 1}, "made with the likelihood Categorical, the network's is Bernoulli"),
        ({"levels": 5}, "holds images of 5 levels, the network's have 2"),
        ({"channels": 3}, "holds images of 3 channels, the network's have 1"),
    ],
)
def test_other_origin_is_refused(fields, message, file):
    net, data = file
    with pytest.raises(RecipeError, match=message):
        decompress_images(net, rewrite(data, **fields))


@pytest.mark.parametrize("offset", [0.1, 3.0, -3.0])
def test_other_numbers_never_give_other_images(offset, file, monkeypatch):
    net, data = file
    plain = CausalSampler.sample_with_parameters

    def shift(self, *args, **kwargs):
        images, parameters = plain(self, *args, **kwargs)
        return images, parameters + offset

    monkeypatch.setattr(CausalSampler, "sample_with_parameters", shift)
    with pytest.raises(RecipeError, match="differ from those of the encoder"):
        decompress_images(net, data)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(1, 1, 4, 4, dtype=torch.uint8), TypeError, "x must be a floating-point tensor, got torch.uint8"),
        (np.ones((1, 1, 4, 4)), TypeError, "x must be a floating-point tensor, got ndarray"),
        (torch.ones(1, 4, 4), ValueError, r"x must have shape \(N, 1, H, W\), got \(1, 4, 4\)"),
        (torch.ones(1, 2, 4, 4), ValueError, r"x must have shape \(N, 1, H, W\), got \(1, 2, 4, 4\)"),
        (torch.full((1, 1, 4, 4), 0.5), ValueError, "x must be 0 or 1"),
        (torch.full((1, 1, 4, 4), torch.nan), ValueError, "x must have no NaN"),
    ],
)
def test_bad_images(x, error, message):
    with pytest.raises(error, match=message):
        compress_images(network(), x)


def test_bad_networks():
    x = torch.ones(1, 1, 4, 4)
    with pytest.raises(TypeError, match=r"network must be a PixelNetwork .* got Conv2d"):
        compress_images(torch.nn.Conv2d(1, 1, 1), x)
    with pytest.raises(ValueError, match="Bernoulli or categorical likelihood to compress, got LogisticMixture"):
        compress_images(network(LogisticMixture(2)), x)
    with pytest.raises(ValueError, match="less than 65536 levels"):
        compress_images(network(Categorical(65536)), x)
    with pytest.raises(ValueError, match="network must give finite parameters"):
        compress_images(network(factor=1e30), x)
    with pytest.raises(ValueError, match="network must be on a CPU"):
        compress_images(network().to("meta"), x)


def test_missing_coder_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(RecipeError, match=r'needs constriction: pip install "fastvae-kernels\[compress\]"'):
        compress_images(network(), torch.ones(1, 1, 4, 4))


# The commands


def command(*arguments):
    name, *words = map(str, arguments)
    {"compress": compression.compress, "decompress": compression.decompress}[name](words)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = PixelCNNConfig(layers=2, filter_size=3, maps=4)
    weights = {f"averaged.{name}": value for name, value in BinaryPixelCNN(config).state_dict().items()}
    plain = {"recipe": "pixelcnn", "model": config.as_dict(), "training": asdict(PixelTrainConfig())}
    path = tmp_path / "last.ckpt"
    torch.save({"hyper_parameters": plain, "state_dict": weights}, path)
    return path


def test_commands_take_an_implementation(checkpoint, tmp_path):
    picture = draw_picture(tmp_path / "one.png", np.zeros((5, 5), np.uint8))
    command("compress", picture, "--checkpoint", checkpoint, "--impl", "reference", "-o", tmp_path / "one")
    decompressing = ("decompress", tmp_path / "one", "--checkpoint", checkpoint, "-o", tmp_path / "back.png")
    with pytest.raises(RecipeError, match="one: the compressed file was made with the implementation reference"):
        command(*decompressing, "--impl", "cpp")
    command(*decompressing, "--impl", "reference")
    assert (tmp_path / "back.png").read_bytes()


def draw_picture(path, shades, mode="L"):
    Image.fromarray(shades).convert(mode).save(path)
    return path


def test_commands_bring_a_picture_back(checkpoint, tmp_path, capsys):
    shades = np.zeros((12, 9), np.uint8)
    shades[2:10, 4:6] = 255
    picture = draw_picture(tmp_path / "one.png", shades, "1")
    command("compress", picture, "--checkpoint", checkpoint, "-o", tmp_path / "one.fvpx")
    said = capsys.readouterr().out.splitlines()
    size = (tmp_path / "one.fvpx").stat().st_size
    assert said[0] == f"1 of (1, 12, 9) in {size} bytes, of which {OVERHEAD} describe and check the file"
    coded, ideal = (float(line.split()[-6]) for line in said[1:])
    assert coded == pytest.approx(ideal, rel=0.01, abs=2 * WORD)
    command("decompress", tmp_path / "one.fvpx", "--checkpoint", checkpoint, "-o", tmp_path / "back.png")
    assert capsys.readouterr().out == f"{tmp_path / 'back.png'}\n"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), shades)


def test_commands_take_numbers_of_test_images(checkpoint, tmp_path, monkeypatch):
    images = np.random.RandomState(0).choice(np.array([0, 255], np.uint8), (3, 8, 8), p=[0.95, 0.05])
    monkeypatch.setattr(image_files, "load_static_mnist", lambda: BinaryImages(*[images] * 3, source=""))
    command("compress", 2, 0, "--checkpoint", checkpoint, "-o", tmp_path / "two")
    command("decompress", tmp_path / "two", "--checkpoint", checkpoint, "-o", tmp_path / "back.png")
    for name, index in (("back-0.png", 2), ("back-1.png", 0)):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), images[index])
    with pytest.raises(RecipeError, match="number of a test image must be below 3, got 3"):
        command("compress", 3, "--checkpoint", checkpoint, "-o", tmp_path / "three")


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (4, 1), (256, 1), (256, 3), (52, 3)])
def test_pictures_hold_every_level(levels, channels, tmp_path):
    level = torch.arange(levels * channels).reshape(1, levels, 1, channels).permute(0, 3, 1, 2) % levels
    images = level / (levels - 1)
    (path,) = image_files.write_images(images, levels, tmp_path / "image.png")
    assert torch.equal(image_files.read_images([str(path)], levels), images)


def test_bad_pictures(checkpoint, tmp_path):
    def read_error(*sources):
        with pytest.raises(RecipeError) as error:
            image_files.read_images([str(source) for source in sources], 2)
        return str(error.value)

    grey = draw_picture(tmp_path / "grey.png", np.full((4, 4), 100, np.uint8))
    small = draw_picture(tmp_path / "small.png", np.zeros((4, 4), np.uint8))
    large = draw_picture(tmp_path / "large.png", np.zeros((4, 6), np.uint8))
    with_alpha = draw_picture(tmp_path / "alpha.png", np.zeros((4, 4, 4), np.uint8), "RGBA")
    assert "grey.png must have values of 0 and 255 only" in read_error(grey)
    assert "large.png has (4, 6) with 1" in read_error(small, large)
    assert "got mode RGBA" in read_error(with_alpha)
    assert "there is no image" in read_error(tmp_path / "absent.png")
    assert "cannot be read as an image" in read_error(checkpoint)
    with pytest.raises(RecipeError, match="a PNG must have 1 or 3 channels of up to 256 levels, got 2 channels of 2"):
        image_files.write_images(torch.zeros(1, 2, 4, 4), 2, tmp_path / "out.png")
    with pytest.raises(RecipeError, match="cannot be written"):
        image_files.write_images(torch.zeros(1, 1, 4, 4), 2, tmp_path / "absent" / "out.png")


def test_bad_files_are_named(checkpoint, tmp_path):
    (tmp_path / "other").write_bytes(b"something else")
    for source, message in (
        ("absent", "absent cannot be read: No such file"),
        ("other", "other: this is no compressed file"),
    ):
        with pytest.raises(RecipeError, match=message):
            command("decompress", tmp_path / source, "--checkpoint", checkpoint, "-o", tmp_path / "out.png")
    with pytest.raises(RecipeError, match="there is no checkpoint"):
        command("compress", 0, "--checkpoint", tmp_path / "absent.ckpt", "-o", tmp_path / "out")
    picture = draw_picture(tmp_path / "white.png", np.full((4, 4), 255, np.uint8))
    with pytest.raises(RecipeError, match="cannot be written: No such file"):
        command("compress", picture, "--checkpoint", checkpoint, "-o", tmp_path / "absent" / "out")
