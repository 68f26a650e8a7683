"""Densities on the plane, the posteriors fitted to them, the picture and the command."""

import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.image import imread

from fastvae.recipes.cli import main as cli
from fastvae.recipes.systems.posterior2d.config import FITS, FITS_OF_POINTS, Posterior2dConfig
from fastvae.recipes.systems.posterior2d.densities import DENSITIES, grid, log_normalizer
from fastvae.recipes.systems.posterior2d.four_points import FourPoints
from fastvae.recipes.systems.posterior2d.model import Posterior2d
from fastvae.recipes.systems.posterior2d.pictures import CELLS, SHOWN, density_of
from fastvae.recipes.systems.posterior2d.system import format_table
from fastvae.recipes.systems.posterior2d.task import fit_posterior

QUICK = Posterior2dConfig(depth=2, width=8, steps=150, batch_size=64, learning_rate=0.03, samples=4000, starts=2)


def correlated_gaussian(z):
    """A Gaussian, normalised: correlation 0.8, standard deviations 1.5 and 0.5."""
    x, y = z[..., 0] / 1.5, z[..., 1] / 0.5
    quadratic = (x**2 - 1.6 * x * y + y**2) / (1 - 0.64)
    return -0.5 * quadratic - math.log(2 * math.pi * 1.5 * 0.5 * 0.6)


def test_grid_holds_the_centres_of_squares():
    points = grid(2.0, 4)
    assert points[0, :, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert points[:, 0, 1].tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_normalizer_of_a_gaussian():
    assert log_normalizer(correlated_gaussian) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_have_normalisers_and_gradients(name):
    density = DENSITIES[name]
    assert log_normalizer(density, points=1000) == pytest.approx(log_normalizer(density, points=700), abs=1e-4)
    z = torch.cat([torch.zeros(1, 2), 3.0 * torch.randn(50, 2)]).requires_grad_()
    density(z).sum().backward()
    assert z.grad.isfinite().all()


def test_normalisers_in_closed_form():
    radius = torch.linspace(0, 10, 100_001, dtype=torch.float64)
    ring = torch.trapezoid(2 * math.pi * radius * torch.exp(-0.5 * ((radius - 2) / 0.3) ** 2), radius)
    masses = {"ring": float(ring), "banana": 2 * math.pi * 1.4 * 0.4, "ridge": 2 * math.pi * 2.2 * 0.3}
    for name, mass in masses.items():
        assert log_normalizer(DENSITIES[name]) == pytest.approx(math.log(mass), abs=3e-4), name


def test_crescents_are_symmetric_about_the_origin():
    z = 2.0 * torch.randn(100, 2)
    torch.testing.assert_close(DENSITIES["crescents"](z), DENSITIES["crescents"](-z))


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_log_density_of_a_flow_is_that_of_its_inverse(impl):
    posterior = Posterior2d("iaf", depth=3, width=8, impl=impl).double()
    z, log_q = posterior.rsample_with_log_prob(20)
    base, log_det = posterior.flow.inverse(z)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(log_q, normal.log_prob(base).sum(-1) + log_det)


def test_gaussian_fits_of_a_gaussian():
    """The full-covariance posterior is exact; the diagonal one lacks the mutual information, -log sqrt(1 - 0.8^2)."""
    config = replace(QUICK, steps=400)
    found = {kind: fit_posterior(kind, correlated_gaussian, config) for kind in ("diagonal", "triangular")}
    assert found["triangular"].bound == pytest.approx(0.0, abs=0.02)
    assert found["diagonal"].bound == pytest.approx(math.log(0.6), abs=0.05)
    covariance = torch.cov(found["triangular"].samples.T)
    torch.testing.assert_close(covariance, torch.tensor([[2.25, 0.6], [0.6, 0.25]]), rtol=0.15, atol=0.05)


def test_flow_beats_the_gaussians():
    density = DENSITIES["banana"]
    bounds = {kind: fit_posterior(kind, density, QUICK).bound for kind in FITS}
    assert bounds["iaf"] > max(bounds["diagonal"], bounds["triangular"]) + 0.2
    assert bounds["iaf"] < log_normalizer(density)


def test_full_covariance_begins_at_the_diagonal_fit():
    diagonal = fit_posterior("diagonal", DENSITIES["ridge"], QUICK)
    found = fit_posterior("triangular", DENSITIES["ridge"], QUICK, start=diagonal.posterior)
    assert found.bound > diagonal.bound - 3 * diagonal.standard_error


def test_fits_are_a_function_of_the_seed():
    first, second = (fit_posterior("iaf", DENSITIES["ring"], replace(QUICK, steps=20)) for _ in range(2))
    assert first.bound == second.bound
    assert torch.equal(first.samples, second.samples)


def test_histogram_is_a_density():
    points = torch.tensor([[1.01, -2.01]]).repeat(10, 1)
    picture = density_of(torch.cat([points, torch.full((10, 2), 99.0)]))
    cell = 2 * SHOWN / CELLS
    assert float(picture.sum()) * cell**2 == pytest.approx(0.5)
    row, column = divmod(int(picture.argmax()), CELLS)
    assert (column + 0.5) * cell - SHOWN == pytest.approx(1.01, abs=cell)
    assert (row + 0.5) * cell - SHOWN == pytest.approx(-2.01, abs=cell)


def test_command(tmp_path, capsys):
    out = tmp_path / "out"
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"densities": ["ring", "ridge"], "width": 8, "depth": 7, "samples": 3000}))
    options = ["--config", str(settings), "--depth", "1", "--steps", "20", "--starts", "1", "--no-progress"]
    assert cli.main(["train", "posterior2d", *options, "--out", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["config"]["depth"] == 1
    assert result["config"]["densities"] == ["ring", "ridge"]
    for name in ("ring", "ridge"):
        row = result["densities"][name]
        assert list(row["posteriors"]) == list(FITS)
        for fit in row["posteriors"].values():
            assert fit["gap"] == pytest.approx(row["log_normalizer"] - fit["bound"])
            assert f"{fit['bound']:.3f}" in printed
    for name, least in (("posteriors", 600), ("trajectories", 400)):
        pixels = imread(out / f"{name}.png")[..., :3]
        assert min(pixels.shape[:2]) > least
        assert 0.01 < (pixels < 0.9).any(-1).mean() < 0.99


def exact_bound(model):
    """Of the VAE of four data points with Gaussian posteriors, by quadrature."""
    axis = torch.linspace(-7, 7, 701, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    log_q = torch.distributions.Normal(model.mu, model.log_sigma.exp()).log_prob(z).sum(-1)
    log_p_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_p_x = torch.distributions.Bernoulli(logits=model.decoder(z)).log_prob(torch.eye(4, dtype=z.dtype)).sum(-1)
    return (log_q.exp() * (log_p_x + log_p_z - log_q)).sum(0) * (axis[1] - axis[0]) ** 2


@torch.no_grad()
def test_bound_of_four_points():
    torch.manual_seed(0)
    model = FourPoints("diagonal", width=8).double()
    model.mu.normal_()
    z, terms = model.weigh(40_000, torch.Generator().manual_seed(1))
    assert z.shape == (40_000, 2)
    # Samples of the four data points take turns.
    terms = terms.unflatten(0, (-1, 4))
    error = terms.std(0) / 100
    assert ((terms.mean(0) - exact_bound(model)).abs() < 4 * error).all()


def test_flow_of_four_points_has_a_log_density():
    model = FourPoints("iaf", depth=2, width=8).double()
    z, terms = model.weigh(10)
    assert z.shape == (12, 2)
    base, log_det = model.flow.inverse(z.view(3, 4, 2), model.context)
    normal = torch.distributions.Normal
    log_q = normal(model.mu, model.log_sigma.exp()).log_prob(base).sum(-1) + log_det
    log_p_x = torch.distributions.Bernoulli(logits=model.decoder(z.view(3, 4, 2))).log_prob(model.data).sum(-1)
    expected = log_p_x + normal(0.0, 1.0).log_prob(z).sum(-1).view(3, 4) - log_q
    torch.testing.assert_close(terms.view(3, 4), expected)


def test_four_points_on_the_command_line(tmp_path, capsys):
    out = tmp_path / "out"
    options = "--figure four-points --width 8 --depth 1 --steps 60 --learning-rate 0.03 --samples 4000 --no-progress"
    where = ["--out", str(out), "--device", "cpu"]
    assert cli.main(["train", "posterior2d", *options.split(), *where, "--limit-epochs", "1"]) == 0
    assert cli.main(["train", "posterior2d", *options.split(), *where, "--resume", str(out / "last.ckpt")]) == 0
    row = json.loads((out / "result.json").read_text())["densities"]["four_points"]
    assert row["log_normalizer"] == pytest.approx(-math.log(4))
    assert list(row["posteriors"]) == list(FITS_OF_POINTS)
    # A decoder that ignores z has pixels of 1/4.
    assert all(-2.4 < fit["bound"] < -math.log(4) for fit in row["posteriors"].values())
    capsys.readouterr()
    assert cli.main(["evaluate", str(out / "last.ckpt"), "--device", "cpu"]) == 0
    assert "four_points" in capsys.readouterr().out
    assert cli.main(["sample", str(out / "last.ckpt"), "-o", str(tmp_path / "s.png"), "--count", "50"]) == 0
    for path in (out / "posteriors.png", tmp_path / "s.png"):
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 400
        assert (pixels < 0.9).any(-1).mean() > 0.005
    with pytest.raises(ValueError, match="kind must be one of diagonal, iaf, got 'triangular'"):
        FourPoints("triangular")


def test_table_lines_are_even():
    row = {"log_normalizer": 1.0, "posteriors": {kind: {"bound": -2.0} for kind in FITS}}
    lines = format_table({"ring": row, "crescents": row}, FITS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split() == ["ring", "1.000", "-2.000", "-2.000", "-2.000"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"densities": ()}, "densities must name one or more densities, got none"),
        ({"densities": ("square",)}, "densities must be one of ring, banana, crescents, ridge, got 'square'"),
        ({"impl": "cuda"}, "impl must be one of"),
        ({"starts": 0}, "starts must be >= 1, got 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
        ({"learning_rate": math.inf}, "learning_rate must be > 0 and finite, got inf"),
    ],
)
def test_bad_configuration(changes, message):
    with pytest.raises(ValueError, match=message):
        Posterior2dConfig(**changes)
    with pytest.raises(ValueError, match="kind must be one of diagonal, triangular, iaf, got 'full'"):
        Posterior2d("full")


def test_bad_options(capsys):
    for arguments, message in (("--densities square", "invalid choice 'square'"), ("--steps 0", "steps must be >= 1")):
        with pytest.raises(SystemExit):
            cli.main(["train", "posterior2d", *arguments.split()])
        assert message in capsys.readouterr().err
