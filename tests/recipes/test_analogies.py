"""Analogies and latent planes: what is measured, and the commands."""

import json

import pytest
import torch

from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.uses.analogies import classify_by_neighbours, correlate, measure_analogies, measure_shapes
from tests.recipes.class_support import SMALL
from tests.recipes.training_support import train

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
SIDE, CLASSES = 9, 3


def strokes(slants, labels):
    """Images of slanted strokes; the label is their thickness."""
    row, column = torch.meshgrid(*[torch.arange(SIDE) - SIDE // 2] * 2, indexing="ij")
    distance = (column - slants[:, None, None] * row).abs()
    return ((labels[:, None, None] + 1 - distance).clamp(0, 1)).flatten(1).float()


class Perfect:
    """Finds the slant of an image, and draws it with every thickness."""

    def transfer(self, x, labels):
        slants, _ = measure_shapes(x)
        return torch.stack([strokes(slants, torch.full((len(x),), label)) for label in range(CLASSES)], 1)


class Careless(Perfect):
    """Draws every image with the thickness of its source."""

    def transfer(self, x, labels):
        return x[:, None].expand(-1, CLASSES, -1)


@pytest.fixture
def images():
    torch.manual_seed(0)
    slants, labels = 0.6 * torch.rand(40) - 0.3, torch.arange(40) % CLASSES
    return strokes(slants, labels), labels, slants


def test_shapes(images):
    x, _, slants = images
    found, ink = measure_shapes(x)
    torch.testing.assert_close(ink, x.double().sum(1))
    assert torch.corrcoef(torch.stack([found, slants.double()]))[0, 1] > 0.98
    mirrored, same = measure_shapes(x.view(-1, SIDE, SIDE).flip(2).flatten(1))
    torch.testing.assert_close(mirrored, -found)
    torch.testing.assert_close(same, ink)


def test_neighbours():
    known, labels = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [20.0]]), torch.tensor([0, 1, 1, 2, 2, 0])
    found = classify_by_neighbours(torch.tensor([[0.1], [10.4], [13.0], [30.0]]), known, labels)
    # Two of three; two of three; two of three; all three differ but two.
    assert found.tolist() == [1, 2, 2, 2]
    assert classify_by_neighbours(torch.tensor([[0.1]]), known, labels, 1).tolist() == [0]
    assert classify_by_neighbours(torch.tensor([[0.1]]), known, torch.arange(6)).tolist() == [0]


def test_correlation_of_each_class():
    source = torch.randn(50).double()
    decoded = torch.stack([source, -2 * source + 1, 3 * source], 1)
    assert correlate(source, decoded) == pytest.approx(1 / 3)


def test_figures(images):
    x, labels, _ = images
    known = strokes(0.6 * torch.rand(300) - 0.3, torch.arange(300) % CLASSES), torch.arange(300) % CLASSES
    perfect = measure_analogies(Perfect(), x, labels, *known)
    assert (perfect.asked_label, perfect.classifier_error, perfect.images) == (100.0, 0.0, 40)
    assert perfect.slant > 0.98
    careless = measure_analogies(Careless(), x, labels, *known)
    assert careless.asked_label == pytest.approx(100 / CLASSES, abs=1)
    assert careless.slant == pytest.approx(1)
    assert careless.ink == pytest.approx(1)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    found = {}
    for name in ("m2", "cvae"):
        model, training, evaluation = SMALL[name]
        folder = tmp_path_factory.mktemp(name)
        found[name] = train(name, model, training(epochs=1), folder, evaluation=evaluation, finish=False).checkpoint
    return found


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["m2", "cvae"])
def test_commands(name, checkpoints, tmp_path, capsys):
    checkpoint, out = str(checkpoints[name]), tmp_path / "a.png"
    words = ["analogies", checkpoint, "-o", str(out), "--count", "4", "--images", "30", "--json", str(tmp_path / "f")]
    assert cli.main(words) == 0
    assert is_png(out)
    assert json.loads((tmp_path / "f").read_text())["images"] == 30
    assert "asked class" in capsys.readouterr().out
    words = ["manifold", checkpoint, "-o", str(out), "--scatter", str(tmp_path / "s.png"), "--size", "3"]
    assert cli.main([*words, "--label", "4", "--count", "50"]) == 0
    assert is_png(tmp_path / "s.png")
    assert cli.main(words) == 1
    assert "label must be 0 ... 9 for a model with classes, got None" in capsys.readouterr().err


def test_what_has_no_classes_or_plane(canonical, tmp_path, capsys):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    training = VAETrainConfig(epochs=1, batch_size=300)
    paths = [
        train("vae", VAEConfig(posterior, latents, (8,), width=8), training, tmp_path / posterior, images=canonical,
              finish=False).checkpoint
        for posterior, latents in (("diagonal", 2), ("triangular", 3))
    ]  # fmt: skip
    assert cli.main(["analogies", str(paths[0])]) == 1
    assert "vae has no classes to decode a style with; choose a checkpoint of m2 or cvae" in capsys.readouterr().err
    assert cli.main(["manifold", str(paths[1])]) == 1
    assert "the model must have 2 latent dimensions, got 3: train it with --latent 2" in capsys.readouterr().err
    files = ["-o", str(tmp_path / "m.png"), "--scatter", str(tmp_path / "s.png"), "--size", "2"]
    assert cli.main(["manifold", str(paths[0]), *files]) == 0
    assert is_png(tmp_path / "m.png")
    assert is_png(tmp_path / "s.png")
    assert cli.main(["manifold", str(paths[0]), *files, "--label", "1"]) == 1
    assert "label must be left out: the model has no classes, got 1" in capsys.readouterr().err
