"""Training of the recipe ``pixelvae``: what it leaves behind, how it resumes, what its command line says."""

import json
import math
from dataclasses import replace

import pytest
import torch

from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig, PixelVAETrainConfig
from fastvae.recipes.systems.pixelvae.model import PixelVAE
from fastvae.recipes.systems.pixelvae.system import PixelVAESystem
from tests.recipes.pixel_support import SMALL_VAE as SMALL
from tests.recipes.pixel_support import VARIANTS, is_png, keep, static_images
from tests.recipes.training_support import Crash, assert_same_run, load, metrics, train, train_on_one_and_two_processes

SHORT = PixelVAETrainConfig(epochs=2, batch_size=50, average_decay=0.8, learning_rate=1e-2, kl_warmup=4)
FEW = EvaluationConfig(samples=3, log_p_images=20)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture
def images(tiny):
    return static_images(tiny)


def run(images, folder, config=SHORT, model=SMALL, **options):
    return train("pixelvae", model, config, folder, evaluation=FEW, images=images, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps(variant, images, tmp_path):
    config = replace(SMALL, **VARIANTS[variant])
    found = run(images, tmp_path, replace(SHORT, epochs=1, batch_size=125), config)
    torch.manual_seed(0)
    start = PixelVAE(config).state_dict()
    moved = [name for name, value in found.model.state_dict().items() if not torch.equal(value, start[name])]
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name, _ in found.model.named_parameters()}
    figures = found.figures
    assert figures.kl == pytest.approx(sum(figures.kl_terms))
    assert all(math.isfinite(value) for value in (figures.elbo, figures.valid_elbo, figures.log_p, figures.kl))
    pictures = ("samples", "reconstructions", "interpolations", "learning_curves")
    assert all(is_png(tmp_path / f"{name}.png") for name in pictures)


def test_what_a_run_leaves_behind(images, tmp_path):
    found = run(images, tmp_path, replace(SHORT, epochs=4))
    rows = metrics(tmp_path)
    assert float(rows[-1]["train_elbo"]) > float(rows[0]["train_elbo"]) + 10
    result = json.loads((tmp_path / "result.json").read_text())
    wanted = {"recipe": "pixelvae", "samples": 3, "log_p_images": 20, "elbo_images": 60, "train_images": 250}
    assert wanted.items() <= result.items()
    assert (result["elbo"], result["log_p"]) == (found.figures.elbo, found.figures.log_p)
    model, config = load("pixelvae", found.checkpoint)
    assert (model.config, config) == (SMALL, replace(SHORT, epochs=4))
    x, valid = binarize_fixed(images.x_test), binarize_fixed(images.x_valid)
    again = evaluate(model, x, valid=valid, samples=3, log_p_images=20)
    assert (again.elbo, again.log_p) == (found.figures.elbo, found.figures.log_p)


@pytest.mark.parametrize("variant", ["vector", "two levels"])
def test_resumed_run_ends_as_an_unbroken_one(variant, images, tmp_path):
    model = replace(SMALL, **VARIANTS[variant])
    expected = run(images, tmp_path / "whole", model=model)
    with pytest.raises(RuntimeError, match="power failure"):
        run(images, tmp_path / "broken", model=model, callbacks=[Crash()])
    assert_same_run(run(images, tmp_path / "broken", model=model, resume=tmp_path / "broken" / "last.ckpt"), expected)


def test_weight_of_the_kl_terms(images, tmp_path):
    for warmup in (0, 10**9):
        run(images, tmp_path / str(warmup), replace(SHORT, epochs=1, kl_warmup=warmup))
        row = metrics(tmp_path / str(warmup))[0]
        loss, elbo, kl = (float(row[name]) for name in ("loss", "train_elbo", "train_kl"))
        assert loss == pytest.approx(-elbo - (kl if warmup else 0.0), rel=1e-6)


def test_reference_trains(images, tmp_path):
    found = run(images, tmp_path, replace(SHORT, epochs=1), replace(SMALL, impl="reference"))
    assert math.isfinite(found.figures.log_p)
    assert json.loads((tmp_path / "result.json").read_text())["implementation"] == "reference"


def test_two_processes_train_as_one_with_the_joint_batch(tiny, tmp_path):
    folders = train_on_one_and_two_processes("pixel_two_processes.py", tiny, tmp_path)
    for levels, terms in (("1", ["train_kl"]), ("2", ["train_kl1", "train_kl2"])):
        one, two = (metrics(folder / levels) for folder in folders)
        assert len(one) == len(two) == 2
        for name in ("loss", "train_elbo", *terms, "valid_elbo"):
            for ours, theirs in zip(two, one, strict=True):
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-9), (levels, name)


def test_free_bits(images, tmp_path):
    """Below the floor the terms count as the floor, above it as they are."""
    for floor in (1e-6, 1e3):
        run(images, tmp_path / str(floor), replace(SHORT, epochs=1, kl_warmup=0, free_bits=floor))
        row = metrics(tmp_path / str(floor))[0]
        loss, elbo, kl = (float(row[name]) for name in ("loss", "train_elbo", "train_kl"))
        assert loss == pytest.approx(-elbo - kl + max(kl, floor), rel=1e-6)


def test_bad_values():
    for name, value in (("kl_warmup", -1), ("free_bits", -0.5), ("free_bits", math.inf)):
        with pytest.raises(ValueError, match=f"{name} must be >= 0.*, got {value}"):
            replace(SHORT, **{name: value})


# Command line

OPTIONS = (
    "--levels 2 --latent-features 3 --latent-maps 2 --prior-layers 2 --prior-maps 4 --decoder-maps 2 "
    "--encoder-maps 2 3 4 --layers 2 --filter 3 --maps 4 --epochs 1 --batch-size 50 --kl-warmup 5 --samples 3 "
    "--images 20 --device cpu --no-progress"
).split()


def test_command_line(images, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep(images, data.cache_folder(), monkeypatch)
    out = tmp_path / "out"
    assert cli.main(["train", "pixelvae", *OPTIONS, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 epochs" in printed
    assert "nats, of which KL" in printed
    assert "nats (K = 3, 20 test images;" in printed
    # The figures once more, with other samples.
    again = ["train", "pixelvae", "--resume", str(out / "last.ckpt"), "--samples", "5", "--device", "cpu"]
    assert cli.main([*again, "--no-progress", "--out", str(out)]) == 0
    assert "nats (K = 5, 10000" not in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text())["samples"] == 5


def test_command_line_wins_over_the_file(tmp_path, monkeypatch):
    seen = []

    def record(system, settings, folder, **options):
        seen.append(settings)
        raise SystemExit(0)

    monkeypatch.setattr(PixelVAESystem, "run", record)
    settings = {"recipe": "pixelvae", "model": {"maps": 64, "encoder_maps": [2, 3, 4]}, "samples": 7, "kl_warmup": 3}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        cli.main(["train", "pixelvae", "--config", str(tmp_path / "c.json"), "--latent", "map", "--epochs", "5"])
    assert seen[0].model == PixelVAEConfig(latent="map", maps=64, encoder_maps=(2, 3, 4))
    assert seen[0].training == PixelVAETrainConfig(epochs=5, kl_warmup=3)
    assert seen[0].evaluation == EvaluationConfig(samples=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--levels 3", "invalid choice '3' for argument '--levels'"),
        ("--decoder bias --latent map", "decoder must be 'upsampling' or 'conv' for latent='map'"),
        ("--encoder-maps 2 3", "'--encoder-maps'. Expected 3 values"),
        ("--kl-warmup -1", "kl_warmup must be >= 0, got -1"),
        ("--samples 0", "samples must be >= 1, got 0"),
    ],
)
def test_bad_option(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelvae", *arguments.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelvae", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "steps until the KL terms have weight 1 (default: 10000)" in said
    assert "widths of the encoder's three stages (default: 32 64 64)" in said
