"""Training, its checkpoints, and that neither a crash nor more processes change the losses."""

import json
import os
import pickle

import lightning as L
import numpy as np
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import POSTERIORS, VAEConfig, VAETrainConfig
from fastvae.recipes.training.history import curves_of
from tests.recipes.training_support import Crash, assert_same_run, load, metrics, train, train_on_one_and_two_processes

SMALL = VAEConfig(latent_features=4, hidden_features=(16,))
SHORT = VAETrainConfig(epochs=4, batch_size=60, learning_rate=1e-2)
FEW = EvaluationConfig(samples=4)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


class Losses(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.seen.append(outputs["loss"].item())


def run(tiny, folder, config=SHORT, model=SMALL, **options):
    return train("vae", model, config, folder, images=tiny, evaluation=FEW, **options)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_training_raises_the_bound(posterior, tiny, tmp_path):
    model = VAEConfig(posterior, latent_features=4, hidden_features=(32,))
    result = run(tiny, tmp_path, VAETrainConfig(epochs=20, batch_size=30, learning_rate=1e-2), model)
    history = curves_of(result.history, ("loss", "train_elbo", "test_elbo"))
    steps, bounds = zip(*history["test_elbo"], strict=True)
    assert steps == tuple(range(9, 200, 10))
    assert bounds[-1] > bounds[0] + 10
    assert history["train_elbo"][-1][1] > history["train_elbo"][0][1] + 10
    assert history["loss"][-1][1] < history["loss"][0][1] - 10
    assert result.images_per_second > 0


def test_start_is_at_the_mean_image(tiny, tmp_path):
    """The first loss is near the entropy of the mean image, far below that of a fair coin for each pixel."""
    losses = Losses()
    run(tiny, tmp_path, VAETrainConfig(epochs=1, batch_size=60, learning_rate=1e-6), callbacks=[losses])
    assert losses.seen[0] < 0.6 * 784 * np.log(2)


def test_seed_decides_the_losses(tiny, tmp_path):
    seen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        losses = Losses()
        run(tiny, tmp_path / name, VAETrainConfig(epochs=1, batch_size=60, seed=seed), callbacks=[losses])
        seen.append(losses.seen)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


class Bounds(L.Callback):
    """What the model's bound, loss and measure were called with."""

    def __init__(self):
        self.calls = []

    def on_train_start(self, trainer, task):
        for name in ("bound", "loss", "measure"):
            setattr(task.model, name, self.watch(task, name, getattr(task.model, name)))

    def watch(self, task, name, function):
        def record(*arguments, **options):
            generator = options.get("generator")
            seed = generator and generator.initial_seed()
            self.calls.append(options | {"name": name, "training": task.training, "seed": seed})
            return function(*arguments, **options)

        return record


def test_kl_warmup_starts_without_kl(tiny, tmp_path):
    bounds = Bounds()
    run(tiny, tmp_path, VAETrainConfig(epochs=2, batch_size=60, kl_warmup=1.0), callbacks=[bounds])
    betas = [call.get("beta", 1.0) for call in bounds.calls if call["training"]]
    assert betas == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])
    assert {call["name"] for call in bounds.calls if not call["training"]} == {"measure"}


def test_noise_is_new_in_every_step_and_the_same_in_every_test(tiny, tmp_path):
    bounds = Bounds()
    run(tiny, tmp_path, VAETrainConfig(epochs=2, batch_size=60), callbacks=[bounds])
    assert len({call["seed"] for call in bounds.calls if call["training"]}) == 10
    assert len({call["seed"] for call in bounds.calls if not call["training"]}) == 1


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(posterior, tiny, tmp_path):
    model = VAEConfig(posterior, latent_features=4, hidden_features=(16,))
    whole = Losses()
    expected = run(tiny, tmp_path / "whole", model=model, callbacks=[whole])
    with pytest.raises(RuntimeError, match="power failure"):
        run(tiny, tmp_path / "broken", model=model, callbacks=[Crash(2)])
    rest = Losses()
    checkpoint = tmp_path / "broken" / "last.ckpt"
    result = run(tiny, tmp_path / "broken", model=model, resume=checkpoint, callbacks=[rest])
    assert rest.seen == whole.seen[10:]
    for name, value in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value), name


def test_checkpoint_gives_back_the_model(tiny, tmp_path):
    result = run(tiny, tmp_path, VAETrainConfig(epochs=1, batch_size=60))
    assert result.checkpoint == tmp_path / "last.ckpt"
    model, config = load("vae", result.checkpoint)
    assert model.config == SMALL
    assert config == VAETrainConfig(epochs=1, batch_size=60)
    x = binarize_fixed(tiny.x_test)
    assert evaluate(model, x, samples=4) == evaluate(result.model, x, samples=4)
    assert load("vae", result.checkpoint, impl="reference")[0].head.impl == "reference"


def test_checkpoint_that_is_absent_or_foreign(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no checkpoint .*absent.ckpt"):
        load("vae", tmp_path / "absent.ckpt")
    with pytest.raises(RecipeError, match="cannot be read as a checkpoint"):
        load("vae", tmp_path)
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(RecipeError, match=r"text.ckpt cannot be read as a checkpoint"):
        load("vae", tmp_path / "text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(RecipeError, match=r"foreign.ckpt is no checkpoint of a fastvae recipe"):
        load("vae", tmp_path / "foreign.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(RecipeError, match=r"list.ckpt is no checkpoint of a fastvae recipe"):
        load("vae", tmp_path / "list.ckpt")


def test_truncated_checkpoint(tiny, tmp_path):
    path = run(tiny, tmp_path, VAETrainConfig(epochs=1, batch_size=60)).checkpoint
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(RecipeError, match="cannot be read as a checkpoint"):
        load("vae", path)


def test_checkpoint_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"state_dict": Payload()}, tmp_path / "zip.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("zip.ckpt", "raw.ckpt"):
        with pytest.raises(RecipeError, match="cannot be read as a checkpoint"):
            load("vae", tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_loss_that_is_not_finite(tiny, tmp_path):
    with pytest.raises(RecipeError, match=r"the loss became .* in epoch 1: try a lower learning rate"):
        run(tiny, tmp_path, VAETrainConfig(epochs=2, batch_size=60, learning_rate=1e30))
    assert not (tmp_path / "last.ckpt").exists()


def test_batch_larger_than_the_data(tiny, tmp_path):
    with pytest.raises(RecipeError, match="a batch of 301 is more than the 300 images"):
        run(tiny, tmp_path, VAETrainConfig(batch_size=301))


def test_batch_that_processes_cannot_share(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(RecipeError, match="a batch of 60 cannot be shared out evenly by 7 processes"):
        run(tiny, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpu_that_is_not_there(tiny, tmp_path):
    with pytest.raises(RecipeError, match="no CUDA device is visible"):
        run(tiny, tmp_path, accelerator="gpu")


def test_two_processes_have_the_losses_of_one_with_the_joint_batch(tiny, tmp_path):
    folders = train_on_one_and_two_processes("two_processes.py", tiny, tmp_path)
    one, two = (json.loads((folder / "losses.json").read_text()) for folder in folders)
    assert one.keys() == two.keys()
    # Ten steps of sums over 784 pixels, in another order.
    tolerance = 10 * 784 * torch.finfo(torch.float64).eps
    for name in one:
        assert len(one[name]["train"]) == 10
        for kind in ("train", "test"):
            assert two[name][kind] == pytest.approx(one[name][kind], rel=tolerance), (name, kind)
    # The cases differ among themselves by far more.
    assert abs(one["diagonal"]["train"][-1] / one["reference"]["train"][-1] - 1) > 1e6 * tolerance


def test_what_a_run_leaves_behind(tiny, tmp_path):
    result = run(tiny, tmp_path, VAETrainConfig(epochs=2, batch_size=60, check_every=2))
    rows = metrics(tmp_path)
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 5), (2, 10)]
    assert [bool(row["test_elbo"]) for row in rows] == [False, True]
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["recipe"], found["samples"], found["elbo"]) == ("vae", 4, result.figures.elbo)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["check_every"] == 2
    for name in ("samples", "reconstructions", "learning_curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_run_in_parts_ends_as_an_unbroken_one(tiny, tmp_path):
    expected = run(tiny, tmp_path / "whole")
    part = run(tiny, tmp_path / "parts", limit_epochs=3)
    assert (part.epochs, part.planned_epochs, part.figures) == (3, 4, None)
    found = run(tiny, tmp_path / "parts", limit_epochs=3, resume=part.checkpoint)
    assert_same_run(found, expected)
    again = run(tiny, tmp_path / "parts", resume=found.checkpoint)
    assert again.images_per_second is None
    assert_same_run(again, expected)
