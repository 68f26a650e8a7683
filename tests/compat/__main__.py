"""The suite's CPU part on every PyTorch and Python that is claimed: ``python -m tests.compat [2.6.0 ...]``.

Each PyTorch has an environment of its own, of one Python each, under ``build/compat``. pip chooses the wheel in
``build/wheels``, and the tests run on it outside the checkout. A PyTorch for GPUs gets stand-ins for CUDA's libraries.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "compat"
WHEELS = ROOT / "build" / "wheels"
# Each claimed Python with one PyTorch: the oldest claimed, one in the middle, that of the GPU machines, the newest.
CLAIMED = {"2.6.0": "3.10", "2.10.0": "3.12", "2.11.0": "3.13", "2.13.0": "3.11"}
TESTS = ("distributions", "likelihoods", "nn", "objectives", "ops", "sampling", "test_package.py")
TOOLS = ("expecttest", "hypothesis", "nanobind-backend", "numpy", "pytest")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Runs a command, and ends the program where it fails."""
    # The pins of the checkout are those of the newest versions.
    environment = {name: value for name, value in os.environ.items() if name not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    if subprocess.run([str(part) for part in command], cwd=folder, env=environment).returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def find_interpreter(version: str) -> Path:
    """A Python of ``version`` on the path or in pyenv's folder."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(f"python{version}")
    for path in [*folder.glob(f"{version}.*/bin/python{version}"), *([Path(found)] if found else [])]:
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    raise SystemExit(f"Python {version} is not installed")


def requirements_of(packages: Path) -> list[str]:
    """What PyTorch in the folder ``packages`` requires, without CUDA and Triton."""
    (torch,) = importlib.metadata.distributions(name="torch", path=[str(packages)])
    return [
        name for name in torch.requires or [] if not re.match(r"nvidia|cuda|triton", name) and "extra ==" not in name
    ]


def make_environment(torch: str, python: str) -> Path:
    """The interpreter of an environment with ``torch`` and what the tests need."""
    folder = FOLDER / f"torch-{torch}"
    interpreter = folder / "bin" / "python"
    if not (folder / "installed").exists():
        run(find_interpreter(python), "-m", "venv", "--clear", folder)
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


def main(versions: list[str]) -> None:
    """Tests the wheel on each of ``versions``."""
    for version in versions:
        interpreter = make_environment(version, CLAIMED[version])
        tests = FOLDER / f"tests-{version}"
        copy_tests(tests)
        print(f"torch {version}, Python {CLAIMED[version]}", flush=True)
        command = (interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.compat.sample")
        run(*command, *[Path("tests") / name for name in TESTS], folder=tests)


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - set(CLAIMED):
        raise SystemExit(f"versions must be some of {', '.join(CLAIMED)}, got {', '.join(sorted(unknown))}")
    main(sys.argv[1:] or list(CLAIMED))
