"""What holds for every system: its place in the catalogue, its settings, and the commands that take its checkpoints."""

import json
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest
import torch

from fastvae import backend
from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.settings import Implementation
from fastvae.recipes.systems.catalogue import CATALOGUE, UNNAMED
from fastvae.recipes.systems.iaf_vae.config import Kind
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.posterior2d.config import Posterior2dConfig, Posterior2dSettings
from fastvae.recipes.training import trainer
from fastvae.reference.affine_flow import KINDS
from tests.recipes.class_support import keep_m1
from tests.recipes.pixel_support import SMALL_VAE, keep, static_images
from tests.recipes.training_support import assert_same_weights

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
PLANE = Posterior2dSettings(Posterior2dConfig(("ring",), 1, 4, steps=3, samples=50, starts=1))
OPTIONS = {
    "vae": "--latent 3 --hidden 8 --batch-size 60 --samples 2",
    "iaf_vae": "--latent 3 --depth 1 --width 8 --maps 2 --dense 8 --batch-size 60 --samples 2",
    "hvi": "--network dense --leapfrog 1 --latent 3 --hidden 8 --momentum 4 --batch-size 60 --samples 2",
    "iwae": "--layers 2 --latent 3 2 --hidden 8 6 --k 3 --objective dreg --batch-size 60 --samples 2",
    "lvae": "--latent 3 2 --hidden 8 6 --batch-size 60 --samples 2",
    "draw": "--data digits --data-features 64 --glimpses 2 --latent 3 --hidden 8 --read 2 --write 2 --batch-size 300 "
    "--samples 2",
    "pixelcnn": "--layers 2 --maps 4 --filter 3 --batch-size 50",
    "pixelvae": "--latent-features 3 --encoder-maps 2 3 4 --layers 2 --maps 4 --batch-size 50 --samples 2",
    "vat": "--data digits --data-features 64 --hidden 8 --batch-size 300 --labels 20",
    "ladder": "--data digits --data-features 64 --hidden 8 --batch-size 300 --labels 20",
    "m2": "--data digits --data-features 64 --latent 3 --hidden 8 --batch-size 300 --labels 20 --samples 2",
    "m1m2": "--data digits --data-features 64 --latent 3 --hidden 8 --m1-latent 6 --m1-hidden 12 12 --batch-size 300 "
    "--labels 20 --samples 2",
    "cvae": "--data digits --data-features 64 --latent 3 --hidden 8 --batch-size 300 --samples 2",
    "sbn": "--latent 4 --batch-size 50 --samples 2",
    "m1": "--latent 3 --hidden 8 8 --data digits --data-features 64 --batch-size 60 --samples 2",
    "adgm": "--data digits --latent 3 --auxiliary 2 --hidden 8 8 --samples 2 --batch-size 300",
    "posterior2d": "--densities ring --depth 1 --width 4 --steps 3 --samples 50 --starts 1",
}


def test_choices_are_those_of_the_library():
    assert get_args(Implementation) == backend.IMPLEMENTATIONS
    assert get_args(Kind) == KINDS


@pytest.mark.parametrize("name", CATALOGUE)
def test_settings_have_defaults_and_names_of_their_own(name):
    system = find_system(name)
    assert system.name == name
    names = [field.name for part in vars(system.settings()).values() for field in fields(part)]
    assert len(set(names)) == len(names)
    assert all(is_dataclass(part) for part in vars(system.settings()).values())


def test_unnamed_checkpoints_are_of_one_system(tmp_path):
    assert [name for name in CATALOGUE if find_system(name).has_unnamed_checkpoints] == [UNNAMED]
    path = tmp_path / "last.ckpt"
    torch.save({"hyper_parameters": {}, "state_dict": {}}, path)
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of pixelcnn: it names no recipe"):
        find_system("pixelcnn").load(path)


def test_system_that_is_not_there():
    with pytest.raises(RecipeError, match=r"there is no system 'pixelvea'; .*; the nearest is 'pixelvae'"):
        find_system("pixelvea")


@pytest.mark.parametrize("name", CATALOGUE)
def test_commands_take_every_checkpoint(name, canonical, tmp_path, monkeypatch, capsys):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    keep(static_images(canonical), data.cache_folder(), monkeypatch)
    keep_m1(data.cache_folder())
    out = tmp_path / "out"
    where = ["--out", str(out), "--device", "cpu", "--no-progress"]
    epochs = [] if name == "posterior2d" else ["--epochs", "2"]
    assert cli.main(["train", name, *OPTIONS[name].split(), *epochs, "--limit-epochs", "1", *where]) == 0
    assert f"next: fastvae train {name} --resume {out / 'last.ckpt'}" in capsys.readouterr().out
    resumed = ["train", name, "--resume", str(out / "last.ckpt"), "--config", str(out / "config.json"), *where]
    assert cli.main(resumed) == 0
    assert f"next: fastvae evaluate {out / 'last.ckpt'}" in capsys.readouterr().out
    assert {"config.json", "metrics.csv", "result.json", "last.ckpt"} <= {path.name for path in out.iterdir()}
    assert cli.main(["evaluate", str(out / "last.ckpt"), "--json", str(tmp_path / "f.json"), "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "f.json").read_text()).keys() <= json.loads((out / "result.json").read_text()).keys()
    status = cli.main(["sample", str(out / "last.ckpt"), "-o", str(tmp_path / "s.png"), "--count", "5"])
    has_samples = name not in ("vat", "ladder")
    assert (status == 0) == has_samples == (tmp_path / "s.png").exists()
    if not has_samples:
        assert f"{name} has no distribution of images to draw new ones from" in capsys.readouterr().err
    status = cli.main(["reconstruct", str(out / "last.ckpt"), "-o", str(tmp_path / "r.png"), "--count", "4"])
    has_latents = name not in ("pixelcnn", "posterior2d", "vat")
    assert (status == 0) == has_latents == (tmp_path / "r.png").exists()
    if not has_latents:
        assert f"{name} has no latents to reconstruct images from" in capsys.readouterr().err


def test_fits_in_parts_are_those_of_one_run(tmp_path):
    system = find_system("posterior2d")
    whole = system.run(PLANE, tmp_path / "whole", progress=False)
    part = system.run(PLANE, tmp_path / "parts", limit_epochs=1, progress=False)
    assert (part.epochs, part.planned_epochs, part.figures) == (1, 3, None)
    found = system.run(PLANE, tmp_path / "parts", resume=part.checkpoint, progress=False)
    assert found.figures == whole.figures
    assert_same_weights(found, whole)


def test_rows_of_labelled_batches_are_counted():
    """A system with classes has images and labels in its batches."""
    speed = trainer.Speed()
    lightning = type("Trainer", (), {"world_size": 2, "is_last_batch": True})()
    speed.on_train_batch_end(lightning, None, None, (torch.zeros(7, 784), torch.zeros(7)), 0)
    assert speed.images == 14


def test_reconstructions_of_images_that_are_there(tiny, tmp_path):
    system = find_system("pixelvae")
    model = system.make_model(SMALL_VAE).eval()
    path = tmp_path / "r.png"
    system.draw_reconstructions(model, system.settings(), path, count=3, images=split_mnist(tiny))
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecipeError, match="pixelvae has no classes to draw images of"):
        system.sample(model, 2, labels=torch.tensor([1, 2]))
