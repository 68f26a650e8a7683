"""Every command with every option it has: whatever does not fit ends in one line and a status, never in a traceback."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch
from PIL import Image

from fastvae import backend
from fastvae.recipes import RecipeError
from fastvae.recipes import files as paths
from fastvae.recipes.cli import compression, run_options, trained
from fastvae.recipes.cli import demo as demo_command
from fastvae.recipes.cli import main as cli
from fastvae.recipes.cli.run_options import RunOptions
from fastvae.recipes.cli.settings import list_options
from fastvae.recipes.cli.train import make_command
from fastvae.recipes.data import mnist as data
from fastvae.recipes.systems.catalogue import CATALOGUE
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelTrainConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from fastvae.recipes.uses import image_files
from fastvae.recipes.uses.compress import compress_images

COMMANDS = (
    "train vae",
    "train iaf_vae",
    "train pixelcnn",
    "train pixelvae",
    "train posterior2d",
    "evaluate {vae}",
    "sample {vae} -o {out}",
    "reconstruct {vae} -o {out}",
    "compress {picture} --checkpoint {pixelcnn} -o {out}",
    "decompress {compressed} --checkpoint {pixelcnn} -o {out}",
    "demo",
)
# By the type of an option. Some whole numbers may be 0.
BAD_VALUES = {
    int: ("-1", "1.5", "many", "", "nan", str(2**64), "9" * 5000),
    float: ("many", "nan", "inf", "-inf", "-1", ""),
}
OF_COMMANDS = {
    "evaluate": trained.EvaluateOptions,
    "sample": trained.SampleOptions,
    "reconstruct": trained.ReconstructOptions,
    "compress": compression.CompressOptions,
    "decompress": compression.DecompressOptions,
    "demo": demo_command.DemoOptions,
} | {f"train {name}": make_command(find_system(name).settings, RunOptions()) for name in CATALOGUE}
INPUTS = ("absent", "empty", "foreign", "folder", "below a file", "nul")
TARGETS = {"--out": ("below a file", "in proc"), "--json": ("below a file", "absent folder", "folder", "in proc")}


@pytest.fixture
def files(canonical, tmp_path, monkeypatch):
    """A working folder, sound inputs, and paths where nothing can be read or written."""
    monkeypatch.chdir(tmp_path)
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    network = BinaryPixelCNN(PixelCNNConfig(layers=2, filter_size=3, maps=4))
    model = VAE(VAEConfig(latent_features=2, hidden_features=(4,)))

    def save(name, model, training, prefix, **more):
        weights = {f"{prefix}.{key}": value for key, value in model.state_dict().items()}
        plain = {"model": model.config.as_dict(), "training": asdict(training)} | more
        torch.save({"hyper_parameters": plain, "state_dict": weights}, tmp_path / name)

    save("vae.ckpt", model, VAETrainConfig(), "model")
    save("pixelcnn.ckpt", network, PixelTrainConfig(), "averaged", recipe="pixelcnn")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "white.png")
    (tmp_path / "one.fvpx").write_bytes(compress_images(network.network, torch.zeros(1, 1, 4, 4)))
    (tmp_path / "empty").touch()
    (tmp_path / "foreign").write_bytes(b"PK\3\4 this is some other file\n" * 9)
    (tmp_path / "folder").mkdir()
    return {
        "vae": "vae.ckpt",
        "pixelcnn": "pixelcnn.ckpt",
        "picture": "white.png",
        "compressed": "one.fvpx",
        "out": "out.png",
        "absent": "absent",
        "empty": "empty",
        "foreign": "foreign",
        "folder": "folder",
        "below a file": "empty/below",
        "absent folder": "absent/file",
        "in proc": "/proc/fastvae/out",
        "nul": "a\0b",
    }


def options_of(command):
    """The options of a command, which begins with its name, but for those that have only a place."""
    words = command.split()
    kind = OF_COMMANDS[" ".join(words[: 2 if words[0] == "train" else 1])]
    without = ("posterior",) if words[0] == "demo" else ()
    return [option for option in list_options(kind, without) if option.flags]


def base_of(option):
    """The type of an option, of its parts where there are several, and without None."""
    kind = option.kind
    if get_origin(kind) in (Union, UnionType, tuple):
        kind = get_args(kind)[0]
    return kind


def is_choice(option):
    return get_origin(base_of(option)) is Literal


def read_error(capsys, arguments, *, status=(1, 2)):
    """Runs the command line; what it says of the error."""
    try:
        found = cli.main(arguments)
    except SystemExit as stop:
        found = stop.code
    said = capsys.readouterr().err
    assert found in status, said
    assert said.startswith("fastvae"), said
    assert ": error: " in said
    assert said.count("\n") == 1
    assert said.endswith("\n")
    return said


def words(command, files):
    return command.format(**files).split()


OPTIONS = [
    (command, option.name)
    for command in COMMANDS
    for option in options_of(command)
    # Labels, which no model has, are none of a range.
    if (is_choice(option) or base_of(option) in BAD_VALUES) and option.name != "labels"
]


@pytest.mark.parametrize(("command", "name"), OPTIONS)
def test_values_out_of_range(command, name, files, capsys):
    [option] = [option for option in options_of(command) if name == option.name]
    for value in ("none-such",) if is_choice(option) else BAD_VALUES[base_of(option)]:
        # A value that begins with a dash must not look like an option.
        said = read_error(capsys, [*words(command, files), f"{option.flags[0]}={value}"])
        assert any(flag in said for flag in option.flags) or name in said, value
    assert not Path("out.png").exists()
    assert not list(Path().glob("*-out"))


def test_every_option_has_bad_values():
    without = {
        option.name
        for command in COMMANDS
        for option in options_of(command)
        if not is_choice(option) and base_of(option) not in (*BAD_VALUES, bool)
    }
    # Paths, which other tests go through.
    assert without == {"out", "resume", "config", "json", "work", "checkpoint"}


CALLS = {
    "evaluate {}": "evaluate {bad} --accelerator cpu",
    "sample {}": "sample {bad} -o {out}",
    "reconstruct {}": "reconstruct {bad} -o {out}",
    "decompress {}": "decompress {bad} --checkpoint {pixelcnn} -o {out}",
    "decompress --checkpoint": "decompress {compressed} --checkpoint {bad} -o {out}",
    "compress {}": "compress {bad} --checkpoint {pixelcnn} -o {out}",
    "compress --checkpoint": "compress {picture} --checkpoint {bad} -o {out}",
} | {
    f"{command} {option}": f"{command} {option} {{bad}}"
    for command in COMMANDS
    if command.startswith("train")
    for option in ("--resume", "--config")
}


@pytest.mark.parametrize("bad", INPUTS)
@pytest.mark.parametrize("call", CALLS)
def test_inputs(call, bad, files, capsys):
    arguments = [word.format(**files, bad=files[bad]) for word in CALLS[call].split()]
    read_error(capsys, arguments)
    assert not Path("out.png").exists()


@pytest.mark.parametrize(
    ("command", "target"),
    [("train posterior2d --steps 1 --out", target) for target in TARGETS["--out"]]
    + [("demo --epochs 1 --out", target) for target in TARGETS["--out"]]
    + [(f"train {recipe} --epochs 1 --out", target) for recipe in ("vae", "iaf_vae") for target in TARGETS["--out"]]
    + [(f"evaluate {{vae}} {option}", target) for option in ("--json", "--work") for target in TARGETS["--json"]]
    + [("compress {picture} --checkpoint {pixelcnn} -o", target) for target in TARGETS["--json"]]
    + [("decompress {compressed} --checkpoint {pixelcnn} -o", target) for target in TARGETS["--json"]],
)
def test_targets(command, target, files, capsys):
    said = read_error(capsys, [*words(command, files), files[target]])
    assert files[target].split("/")[0] in said or "/proc" in said


def test_figures_are_not_computed_for_a_file_that_cannot_be_written(files, capsys, monkeypatch):
    monkeypatch.setattr(trained, "load_checkpoint", None)
    assert "it is a folder; name a file" in read_error(capsys, ["evaluate", "vae.ckpt", "--json", "folder"])
    monkeypatch.setattr(type(find_system("posterior2d")), "make_model", None)
    assert "name another folder with --out" in read_error(capsys, ["train", "posterior2d", "--out", "empty"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": {"maps": 4, "maps": 8}}', "it sets 'maps' twice in one table"),
        ('{"maps": 4, "model": {"maps": 8}}', "sets 'maps' twice"),
        ('{"learning_rate": NaN}', "learning_rate must be a number, got nan"),
        ('{"learning_rate": Infinity}', "learning_rate must be a finite number, got inf"),
        ('{"learning_rate": -1e999}', "learning_rate must be a finite number, got -inf"),
        ('{"learning_rat": 1}', "the nearest is 'learning_rate'"),
        ('{"epochs": 0}', "epochs must be >= 1, got 0"),
        ('{"epochs": 1e3}', "epochs must be of type int"),
        ('{"seed": 18446744073709551616}', "seed must be <= 4294967295, got 18446744073709551616"),
        ('{"seed": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("[" * 100_000, "nests too many"),
        ("{", "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        (" " * (1 << 20) + "{}", "must have at most 1048576 bytes"),
    ],
)
def test_configuration_files(content, message, files, capsys):
    Path("bad.json").write_bytes(content.encode("latin1"))
    assert message in read_error(capsys, ["train", "pixelcnn", "--config", "bad.json"])


def test_implementation_that_cannot_run(files, capsys, monkeypatch):
    def resolve(impl, *tensors):
        raise RuntimeError(f"impl={impl!r} cannot run on cpu tensors here")

    monkeypatch.setattr(run_options.backend, "resolve", resolve)
    for command in [command for command in COMMANDS if command.split()[0] in ("train", "evaluate", "demo")]:
        said = read_error(capsys, [*words(command, files), "--impl", "triton", "--accelerator", "cpu"])
        assert "impl='triton' cannot run on cpu tensors here; choose another one: --impl auto" in said
    assert not list(Path().glob("*-out"))


@pytest.mark.parametrize(
    ("error", "message", "status"),
    [
        (KeyboardInterrupt(), "stopped by SIGINT", 130),
        (MemoryError(), "there is not enough memory", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "there is not enough memory", 1),
        (OSError(28, "No space left on device"), "reading or writing failed: No space left on device", 1),
        (OSError(28, "No space left on device", "x.csv"), "x.csv: No space left on device", 1),
        (ValueError("one\n  two\n"), "error: one two", 1),
        (KeyError("x"), "unexpected KeyError: 'x'; FASTVAE_TRACEBACK=1 shows where", 1),
    ],
)
def test_whatever_a_command_raises(error, message, status, capsys, monkeypatch):
    def report():
        raise error

    monkeypatch.setattr(backend, "report", report)
    monkeypatch.delenv(cli.TRACEBACK, raising=False)
    assert message in read_error(capsys, ["report"], status=(status,))
    monkeypatch.setenv(cli.TRACEBACK, "1")
    if isinstance(error, Exception):
        with pytest.raises(type(error)):
            cli.main(["report"])


def test_output_that_cannot_be_written():
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "fastvae", "report"],
            env=os.environ | {"PYTHONPATH": path},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert run.returncode == 1
    assert run.stderr == "fastvae: error: reading or writing failed: No space left on device\n"


def test_files_are_whole_or_as_they_were(tmp_path, monkeypatch):
    target = tmp_path / "result"
    paths.replace_file(target, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(RecipeError, match="result cannot be written: No space left on device"):
        paths.replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result"]
    monkeypatch.undo()
    link = tmp_path / "link"
    link.symlink_to(target)
    paths.replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["link", "result"]


def test_devices_are_written_to_and_stay(tmp_path):
    read_end, write_end = os.pipe()
    paths.replace_file(Path(f"/proc/self/fd/{write_end}"), b"piped")
    assert os.read(read_end, 9) == b"piped"
    os.close(read_end)
    os.close(write_end)


def test_pictures_that_expand_beyond_reason(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (5000, 5000)).save(path)
    with pytest.raises(RecipeError, match=r"large\.png must have at most 16777216 pixels, got 5000 x 5000"):
        image_files.read_images([str(path)], 2)
    content = path.read_bytes()
    for length in (0, 8, 20, 40, len(content) // 2):
        path.write_bytes(content[:length])
        monkeypatch.setattr(image_files, "MOST_PIXELS", 1 << 25)
        with pytest.raises(RecipeError, match="cannot be read as an image"):
            image_files.read_images([str(path)], 2)


@pytest.mark.parametrize("fault", ["empty", "foreign", "folder", "idx", "no folder"])
@pytest.mark.parametrize(
    "command",
    [
        "train vae --epochs 1 --batch-size 60",
        "train iaf_vae --epochs 1 --batch-size 60 --no-progress --width 8 --depth 1",
        "train pixelcnn --epochs 1 --batch-size 50 --no-progress --layers 2 --maps 4",
        "train pixelvae --epochs 1 --batch-size 50 --no-progress --layers 2 --maps 4 --data dynamic",
        "evaluate {vae}",
        "compress 0 --checkpoint {pixelcnn} -o {out}",
        "demo --epochs 1",
    ],
)
def test_data_files(command, fault, files, capsys, monkeypatch):
    is_static = "pixelcnn" in command
    given = Path("given")
    given.mkdir()
    path = given / ("binarized_mnist.npz" if is_static else "mnist.npz")
    if fault == "no folder":
        given = path = Path("empty")
    elif fault == "idx" and not is_static:
        path = given / "train-images-idx3-ubyte.gz"
        for name in data.IDX_SHA256:
            (given / f"{name}.gz").write_bytes(b"\x1f\x8b\x08")
    elif fault == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"" if fault == "empty" else b"PK\3\4 this is some other file\n" * 9)
    monkeypatch.setenv("FASTVAE_DATA", str(given))
    accelerator = [] if command.startswith("compress") else ["--accelerator", "cpu"]
    said = read_error(capsys, [*words(command, files), *accelerator])
    assert str(path) in said
    assert not Path("out.png").exists()
