"""The recipe ``pixelcnn``, and what it shares with ``pixelvae``: training, resuming, figures, command line."""

import json
from dataclasses import replace

import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.bounds import spread
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelTrainConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN
from fastvae.recipes.systems.pixelcnn.system import PixelCNNSystem
from fastvae.recipes.systems.pixelcnn.task import PixelTask
from fastvae.recipes.training import history
from tests.recipes.pixel_support import is_png, keep, static_images
from tests.recipes.training_support import Crash, assert_same_run, load, metrics, train

SMALL = PixelCNNConfig(layers=2, maps=4, filter_size=3, first_filter_size=5)
SHORT = PixelTrainConfig(epochs=3, batch_size=50, average_decay=0.8, learning_rate=1e-2)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture
def images(tiny):
    return static_images(tiny)


def run(images, folder, config=SHORT, model=SMALL, **options):
    return train("pixelcnn", model, config, folder, images=images, **options)


def test_log_prob_is_a_product_of_bernoullis():
    model = BinaryPixelCNN(SMALL)
    x = (torch.rand(3, 784) < 0.2).float()
    logits = model.network(x.view(3, 1, 28, 28)).flatten(1)
    p = torch.where(x == 1, logits.sigmoid(), 1 - logits.sigmoid())
    log_p, kl = model.measure(x)
    torch.testing.assert_close(log_p, p.log().sum(-1))
    assert kl.shape == (3, 0)


@pytest.mark.parametrize("network", ["gated", "plain"])
def test_samples_and_completions(network):
    model = BinaryPixelCNN(replace(SMALL, network=network)).eval()
    x = model.sample(5, generator=torch.Generator().manual_seed(0))
    assert x.shape == (5, 784)
    assert ((x == 0) | (x == 1)).all()
    given = x.clone()
    given[:, 392:] = torch.nan
    completed = model.sample(5, given=given, generator=torch.Generator().manual_seed(1))
    assert torch.equal(completed[:, :392], x[:, :392])
    assert not torch.equal(completed, x)


def test_what_a_run_leaves_behind(images, tmp_path):
    found = run(images, tmp_path)
    rows = metrics(tmp_path)
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 5), (2, 10), (3, 15)]
    assert float(rows[-1]["valid_log_p"]) > float(rows[0]["valid_log_p"]) + 10
    assert float(rows[0]["loss"]) == pytest.approx(-float(rows[0]["train_log_p"]))
    x = {name: binarize_fixed(getattr(images, f"x_{name}")) for name in ("valid", "test")}
    with torch.no_grad():
        nll = {name: -found.model.log_prob(rows).mean().item() for name, rows in x.items()}
    assert found.figures.valid_nll == pytest.approx(nll["valid"])
    assert found.figures.test_nll == pytest.approx(nll["test"])
    assert float(rows[-1]["valid_log_p"]) == pytest.approx(-nll["valid"])
    result = json.loads((tmp_path / "result.json").read_text())
    wanted = {"recipe": "pixelcnn", "epochs": 3, "seed": 0, "train_images": 250, "test_images": 60, "data": "static"}
    assert wanted.items() <= result.items()
    assert result["test_nll"] == found.figures.test_nll
    assert result["sampled_images_per_second"] > 0
    settings = json.loads((tmp_path / "config.json").read_text())
    assert PixelCNNConfig(**settings["model"]) == SMALL
    assert PixelTrainConfig(**settings["training"]) == SHORT
    assert all(is_png(tmp_path / f"{name}.png") for name in ("samples", "inpainting", "learning_curves"))
    assert not list(tmp_path.glob("*.part"))


def test_resumed_run_ends_as_an_unbroken_one(images, tmp_path):
    expected = run(images, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power failure"):
        run(images, tmp_path / "broken", callbacks=[Crash()])
    found = run(images, tmp_path / "broken", resume=tmp_path / "broken" / "last.ckpt")
    assert_same_run(found, expected)
    for ours, theirs in zip(metrics(tmp_path / "broken"), metrics(tmp_path / "whole"), strict=True):
        assert all(ours[name] == theirs[name] for name in ours if name != "seconds")


def test_run_in_parts(images, tmp_path):
    """Also where a part ends between two checkpoints."""
    config = replace(SHORT, check_every=2)
    expected = run(images, tmp_path / "whole", config)
    assert [bool(row["valid_log_p"]) for row in metrics(tmp_path / "whole")] == [False, True, False]
    part = run(images, tmp_path / "parts", config, limit_epochs=1)
    assert (part.epochs, part.figures) == (1, None)
    assert not (tmp_path / "parts" / "result.json").exists()
    found = run(images, tmp_path / "parts", config, resume=part.checkpoint)
    assert_same_run(found, expected)


def test_checkpoint_holds_the_averaged_model(images, tmp_path):
    found = run(images, tmp_path, replace(SHORT, epochs=1))
    model, config = load("pixelcnn", found.checkpoint, impl="reference")
    assert (config.epochs, model.config.impl) == (1, "reference")
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])


def test_plain_network_on_images_binarised_anew_and_validation_images(tiny, tmp_path):
    config = replace(SHORT, epochs=2, data="dynamic", add_validation=True)
    run(split_mnist(tiny), tmp_path, config, replace(SMALL, network="plain", head_maps=3))
    rows = metrics(tmp_path)
    assert float(rows[-1]["test_log_p"]) > float(rows[0]["test_log_p"])
    assert json.loads((tmp_path / "result.json").read_text())["train_images"] == 300


def test_learning_rate_decays_geometrically():
    config = replace(SHORT, learning_rate=1e-2, final_learning_rate=1e-4)
    task = PixelTask("pixelcnn", BinaryPixelCNN(SMALL), config, folder=None)
    task.steps = 100
    assert [task.decay(step) for step in (0, 50, 75, 100, 120)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_without_tensorboard(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(history, "find_spec", lambda name: None)
    run(images, tmp_path, replace(SHORT, epochs=1))
    assert "tensorboard is not installed: the losses go to CSV files only" in capsys.readouterr().out
    assert not (tmp_path / "tensorboard").exists()


def test_loss_that_is_not_finite(images, tmp_path):
    with pytest.raises(RecipeError, match=r"the loss became .* in epoch 1: try a lower learning rate"):
        run(images, tmp_path, replace(SHORT, learning_rate=1e30, final_learning_rate=1e30))
    assert not (tmp_path / "last.ckpt").exists()


def test_spread():
    x = torch.arange(10)
    assert spread(x, 4).tolist() == [0, 2, 5, 7]
    assert spread(x, 20).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "wide"}, "network must be one of gated, plain, got 'wide'"),
        ({"impl": "fast"}, "impl must be one of"),
        ({"layers": 0}, "layers must be >= 1, got 0"),
        ({"head_maps": -1}, "head_maps must be >= 0, got -1"),
        ({"filter_size": 4}, "filter_size must be odd, got 4"),
        ({"first_filter_size": -3}, "first_filter_size must be odd, got -3"),
    ],
)
def test_bad_model(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "binary"}, "data must be one of static, dynamic, got 'binary'"),
        ({"precision": "bf16"}, "precision must be one of"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0 and finite, got 0.0"),
        ({"final_learning_rate": float("inf")}, "final_learning_rate must be > 0 and finite, got inf"),
        ({"decay_from": 1.5}, r"decay_from must lie in \[0, 1\], got 1.5"),
        ({"average_decay": 1.0}, r"average_decay must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_training(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


# Command line

OPTIONS = (
    "--layers 2 --maps 4 --filter 3 --epochs 2 --batch-size 50 --learning-rate 0.01 --average-decay 0.8 "
    "--device cpu --no-progress"
).split()


@pytest.fixture
def keep_images(images, monkeypatch, tmp_path):
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep(images, data.cache_folder(), monkeypatch)


def read_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelcnn", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_command_line_in_parts(keep_images, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["train", "pixelcnn", *OPTIONS, "--limit-epochs", "1", "--out", str(out)]) == 0
    assert f"next: fastvae train pixelcnn --resume {out / 'last.ckpt'} --out {out}" in capsys.readouterr().out
    resuming = ["train", "pixelcnn", "--resume", str(out / "last.ckpt"), "--config", str(out / "config.json")]
    assert cli.main([*resuming, "--device", "cpu", "--no-progress", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 epochs" in printed
    assert "nats, validation (50 images)" in printed
    assert "nats, test (60 images)" in printed
    assert "images/s, in batches of 64" in printed
    said = read_error(capsys, "--resume", str(out / "last.ckpt"), "--layers", "9")
    assert "--resume continues a run with layers = 2; it cannot become 9" in said


def test_images_that_are_absent(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.main(["train", "pixelcnn", *OPTIONS, "--out", str(tmp_path / "out")]) == 1
    assert "fastvae: error: static binarised MNIST was not found" in capsys.readouterr().err


def test_checkpoint_of_another_recipe(images, tmp_path, capsys):
    checkpoint = run(images, tmp_path, replace(SHORT, epochs=1)).checkpoint
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of pixelvae: its recipe is pixelcnn"):
        load("pixelvae", checkpoint)
    assert cli.main(["train", "pixelvae", "--resume", str(checkpoint)]) == 1
    assert "is no checkpoint of pixelvae" in capsys.readouterr().err


def test_command_line_wins_over_the_file(tmp_path, monkeypatch):
    seen = []

    def record(system, settings, folder, **options):
        seen.append(settings)
        raise RecipeError("enough")

    monkeypatch.setattr(PixelCNNSystem, "run", record)
    (tmp_path / "c.json").write_text(json.dumps({"layers": 3, "model": {"maps": 64}, "training": {"seed": 5}}))
    arguments = ["train", "pixelcnn", "--config", str(tmp_path / "c.json"), "--layers", "5", "--add-validation"]
    assert cli.main(arguments) == 1
    settings = seen[0]
    assert settings.model == PixelCNNConfig(layers=5, maps=64)
    assert settings.training == PixelTrainConfig(seed=5, add_validation=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--layers 0", "layers must be >= 1, got 0"),
        ("--filter 4", "filter_size must be odd, got 4"),
        ("--network deep", "invalid choice 'deep' for argument '--network'"),
        ("--data cifar", "invalid choice 'cifar' for argument '--data'"),
        ("--learning-rate nan", "learning_rate must be > 0 and finite, got nan"),
    ],
)
def test_bad_option(arguments, message, capsys):
    assert message in read_error(capsys, *arguments.split())


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelcnn", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "kernel of its first layer, odd (default: 7)" in said
    assert 'static binarised MNIST, or "dynamic", MNIST binarised for every batch (default: static)' in said
