"""What the command line accepts, refuses, and says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastvae import backend
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.systems.catalogue import CATALOGUE

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
ROOT = Path(__file__).parents[2]


def read_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["train"],
        *(["train", name] for name in CATALOGUE),
        *([name] for name in ("evaluate", "sample", "reconstruct", "compress", "decompress", "demo", "report")),
    ],
)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: fastvae" in capsys.readouterr().out


def test_help_names_the_defaults(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "widths of the hidden layers of the encoder; the decoder mirrors them (default: 400 400)" in said
    assert "importance samples K for log p(x) (default: 128)" in said


def test_report(capsys):
    assert cli.main(["report"]) == 0
    assert capsys.readouterr().out == backend.report() + "\n"


@pytest.mark.parametrize("command", [["train", "vae"], ["demo"], ["evaluate", "some.ckpt"]])
def test_missing_extra_is_named(command, capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "lightning" else name)
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error == 'fastvae: error: this command needs lightning: pip install "fastvae-kernels[train]"\n'


def test_without_the_extra_the_library_and_the_report_work():
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['filelock', 'lightning', 'matplotlib', 'tqdm', 'tyro']))\n"
        "import fastvae.__main__ as cli\n"
        "print(cli.main(['report']), cli.main(['demo']))"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    output = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert output.stdout.splitlines()[-1:] == ["0 1"], output.stderr
    assert "needs filelock, lightning, matplotlib, tqdm, tyro" in output.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("train vae --epochs 0", "epochs must be >= 1, got 0"),
        ("train vae --epochs many", "--epochs: must be a whole number, got 'many'"),
        ("train vae --seed -1", "seed must be >= 0, got -1"),
        ("train vae --posterior full", "invalid choice 'full' for argument '--posterior'"),
        ("train vae --learning-rate 0", "learning_rate must be > 0 and finite, got 0.0"),
        ("train vae --learning-rate nan", "learning_rate must be > 0 and finite, got nan"),
        ("demo --kl-warmup -1", "kl_warmup must be >= 0, got -1.0"),
        ("demo --tril-scale 0", "tril_scale must be > 0 and finite, got 0.0"),
        ("demo --posterior diagonal", "Unrecognized options: --posterior, diagonal"),
    ],
)
def test_bad_option(arguments, message, capsys):
    assert message in read_error(capsys, *arguments.split())


def test_train_then_evaluate_then_resume(canonical, tmp_path, capsys):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    out = tmp_path / "out"
    options = ["--posterior", "triangular", "--latent", "4", "--hidden", "16", "8", "--impl", "reference"]
    options += ["--epochs", "1", "--batch-size", "60", "--accelerator", "cpu", "--out", str(out)]
    assert cli.main(["train", "vae", *options]) == 0
    assert f"fastvae evaluate {out / 'last.ckpt'}" in capsys.readouterr().out
    evaluating = ["evaluate", str(out / "last.ckpt"), "--accelerator", "cpu", "--samples", "3"]
    assert cli.main(evaluating) == 0
    assert "log p(x)" in capsys.readouterr().out
    # The run is complete: nothing is left to train.
    resuming = ["train", "vae", "--resume", str(out / "last.ckpt"), "--accelerator", "cpu"]
    assert cli.main([*resuming, "--out", str(out)]) == 0
    assert "nan" not in capsys.readouterr().out
    assert "--resume continues a run with seed = 0; it cannot become 1" in read_error(capsys, *resuming, "--seed", "1")


def test_error_without_traceback(canonical, tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path / "absent.ckpt"), "--accelerator", "cpu"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastvae: error: there is no checkpoint")
    assert "Traceback" not in error


def test_interrupt_while_modules_load(tmp_path):
    """Torch takes a second to load, in which an interrupt ends the command with one line."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    for program, line in ((["-m", "fastvae", "report"], 1), (["-c", "import fastvae"], 0)):
        ended = subprocess.run(
            [sys.executable, *program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert (ended.stderr == "fastvae: error: stopped by SIGINT\n") == line, ended.stderr
        assert (ended.returncode == 130) == line
