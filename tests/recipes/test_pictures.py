"""The pictures: written, not blank, and every image in its place."""

import math
from typing import get_args, get_type_hints

import pytest
import torch
from matplotlib.image import imread

from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.units import Units
from fastvae.recipes.pictures import curves
from fastvae.recipes.pictures.curves import draw_learning_curves
from fastvae.recipes.pictures.divergences import draw_kl_terms, draw_units
from fastvae.recipes.pictures.grids import draw_reconstructions, draw_samples, tile
from fastvae.recipes.pictures.importance import bounds_by_samples, draw_bounds_by_samples
from fastvae.recipes.pictures.latents import draw_manifold
from fastvae.recipes.systems.catalogue import CATALOGUE
from fastvae.recipes.systems.iwae.config import IWAEConfig
from fastvae.recipes.systems.iwae.model import IWAE
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.vae.config import POSTERIORS, VAEConfig
from fastvae.recipes.systems.vae.model import VAE


@pytest.fixture
def models():
    return {name: VAE(VAEConfig(name, 3, (16,))) for name in POSTERIORS}


def assert_picture(path):
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 200
    assert (pixels[0] == 1).all()
    ink = (pixels < 0.9).any(-1)
    assert 0.01 < ink.mean() < 0.9


def test_tile_puts_images_row_by_row():
    images = torch.arange(6.0)[:, None].expand(6, 16)
    picture = tile(images, 2, 3, gap=1)
    assert picture.shape == (9, 14)
    assert picture[::5, ::5].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (picture[4] == 0).all()
    assert (picture[:4, 4] == 0).all()


def test_tile_without_a_gap():
    picture = tile(torch.arange(8.0).reshape(2, 4), 1, 2, gap=0)
    assert picture.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def test_samples(models, tmp_path):
    draw_samples(models, tmp_path / "samples.png")
    assert_picture(tmp_path / "samples.png")


def test_reconstructions(models, tiny, tmp_path):
    draw_reconstructions(models, binarize_fixed(tiny.x_test)[:12], tmp_path / "reconstructions.png")
    assert_picture(tmp_path / "reconstructions.png")


def test_manifold(tmp_path, monkeypatch):
    model, seen = VAE(VAEConfig(latent_features=2, hidden_features=(16,))), []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(z) or decode(z))
    draw_manifold(model, tmp_path / "manifold.png", size=5)
    assert_picture(tmp_path / "manifold.png")
    z = seen[0].reshape(5, 5, 2)
    # z1 grows to the right and z2 upwards, both at the quantiles of the prior.
    quantiles = torch.special.ndtr(z)
    wanted = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    torch.testing.assert_close(quantiles[..., 0], wanted.expand(5, 5))
    torch.testing.assert_close(quantiles[..., 1], wanted.flip(0)[:, None].expand(5, 5))


def test_manifold_needs_a_plane(models, tmp_path):
    with pytest.raises(ValueError, match="model must have 2 latent features, got 3"):
        draw_manifold(models["diagonal"], tmp_path / "manifold.png")


@pytest.mark.parametrize(("data", "title"), [("digits", "Digits of scikit-learn"), ("emoji", "emoji")])
def test_title_of_learning_curves_says_the_data(data, title, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure))
    history = {"train_error": [(9, 3.0)], "valid_error": [(9, 4.0)]}
    named = {"quantity": "error", "measured": "valid", "data": data}
    draw_learning_curves({"any": history}, 10, tmp_path / "curves.png", **named)
    assert drawn[0].axes[0].get_title() == f"{title}: errors of classification"


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_data_has_a_title(name):
    training = getattr(find_system(name).settings(), "training", None)
    choices = get_args(get_type_hints(type(training)).get("data"))
    assert set(choices) <= curves.DATA.keys()


@pytest.mark.parametrize("epochs", [1, 12])
def test_learning_curves(epochs, tmp_path):
    history = {
        "train_elbo": [(10 * epoch + 9, -152.0 + epoch) for epoch in range(epochs)],
        "test_elbo": [(10 * epoch + 9, -150.0 + epoch) for epoch in range(epochs)],
    }
    path = tmp_path / "learning_curves.png"
    draw_learning_curves({"diagonal": history, "triangular": history}, 10, path)
    assert_picture(path)


@pytest.mark.parametrize("last", [0.0, 80.0])
def test_every_line_of_a_legend_can_be_seen(last, tmp_path, monkeypatch):
    """Errors in training are far below those of test images, or far above."""
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure))
    history = {"train_error": [(9, 90.0), (19, last), (29, last)], "test_error": [(9, 30.0), (19, 25.0), (29, 23.0)]}
    draw_learning_curves({"any": history}, 10, tmp_path / "curves.png", quantity="error")
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert len(axes.get_legend().get_texts()) == 2
    for line in axes.get_lines():
        assert sum(low < value < high for value in line.get_ydata()) >= 2


@pytest.mark.parametrize(("sizes", "epochs"), [((3,), 1), ((120, 8, 2), 5), ((20, 7) * 15, 5)])
def test_divergences(sizes, epochs, tmp_path):
    rows = tuple(tuple(1.0 / (1 + unit) for unit in range(size)) for size in sizes)
    variances = tuple(tuple(float(unit % 2) for unit in range(size)) for size in sizes)
    active = tuple(size // 2 for size in sizes)
    draw_units(Units(sizes, active, rows, rows, variances), tmp_path / "units.png", layer="glimpse")
    names = ["test_kl"] if len(sizes) == 1 else [f"test_kl{i}" for i in range(1, len(sizes) + 1)]
    terms = {
        name: [(10 * epoch + 9, 10.0 ** -(i % 4) * (epoch + 1)) for epoch in range(epochs)]
        for i, name in enumerate(names)
    }
    draw_kl_terms(terms, 10, tmp_path / "kl_terms.png", layer="glimpse")
    for name in ("units", "kl_terms"):
        assert_picture(tmp_path / f"{name}.png")


def test_bounds_by_samples(tmp_path):
    """Of weights whose mean is known, and by hand of four."""
    log_w = torch.tensor([[0.0], [1.0], [-1.0], [0.5]], dtype=torch.float64)
    found = {size: bound.item() for size, bound in bounds_by_samples(log_w).items()}
    pairs = [math.log(0.5 + 0.5 * math.e), math.log(0.5 * math.exp(-1) + 0.5 * math.exp(0.5))]
    expected = {1: 0.125, 2: sum(pairs) / 2, 4: math.log(sum(map(math.exp, (0, 1, -1, 0.5))) / 4)}
    assert found == pytest.approx(expected)
    assert found[1] < found[2] < found[4]
    model, x = IWAE(IWAEConfig(1, (3,), (8,), data_features=16)), torch.rand(5, 16).round()
    draw_bounds_by_samples("IWAE", model, x, tmp_path / "bounds.png", samples=8, chunk=3)
    assert_picture(tmp_path / "bounds.png")
