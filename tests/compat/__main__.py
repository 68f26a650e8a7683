"""The suite's CPU part on every PyTorch and Python that is claimed: ``python -m tests.compat [2.6.0 3.14 ...]``.

Each pair of a PyTorch and a Python has an environment of its own under ``build/compat``. pip chooses the wheel in
``build/wheels``, and the tests run on it outside the checkout. A PyTorch for GPUs gets stand-ins for CUDA's libraries.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.compat import debian

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "compat"
WHEELS = ROOT / "build" / "wheels"
# Each claimed Python with one PyTorch: the oldest claimed, one in the middle, that of the GPU machines, the newest.
CLAIMED = [("2.6.0", "3.10"), ("2.10.0", "3.12"), ("2.11.0", "3.13"), ("2.13.0", "3.11"), ("2.13.0", "3.14")]
# Few systems have it yet.
OPTIONAL = "3.14"
TESTS = ("distributions", "likelihoods", "nn", "objectives", "ops", "sampling", "test_package.py")
TOOLS = ("expecttest", "hypothesis", "nanobind-backend", "numpy", "pytest")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Runs a command, and ends the program where it fails."""
    # The pins of the checkout are those of the newest versions.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    if subprocess.run([str(part) for part in command], cwd=folder, env=environment).returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def find_interpreter(version: str) -> Path | None:
    """A Python of ``version`` in pyenv's folder, on the path or out of Debian's packages."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    unpacked = debian.interpreter_of(version)
    candidates = [*folder.glob(f"{version}.*/bin/python{version}"), *([Path(found)] if found else [])]
    for path in [*candidates, *([unpacked] if unpacked.exists() else [])]:
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def choose(names: list[str], find: Callable[[str], Path | None] = find_interpreter) -> list[tuple[str, str, Path]]:
    """The claimed pairs that ``names`` has a PyTorch or a Python of, or all, with the interpreter of each."""
    if unknown := set(names) - {name for pair in CLAIMED for name in pair}:
        claimed = "; ".join(f"{torch} on {python}" for torch, python in CLAIMED)
        raise SystemExit(f"versions must be of PyTorch or Python in {claimed}; got {', '.join(sorted(unknown))}")
    chosen = []
    for torch, python in CLAIMED:
        if names and not {torch, python} & set(names):
            continue
        if interpreter := find(python):
            chosen.append((torch, python, interpreter))
        elif python == OPTIONAL and python not in names:
            print(f"LEFT OUT: torch {torch} on Python {python}: that Python is not installed")
            print("`make compat-python` brings Debian's")
        else:
            raise SystemExit(f"Python {python} is not installed")
    return chosen


def requirements_of(packages: Path) -> list[str]:
    """What PyTorch in the folder ``packages`` requires, without CUDA and Triton."""
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(packages)])
    return [
        name for name in torch.requires or [] if not re.match(r"nvidia|cuda|triton", name) and "extra ==" not in name
    ]


def make_environment(torch: str, folder: Path, python: Path) -> Path:
    """The interpreter of an environment of ``python`` with ``torch`` and what the tests need."""
    interpreter = folder / "bin" / "python"
    if not (folder / "installed").exists():
        run(python, "-m", "venv", "--clear", folder)
        run(interpreter, *PIP, "install", "--no-cache-dir", "--no-deps", "--no-compile", f"torch=={torch}")
        (packages,) = folder.glob("lib/python*/site-packages")
        run(interpreter, *PIP, "install", *TOOLS, *requirements_of(packages))
        run(sys.executable, Path(__file__).with_name("stand_ins.py"), packages / "torch" / "lib")
        (folder / "installed").touch()
    # PyTorch's requirements are not all there, which pip must not look at.
    options = ("install", "--no-index", "--find-links", WHEELS, "--no-deps", "--force-reinstall")
    run(interpreter, *PIP, *options, "fastvae-kernels")
    return interpreter


def copy_tests(to: Path) -> None:
    """Copies what runs into a folder without ``fastvae``, which would hide the wheel."""
    shutil.rmtree(to, ignore_errors=True)
    for name in ("bench", "tests"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", to)


def main(names: list[str]) -> None:
    """Tests the wheel on each claimed pair, or on those that ``names`` chooses."""
    for torch, python, interpreter in choose(names):
        name = f"torch-{torch}-python-{python}"
        interpreter = make_environment(torch, FOLDER / name, interpreter)
        tests = FOLDER / f"tests-{name}"
        copy_tests(tests)
        print(f"torch {torch}, Python {python}", flush=True)
        command = (interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.compat.sample")
        run(*command, *[Path("tests") / name for name in TESTS], folder=tests)


if __name__ == "__main__":
    main(sys.argv[1:])
