"""The wheel for ARM on an emulated processor: ``python -m tests.compat.aarch64 [FOLDER]``.

It takes qemu-aarch64-static and a Debian. Python, its libraries and PyTorch for ARM are brought into ``build/compat``;
FOLDER is that of the packages. The processor has no instructions but those of the oldest ARMv8, and the wheel must do
with them. A few cases of each test of a C++ kernel run, and the known answers of the noise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.compat import debian
from tests.compat.__main__ import FOLDER, PIP, TOOLS, WHEELS, copy_tests, requirements_of, run

# Torch 2.6 has OpenMP under a name of its own, which the extension must find.
TORCH, PYTHON = "2.6.0", "3.13"
PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
EMULATOR = ("qemu-aarch64-static", "-cpu", "cortex-a72")


def install(packages: Path, *arguments: str | Path) -> None:
    """Lets pip choose wheels for ARM."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    options = ("--no-compile", "--only-binary=:all:", f"--python-version={PYTHON}", "--upgrade", "--target", packages)
    run(sys.executable, *PIP, "install", *options, *platforms, *arguments)


def bring_packages(packages: Path) -> None:
    """Brings what the tests need, and the wheel."""
    if not (packages / "installed").exists():
        shutil.rmtree(packages, ignore_errors=True)
        install(packages, "--no-deps", f"torch=={TORCH}")
        install(packages, *TOOLS, *requirements_of(packages))
        (packages / "installed").touch()
    install(packages, "--no-index", "--find-links", WHEELS, "--no-deps", "fastvae-kernels")


def main(packages: Path) -> None:
    """Tests the wheel of ``build/wheels``."""
    interpreter = debian.interpreter_of(PYTHON, "arm64")
    if not interpreter.exists():
        debian.unpack(PYTHON, "arm64")
    bring_packages(packages)
    tests = FOLDER / "tests-aarch64"
    copy_tests(tests)
    variables = {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "2"}
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.compat.emulated_sample", "--durations=10")
    command = [*EMULATOR, interpreter, *pytest, "tests/ops"]
    raise SystemExit(subprocess.run(command, cwd=tests, env=os.environ | variables).returncode)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute() if sys.argv[1:] else FOLDER / "packages-aarch64")
