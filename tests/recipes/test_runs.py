"""A run in its folder: what stops it, what it may replace, what it continues."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from fastvae.recipes import RecipeError, files, latent_system
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.iaf_vae.config import IAFTrainConfig, IAFVAEConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.training import checkpoints, interrupts
from fastvae.recipes.training.checkpoints import epochs_done, read_checkpoint
from fastvae.recipes.training.folder import hold_folder
from tests.recipes import killed_runs
from tests.recipes.training_support import assert_same_weights as assert_same
from tests.recipes.training_support import train, watched_saves

SMALL = VAEConfig(latent_features=4, hidden_features=(16,))
SHORT = VAETrainConfig(epochs=3, batch_size=60, learning_rate=1e-2)
FLOW = IAFVAEConfig(latent_features=3, depth=1, width=8, feature_maps=(2,), dense_features=8)
FLOW_SHORT = IAFTrainConfig(epochs=4, batch_size=60, average_decay=0.8, check_every=3)
FEW = EvaluationConfig(samples=3, log_p_images=20)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def run(tiny, folder, config=SHORT, model=SMALL, **options):
    return train("vae", model, config, folder, images=tiny, evaluation=FEW, **options)


def run_flow(tiny, folder, config=FLOW_SHORT, **options):
    return train("iaf_vae", FLOW, config, folder, evaluation=FEW, images=tiny, **options)


class Send(L.Callback):
    """A signal to this process at the end of one step."""

    def __init__(self, number, epoch, index):
        self.number, self.when = number, (epoch, index)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (trainer.current_epoch, index) == self.when:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def _interruptible():
    """Shells let what runs in the background ignore interrupts, and a run does as it finds."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("epoch", [0, 1])
def test_signal_leaves_a_checkpoint_that_resumes(number, epoch, tiny, tmp_path, capsys):
    expected = run(tiny, tmp_path / "whole")
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop:
        run(tiny, tmp_path / "out", callbacks=[Send(number, epoch, 2)])
    assert stop.value.code == 128 + number
    checkpoint = tmp_path / "out" / "last.ckpt"
    said = capsys.readouterr().err
    assert f"fastvae: stopped by {number.name}; continue with --resume {checkpoint}\n" in said
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    assert epochs_done(read_checkpoint(checkpoint)) == epoch
    assert_same(run(tiny, tmp_path / "out", resume=checkpoint), expected)


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_signal_between_checkpoints_loses_no_whole_epoch(epoch, tiny, tmp_path):
    expected = run_flow(tiny, tmp_path / "whole")
    with pytest.raises(SystemExit):
        run_flow(tiny, tmp_path / "out", callbacks=[Send(signal.SIGTERM, epoch, 2)])
    checkpoint = tmp_path / "out" / "last.ckpt"
    assert epochs_done(read_checkpoint(checkpoint)) == epoch
    found = run_flow(tiny, tmp_path / "out", resume=checkpoint)
    assert_same(found, expected)
    assert found.figures == expected.figures


def test_no_handler_of_lightning_runs_during_training(tiny, tmp_path):
    """Its own tells other processes of the signal, while they are in the midst of a step."""
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, *arguments):
            seen.append(signal.getsignal(signal.SIGTERM))

    run(tiny, tmp_path, callbacks=[Look()])
    assert set(seen) == {interrupts.stop}


def test_signal_to_a_process(tmp_path):
    """Its exit status, and that nothing but one line is said."""
    program = (
        "import signal, sys; from pathlib import Path\n"
        "from tests.recipes import killed_runs; from tests.recipes.test_runs import Send\n"
        "killed_runs.run(Path(sys.argv[1]), callbacks=[Send(signal.SIGTERM, 1, 1)])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 143, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1] == (
        f"fastvae: stopped by SIGTERM; continue with --resume {tmp_path / 'last.ckpt'}"
    )


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_signal_during_a_save_loses_neither_checkpoint(call, tiny, tmp_path, monkeypatch):
    expected = run(tiny, tmp_path / "whole")
    sound, calls = getattr(os, call), []

    def send_signal(*arguments):
        calls.extend(saving)
        if saving and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return sound(*arguments)

    monkeypatch.setattr(files.os, call, send_signal)
    with watched_saves() as saving, pytest.raises(SystemExit) as stop:
        run(tiny, tmp_path / "out")
    monkeypatch.undo()
    assert stop.value.code == 143
    checkpoint = tmp_path / "out" / "last.ckpt"
    assert epochs_done(read_checkpoint(checkpoint)) >= 1
    assert not list(checkpoint.parent.glob(files.PART + "*"))
    assert_same(run(tiny, tmp_path / "out", resume=checkpoint), expected)


def test_full_disk_ends_a_run_with_one_line(tiny, tmp_path, monkeypatch):
    expected = run(tiny, tmp_path / "whole")
    sound, written = checkpoints.open_replacement, []

    def open_replacement(path):
        written.append(path)
        if len(written) == 2:
            return sound(Path("/dev/full") / path.name)
        return sound(path)

    monkeypatch.setattr(checkpoints, "open_replacement", open_replacement)
    with pytest.raises(RecipeError, match="cannot be written"):
        run(tiny, tmp_path / "out")
    monkeypatch.undo()
    checkpoint = tmp_path / "out" / "last.ckpt"
    assert epochs_done(read_checkpoint(checkpoint)) == 1
    assert_same(run(tiny, tmp_path / "out", resume=checkpoint), expected)


def test_logs_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(RecipeError, match=r"the training stopped: .*logs"):
        run(tiny, tmp_path)


def test_folder_that_cannot_be_made(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match=r"nothing can be written in .*file/out: Not a directory; give another"):
        run(tiny, tmp_path / "file" / "out")


def test_two_runs_in_one_folder(tiny, tmp_path):
    with (
        hold_folder(tmp_path),
        pytest.raises(RecipeError, match=r"another run is writing in .*give this one another folder"),
    ):
        run(tiny, tmp_path)
    run(tiny, tmp_path)


def test_killed_process_holds_no_folder(tmp_path):
    program = (
        "import sys, os, signal; from pathlib import Path; from fastvae.recipes.training.folder import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run([sys.executable, "-c", program, tmp_path], env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == -signal.SIGKILL
    with hold_folder(tmp_path):
        pass


def stop_early(tiny, folder, **options):
    with pytest.raises(SystemExit):
        run(tiny, folder, callbacks=[Send(signal.SIGTERM, 1, 2)], **options)
    return folder / "last.ckpt"


def test_unfinished_run_is_not_replaced_unasked(tiny, tmp_path):
    checkpoint = stop_early(tiny, tmp_path / "out")
    other = stop_early(tiny, tmp_path / "other")
    before = checkpoint.read_bytes()
    message = r"last.ckpt holds a run that is not finished, 1 of 3 epochs: continue it \(--resume .*give another folder"
    for resume in (None, other):
        with pytest.raises(RecipeError, match=message):
            run(tiny, tmp_path / "out", resume=resume)
    with pytest.raises(RecipeError, match=message):
        run_flow(tiny, tmp_path / "out")
    assert checkpoint.read_bytes() == before
    assert json.loads((tmp_path / "out" / "config.json").read_text())["recipe"] == "vae"
    run(tiny, tmp_path / "out", overwrite=True)
    # A finished one is.
    run(tiny, tmp_path / "out", replace(SHORT, epochs=1))


def test_damaged_checkpoint_is_not_replaced_unasked(tiny, tmp_path):
    (tmp_path / "last.ckpt").write_text("valuable")
    with pytest.raises(RecipeError, match=r"last.ckpt is damaged, or of another program: give another folder"):
        run(tiny, tmp_path)


def test_finished_run_resumed_in_another_folder(tiny, tmp_path, capsys):
    first = run_flow(tiny, tmp_path / "a")
    found = run_flow(tiny, tmp_path / "b", resume=first.checkpoint)
    assert f"{first.checkpoint} holds all 4 epochs: nothing is left to train" in capsys.readouterr().out
    assert found.checkpoint == tmp_path / "b" / "last.ckpt"
    assert_same(found, first)
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ba")
    assert ours["elbo"] == theirs["elbo"]
    shutil.rmtree(tmp_path / "a")
    assert_same(run_flow(tiny, tmp_path / "b", resume=found.checkpoint), first)


def test_finished_run_has_its_checkpoint_in_another_folder(tiny, tmp_path):
    first = run(tiny, tmp_path / "a")
    found = run(tiny, tmp_path / "b", resume=first.checkpoint)
    assert epochs_done(read_checkpoint(found.checkpoint)) == 3
    assert_same(found, first)


def test_run_resumed_in_another_folder(tiny, tmp_path):
    expected = run(tiny, tmp_path / "whole")
    checkpoint = stop_early(tiny, tmp_path / "a")
    before = checkpoint.read_bytes()
    assert_same(run(tiny, tmp_path / "b", resume=checkpoint), expected)
    assert checkpoint.read_bytes() == before
    assert epochs_done(read_checkpoint(tmp_path / "b" / "last.ckpt")) == 3


def test_resume_with_other_settings_or_of_another_recipe(tiny, tmp_path):
    checkpoint = stop_early(tiny, tmp_path)
    with pytest.raises(RecipeError, match=r"is of a run with epochs = 3; it cannot become 9"):
        run(tiny, tmp_path, replace(SHORT, epochs=9), resume=checkpoint)
    with pytest.raises(RecipeError, match=r"is of a run with hidden_features = \[16\]; it cannot become \[8\]"):
        run(tiny, tmp_path, model=replace(SMALL, hidden_features=(8,)), resume=checkpoint)
    with pytest.raises(RecipeError, match=r"is no checkpoint of iaf_vae: its recipe is vae"):
        run_flow(tiny, tmp_path, resume=checkpoint)


def test_history_of_a_checkpoint_is_figures(tiny, tmp_path):
    checkpoint = run_flow(tiny, tmp_path, limit_epochs=1).checkpoint
    content = torch.load(checkpoint, weights_only=True)
    content["history"][0]["column of another"] = 1.0
    torch.save(content, checkpoint)
    with pytest.raises(RecipeError, match="its history is no list of the figures of epochs"):
        run_flow(tiny, tmp_path, resume=checkpoint)


@pytest.mark.parametrize("name", ["elbo", "log_p"])
def test_figures_that_are_not_finite(name, tiny, tmp_path, monkeypatch):
    sound = latent_system.evaluate

    def diverge(*arguments, **options):
        return replace(sound(*arguments, **options), **{name: math.nan})

    monkeypatch.setattr(latent_system, "evaluate", diverge)
    with pytest.raises(RecipeError, match=f"the trained model has {name} = nan: try a lower learning rate"):
        run_flow(tiny, tmp_path)

    def refuse(token):
        raise AssertionError(token)

    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)[name] is None


def test_diverged_model_fails_where_only_the_test_shows_it(tiny, tmp_path):
    """The one step of the run has a finite loss, and weights after it that give none."""
    config = VAETrainConfig(epochs=1, batch_size=300, learning_rate=1e37)
    with pytest.raises(RecipeError, match=r"the test_elbo became .* in epoch 1: try a lower learning rate"):
        run(tiny, tmp_path, config)
    assert not (tmp_path / "last.ckpt").exists()


def test_killed_runs_and_full_disks(tmp_path):
    """One round of each of the first three troubles; by hand, killed_runs.py runs any number."""
    assert len(killed_runs.main(tmp_path, 3)) == 3
