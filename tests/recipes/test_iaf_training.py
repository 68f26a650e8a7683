"""Training of the recipe ``iaf_vae``: what it leaves behind, how it resumes, what its command line says."""

import json
from dataclasses import replace

import lightning as L
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.iaf_vae.config import IAFTrainConfig, IAFVAEConfig
from fastvae.recipes.systems.iaf_vae.model import IAFVAE
from fastvae.recipes.systems.iaf_vae.system import IAFVAESystem
from fastvae.recipes.systems.iaf_vae.task import IAFTask
from fastvae.recipes.systems.loading import load_checkpoint
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from fastvae.recipes.training import history
from tests.recipes.training_support import Crash, assert_same_run, load, metrics, train, train_on_one_and_two_processes

SMALL = IAFVAEConfig(latent_features=3, depth=2, width=8, feature_maps=(2,), dense_features=8)
SHORT = IAFTrainConfig(epochs=4, batch_size=60, average_decay=0.8)
FEW = EvaluationConfig(samples=3, log_p_images=20)
TINY_OPTIONS = (
    "--latent 3 --depth 1 --width 8 --maps 2 --dense 8 --epochs 2 --batch-size 60 --samples 3 --images 20 "
    "--accelerator cpu --no-progress"
).split()

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def run(tiny, folder, config=SHORT, model=SMALL, **options):
    return train("iaf_vae", model, config, folder, evaluation=FEW, images=tiny, **options)


def test_what_a_run_leaves_behind(tiny, tmp_path):
    found = run(tiny, tmp_path / "out")
    out = tmp_path / "out"
    rows = metrics(out)
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 5), (2, 10), (3, 15), (4, 20)]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 10
    assert float(rows[-1]["train_elbo"]) > float(rows[0]["train_elbo"]) + 10
    assert float(rows[-1]["test_elbo"]) > float(rows[0]["test_elbo"])
    result = json.loads((out / "result.json").read_text())
    assert result["elbo"] == found.figures.elbo
    assert result["log_p"] == found.figures.log_p
    wanted = {"samples": 3, "log_p_images": 20, "elbo_images": 60, "train_images": 300, "epochs": 4, "seed": 0}
    assert wanted.items() <= result.items()
    assert result["versions"]["torch"] == torch.__version__
    settings = json.loads((out / "config.json").read_text())
    assert settings["recipe"] == "iaf_vae"
    assert IAFVAEConfig(**settings["model"]) == SMALL
    assert IAFTrainConfig(**settings["training"]) == SHORT
    for name in ("samples", "reconstructions", "learning_curves"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert found.checkpoint == out / "last.ckpt"
    assert not list(out.glob("*.part"))


@pytest.mark.parametrize("posterior", ["diagonal", "triangular"])
def test_gaussian_posteriors_train(posterior, tiny, tmp_path):
    run(tiny, tmp_path, replace(SHORT, epochs=3), replace(SMALL, posterior=posterior))
    losses = [float(row["loss"]) for row in metrics(tmp_path)]
    assert losses[-1] < losses[0] - 10


def test_resumed_run_ends_as_an_unbroken_one(tiny, tmp_path):
    expected = run(tiny, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="power failure"):
        run(tiny, tmp_path / "broken", callbacks=[Crash(2)])
    found = run(tiny, tmp_path / "broken", resume=tmp_path / "broken" / "last.ckpt")
    assert_same_run(found, expected)
    for ours, theirs in zip(metrics(tmp_path / "broken"), metrics(tmp_path / "whole"), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[name] == theirs[name] for name in ours if name != "seconds")


def test_run_in_parts_ends_as_an_unbroken_one(tiny, tmp_path):
    """Also where a part ends between two checkpoints."""
    config = replace(SHORT, check_every=3)
    expected = run(tiny, tmp_path / "whole", config)
    assert [bool(row["test_elbo"]) for row in metrics(tmp_path / "whole")] == [False, False, True, False]
    part = run(tiny, tmp_path / "parts", config, limit_epochs=2)
    assert (part.epochs, part.figures) == (2, None)
    assert not (tmp_path / "parts" / "result.json").exists()
    found = run(tiny, tmp_path / "parts", config, limit_epochs=2, resume=part.checkpoint)
    assert found.epochs == 4
    assert_same_run(found, expected)


class Weights(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, task):
        self.seen.append([p.detach().clone() for p in task.model.parameters()])

    def on_train_batch_end(self, trainer, task, *args):
        self.seen.append([p.detach().clone() for p in task.model.parameters()])


def test_moving_average_is_what_is_tested_and_kept(tiny, tmp_path):
    weights = Weights()
    found = run(tiny, tmp_path, replace(SHORT, epochs=1), callbacks=[weights])
    average = weights.seen[0]
    for step, current in enumerate(weights.seen[1:], 1):
        decay = min(0.8, step / (step + 9))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, current, strict=True)]
    model, config = load("iaf_vae", found.checkpoint)
    assert config == replace(SHORT, epochs=1)
    torch.testing.assert_close(list(model.parameters()), average)
    x = binarize_fixed(tiny.x_test)
    assert evaluate(model, x, samples=3, log_p_images=20) == found.figures
    with torch.no_grad():
        task = IAFTask("iaf_vae", model, config, tmp_path)
        bound = task.averaged.bound(x, **task.test_noise(x, 0, 60)).mean().item()
    assert float(metrics(tmp_path)[0]["test_elbo"]) == pytest.approx(bound)


def test_start_is_initialised_from_the_first_batch(tiny, tmp_path):
    class First(L.Callback):
        def on_train_batch_start(self, trainer, task, batch, index):
            if trainer.global_step == 0:
                with torch.no_grad():
                    features = task.model.encoder[:-1](batch)
                    self.std = features.std(0, correction=0)

    first = First()
    run(tiny, tmp_path, replace(SHORT, epochs=1), callbacks=[first])
    # The initialisation drew the binarisation of the first batch, which the first step sees again.
    torch.testing.assert_close(first.std, torch.ones(8), rtol=1e-3, atol=0)


def test_free_bits_are_not_penalised(tiny, tmp_path):
    run(tiny, tmp_path, replace(SHORT, epochs=2, free_bits=100.0))
    for row in metrics(tmp_path):
        loss, elbo, kl = (float(row[name]) for name in ("loss", "train_elbo", "train_kl"))
        assert loss == pytest.approx(-elbo - kl + 3 * 100.0, rel=1e-5)


def test_learning_rate_decays_geometrically():
    task = IAFTask("iaf_vae", IAFVAE(SMALL), replace(SHORT, learning_rate=1e-2, final_learning_rate=1e-4), folder=None)
    task.steps = 100
    assert [task.decay(step) for step in (0, 50, 75, 100, 120)] == pytest.approx([1, 1, 0.1, 0.01, 0.01])


def test_compile_is_asked_of_encoder_and_decoder(tiny, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    found = run(tiny, tmp_path, replace(SHORT, epochs=1, compile=True))
    assert len(compiled) == 2
    assert load("iaf_vae", found.checkpoint)[1].compile


def test_without_tensorboard(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(history, "find_spec", lambda name: None)
    run(tiny, tmp_path, replace(SHORT, epochs=1))
    assert "tensorboard is not installed: the losses go to CSV files only" in capsys.readouterr().out
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "logs" / "version_0" / "metrics.csv").exists()


def test_loss_that_is_not_finite(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"the loss became .* in epoch 1: try a lower learning rate"):
        run(tiny, tmp_path, replace(SHORT, learning_rate=1e30, final_learning_rate=1e30))
    assert not (tmp_path / "last.ckpt").exists()


def test_checkpoint_of_another_recipe(tiny, tmp_path):
    model = VAEConfig(latent_features=3, hidden_features=(8,))
    plain = train("vae", model, VAETrainConfig(1, 60), tmp_path / "a", images=tiny, evaluation=FEW)
    assert isinstance(load_checkpoint(plain.checkpoint)[1], VAE)
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of iaf_vae: its recipe is vae"):
        load("iaf_vae", plain.checkpoint)
    ours = run(tiny, tmp_path / "b", replace(SHORT, epochs=1))
    _, model, _ = load_checkpoint(ours.checkpoint, impl="reference")
    assert isinstance(model, IAFVAE)
    assert (model.config.impl, model.flow.impl) == ("reference", "reference")
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of vae: its recipe is iaf_vae"):
        load("vae", ours.checkpoint)


def test_two_processes_train_as_one_with_the_joint_batch(tiny, tmp_path):
    folders = train_on_one_and_two_processes("iaf_two_processes.py", tiny, tmp_path)
    for posterior in ("triangular", "iaf"):
        one, two = (metrics(folder / posterior) for folder in folders)
        assert len(one) == len(two) == 2
        for name in ("loss", "train_elbo", "train_kl", "test_elbo"):
            for ours, theirs in zip(two, one, strict=True):
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-9), (posterior, name)


@pytest.fixture
def keep_images(canonical):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)


def read_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "iaf_vae", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_command_line_in_parts_then_evaluate(keep_images, tmp_path, capsys):
    out, checkpoint = tmp_path / "out", str(tmp_path / "out" / "last.ckpt")
    assert cli.main(["train", "iaf_vae", *TINY_OPTIONS, "--limit-epochs", "1", "--out", str(out)]) == 0
    assert f"next: fastvae train iaf_vae --resume {checkpoint} --out {out}" in capsys.readouterr().out
    resuming = ["train", "iaf_vae", "--resume", checkpoint, "--config", str(out / "config.json"), "--out", str(out)]
    assert cli.main([*resuming, "--device", "cpu", "--no-progress"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 epochs" in printed
    assert "nats (K = 3, 20 images" in printed
    figures = tmp_path / "figures.json"
    evaluating = ["evaluate", checkpoint, "--samples", "3", "--images", "20", "--accelerator", "cpu"]
    assert cli.main([*evaluating, "--json", str(figures)]) == 0
    found, result = json.loads(figures.read_text()), json.loads((out / "result.json").read_text())
    # The chunks, and with them the noise of the importance samples, are those of the command.
    assert found["elbo"] == result["elbo"]


def test_command_line_wins_over_the_file(keep_images, tmp_path, monkeypatch):
    seen = []

    def record(system, settings, folder, **options):
        seen.append(settings)
        raise RecipeError("enough")

    monkeypatch.setattr(IAFVAESystem, "run", record)
    (tmp_path / "c.json").write_text(
        json.dumps({"recipe": "iaf_vae", "depth": 3, "model": {"width": 64, "feature_maps": [4, 8]}, "samples": 7})
    )
    arguments = ["train", "iaf_vae", "--config", str(tmp_path / "c.json"), "--depth", "5", "--compile"]
    assert cli.main(arguments) == 1
    assert seen[0].model == IAFVAEConfig(depth=5, width=64, feature_maps=(4, 8))
    assert seen[0].training == IAFTrainConfig(compile=True)
    assert seen[0].evaluation == EvaluationConfig(samples=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--depth 0", "depth must be >= 1, got 0"),
        ("--posterior flow", "invalid choice 'flow' for argument '--posterior'"),
        ("--learning-rate 0", "learning_rate must be > 0 and finite, got 0.0"),
        ("--free-bits -1", "free_bits must be >= 0 and finite, got -1.0"),
        ("--precision bf16", "invalid choice 'bf16' for argument '--precision'"),
        ("--device tpu", "invalid choice 'tpu' for argument '--device"),
    ],
)
def test_bad_option(arguments, message, capsys):
    assert message in read_error(capsys, *arguments.split())


def test_resume_with_other_settings(tiny, tmp_path, capsys):
    checkpoint = str(run(tiny, tmp_path, limit_epochs=1).checkpoint)
    said = read_error(capsys, "--resume", checkpoint, "--depth", "5")
    assert "--resume continues a run with depth = 2; it cannot become 5" in said


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "iaf_vae", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "free nats in every latent dimension (default: 0.01)" in said
    assert "feature maps of the encoder's stages. Each stage halves the image; the decoder mirrors them" in said
    assert "(default: 16 32 32)" in said
