"""Checkpoints: what a hostile or damaged one may do, and that none is lost while another is written."""

import errno
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fastvae.recipes import RecipeError, files
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.training import archives, checkpoints
from fastvae.recipes.training.checkpoints import read_checkpoint, write_checkpoint
from tests.recipes.training_support import Crash, load, train

SMALL = VAEConfig(latent_features=4, hidden_features=(16,))
SHORT = VAETrainConfig(epochs=3, batch_size=60, learning_rate=1e-2)
CONTENT = {"hyper_parameters": {"x": 1}, "state_dict": {"weight": torch.arange(1000.0)}}

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def run(tiny, folder, **options):
    return train("vae", SMALL, SHORT, folder, images=tiny, evaluation=EvaluationConfig(samples=2), **options)


@pytest.fixture
def broken_checkpoint(tiny, tmp_path):
    """The checkpoint of a run that broke off after its first epoch."""
    with pytest.raises(RuntimeError, match="power failure"):
        run(tiny, tmp_path / "out", callbacks=[Crash()])
    return tmp_path / "out" / "last.ckpt"


def edit(path, change):
    """Replaces a checkpoint by one without a checksum whose content ``change`` changed."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


# What a checkpoint names

# In the folder of a ModelCheckpoint that the caller has.
OWN = ("{out}/mine/file", "{out}/mine/../../victim/file")


@pytest.mark.parametrize("form", ["{victim}", "{out}/../victim", "local://{victim}", "{out}/mine", *OWN])
def test_callback_state_that_names_files_is_ignored(form, tiny, broken_checkpoint, tmp_path):
    """Lightning's ModelCheckpoint removes with all that is in it what such a state calls its last checkpoint."""
    out, victim = broken_checkpoint.parent, tmp_path / "victim"
    for folder in (victim, out / "mine"):
        folder.mkdir()
        (folder / "file").write_text("precious")
    path = form.format(victim=victim, out=out)
    state = {"best_model_path": path, "last_model_path": path, "kth_best_model_path": path, "dirpath": str(out)}
    state |= {"best_k_models": {path: torch.tensor(0.0)}, "kth_value": torch.tensor(0.0), "best_model_score": None}
    callback = ModelCheckpoint(str(out), "last", every_n_epochs=1, save_on_train_epoch_end=True)
    own = ModelCheckpoint(str(out / "mine"), "own", every_n_epochs=2, save_on_train_epoch_end=True)

    def attack(content):
        content["callbacks"] = dict.fromkeys((callback.state_key, own.state_key, "LastCheckpoint"), state)

    edit(broken_checkpoint, attack)
    run(tiny, out, resume=broken_checkpoint, callbacks=[own])
    assert (victim / "file").read_text() == "precious"
    assert (out / "mine" / "file").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim"]


def test_callback_state_without_files_is_restored(tiny, tmp_path):
    class Count(L.Callback):
        steps = 0

        def on_train_batch_end(self, *args):
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    first, second = Count(), Count()
    with pytest.raises(RuntimeError, match="power failure"):
        run(tiny, tmp_path, callbacks=[first, Crash()])
    run(tiny, tmp_path, callbacks=[second], resume=tmp_path / "last.ckpt")
    assert second.steps == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("loops"), "it holds no state of a training"),
        (lambda content: content["loops"]["fit_loop"].pop("epoch_progress"), "it holds no state of a training"),
        (lambda content: progress(content).update(processed=99), "it claims 99 of 3 epochs"),
        (lambda content: progress(content).update(processed=-1), "it claims -1 of 3 epochs"),
        (lambda content: content["loops"]["fit_loop"].update({"epoch_loop.batch_progress": 3}), "cannot be continued"),
        (lambda content: content.pop("optimizer_states"), "cannot be continued"),
        (lambda content: content.update({"pytorch-lightning_version": "x"}), "cannot be continued"),
        (lambda content: content["state_dict"].popitem(), "cannot be continued"),
        (lambda content: moments(content).update(exp_avg=torch.zeros(3)), r"exp_avg of the optimiser is \(3,\), not"),
        (lambda content: moments(content).update(exp_avg=3), "exp_avg of the optimiser is no tensor"),
        (lambda content: moments(content).update(exp_avg=far(content)), "is not contiguous, or of integers"),
        (lambda content: moments(content).pop("exp_avg"), "cannot be continued"),
        (lambda content: group(content).update(amsgrad=True), "amsgrad of the optimiser is True, not False"),
        (lambda content: content["lr_schedulers"][0].update(optimizer=3), "cannot be continued"),
        (lambda content: content["hyper_parameters"]["training"].update(seed=7), "seed = 7; it cannot become 0"),
        (lambda content: content["hyper_parameters"].pop("model"), "it has no settings of its model"),
    ],
)
def test_checkpoint_that_does_not_fit(change, message, tiny, broken_checkpoint):
    edit(broken_checkpoint, change)
    with pytest.raises(RecipeError, match=message) as error:
        run(tiny, broken_checkpoint.parent, resume=broken_checkpoint)
    assert "\n" not in str(error.value)


def progress(content):
    return content["loops"]["fit_loop"]["epoch_progress"]["current"]


def moments(content):
    return content["optimizer_states"][0]["state"][0]


def group(content):
    return content["optimizer_states"][0]["param_groups"][0]


def far(content):
    """The last element of a storage, as often as a parameter has elements."""
    shape = moments(content)["exp_avg"].shape
    return torch.zeros(shape.numel() + 1)[-1:].expand(shape)


# Damage


def test_every_damage_is_found(tmp_path):
    path = tmp_path / "c.ckpt"
    write_checkpoint(CONTENT, path)
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.arange(1000.0))
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"x": 1}
    sound = path.read_bytes()
    for place in range(0, len(sound), 41):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        with pytest.raises(RecipeError, match="cannot be read as a checkpoint: it is"):
            read_checkpoint(path)
    for length in (0, 1, 30, len(sound) // 2, len(sound) - 79, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(RecipeError, match="cannot be read as a checkpoint: it is"):
            read_checkpoint(path)


def test_checkpoint_without_checksum_is_read_and_damage_in_its_tensors_is_found(tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save(CONTENT, path)
    assert read_checkpoint(path)["hyper_parameters"] == {"x": 1}
    sound = path.read_bytes()
    place = sound.index(torch.arange(1000.0).numpy().tobytes()) + 100
    path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
    with pytest.raises(RecipeError, match=r"it is damaged: .*data/0 in it does not fit its checksum"):
        read_checkpoint(path)


def entries_of(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_compressed_checkpoint_is_refused(tmp_path):
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries_of(CONTENT | {"zeros": torch.zeros(1 << 22)}).items():
            archive.writestr(name, data)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(RecipeError, match="it is compressed, which no checkpoint is"):
        read_checkpoint(path)


def test_overlapping_entries_are_refused(tmp_path):
    path = tmp_path / "overlap.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries_of(CONTENT).items():
            archive.writestr(name, data)
        archive.filelist[-1].header_offset = archive.filelist[0].header_offset
    with pytest.raises(RecipeError, match="parts of it overlap"):
        read_checkpoint(path)


def test_entries_longer_than_the_file_are_refused(tmp_path):
    path = tmp_path / "long.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries_of(CONTENT).items():
            archive.writestr(name, data)
        archive.filelist[-1].file_size = archive.filelist[-1].compress_size = 1 << 40
    with pytest.raises(RecipeError, match="parts of it are longer than the file"):
        read_checkpoint(path)


def test_bytes_before_the_archive_are_refused(tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save(CONTENT, path)
    path.write_bytes(b"#!" + path.read_bytes())
    with pytest.raises(RecipeError, match="it does not begin with its first part"):
        read_checkpoint(path)


class Call:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "value",
    [
        Call(bytearray, 1 << 50),
        Call(torch.FloatTensor, 1 << 50),
        Call(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1 << 50,), (1,), False),
        Call(os.mkdir, "harm"),
        Call(OrderedDict, {"of": "a dictionary"}),
        b"encoded text",
    ],
    ids=["bytearray", "tensor", "meta", "code", "copy", "bytes"],
)
def test_values_made_by_calls_are_refused(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(CONTENT | {"value": value}, "c.ckpt")
    with pytest.raises(RecipeError, match="it holds more than tensors and plain data"):
        read_checkpoint(Path("c.ckpt"))
    Path("raw.ckpt").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(RecipeError, match="cannot be read as a checkpoint"):
        read_checkpoint(Path("raw.ckpt"))
    assert not Path("harm").exists()


def test_tensor_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save(CONTENT | {"states": [{"exp_avg": torch.zeros(1).expand(1 << 50)}]}, path)
    with pytest.raises(RecipeError, match=r"a tensor \(1125899906842624,\) in it has more elements than are stored"):
        read_checkpoint(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(RecipeError, match="cannot be read as a checkpoint: it is no file"):
            read_checkpoint(path)


# Writing


class Disk(io.FileIO):
    """A file on a disk that is full after 100 bytes."""

    def write(self, data):
        if self.tell() + len(data) > 100:
            super().write(bytes(data)[: 100 - self.tell()])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.ckpt"
    write_checkpoint(CONTENT, path)
    before = path.read_bytes()
    monkeypatch.setattr(files, "open", lambda path, mode: Disk(path, mode.replace("b", "")), raising=False)
    with pytest.raises(RecipeError, match=r"c.ckpt cannot be written: No space left .*; what was there"):
        write_checkpoint({"hyper_parameters": {}}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["c.ckpt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_before_the_end_leaves_the_earlier_file(step, tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(RecipeError, match=r"file.json cannot be written: Input/output error"):
        files.write_json(path, {"a": 2})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["file.json"]


def test_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    calls = []

    def record(name):
        function = getattr(os, name)

        def call(first, *others):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(first)
            calls.append((name, Path(path).name.startswith(files.PART)))
            return function(first, *others)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, record(name))
    write_checkpoint(CONTENT, tmp_path / "c.ckpt")
    assert calls == [("fsync", True), ("replace", True), ("fsync", False)]


def test_files_have_the_permissions_of_new_files(tmp_path):
    (tmp_path / "plain").write_text("")
    files.write_json(tmp_path / "file.json", {})
    assert (tmp_path / "file.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_has_null_for_what_is_not_finite(tmp_path):
    files.write_json(tmp_path / "f.json", {"a": [float("nan"), 1.5], "b": (float("-inf"), True, "x")})
    text = (tmp_path / "f.json").read_text()
    assert '"a": [null, 1.5],\n' in text
    assert text.split() == '{ "a": [null, 1.5], "b": [ null, true, "x" ] }'.split()


def test_what_a_killed_run_left_is_removed(tiny, tmp_path):
    leftover, foreign = tmp_path / f"{files.PART}0123", tmp_path / "other.part"
    for path in (leftover, foreign):
        path.write_text("half")
    run(tiny, tmp_path)
    assert not leftover.exists()
    assert foreign.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_features": [1 << 40]},
        {"latent_features": 1 << 40},
        {"latent_features": 5},
        {"data_features": "many"},
        {"hidden_features": None},
    ],
)
def test_settings_larger_than_the_weights_are_refused(change, broken_checkpoint):
    edit(broken_checkpoint, lambda content: content["hyper_parameters"]["model"].update(change))
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of vae: ") as error:
        load("vae", broken_checkpoint)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("layers", 1 << 40), ("filter_size", (1 << 40) + 1)])
def test_model_of_endless_parts_is_refused_before_it_is_made(name, value):
    def make():
        raise AssertionError("made")

    with pytest.raises(ValueError, match=f"{name} = {value} does not fit its 1 tensors of 1000 elements"):
        checkpoints.model_of(make, {name: value}, CONTENT["state_dict"])


def test_weights_that_are_no_tensors_are_refused(broken_checkpoint):
    edit(broken_checkpoint, lambda content: content["state_dict"].update({"model.head.weight": 3}))
    with pytest.raises(RecipeError, match=r"last.ckpt is no checkpoint of vae: "):
        load("vae", broken_checkpoint)


def test_checkpoint_of_a_run_has_a_checksum(broken_checkpoint):
    with zipfile.ZipFile(broken_checkpoint) as archive:
        assert archive.comment.startswith(archives.LABEL)
    model, config = load("vae", broken_checkpoint)
    assert (model.config, config) == (SMALL, SHORT)
