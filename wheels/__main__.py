"""Builds a wheel for an index out of the source distribution: ``python -m wheels pure|x86_64|aarch64``.

``pure`` has no extension and installs everywhere. The others have one file for every Python from 3.10 on; the package
nanobind-backend has what differs between them, and PyTorch brings the OpenMP. It takes scikit-build-core, nanobind and,
for a wheel with an extension, auditwheel, patchelf and a compiler.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKEND = "nanobind-backend>=1.0,<2"
KINDS = ("pure", "x86_64", "aarch64")


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command, and ends the program where it fails."""
    if subprocess.run([str(part) for part in command], env=os.environ | environment).returncode:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def unpack_source(work: Path) -> Path:
    """Makes the source distribution and unpacks it, so that nothing else gets into a wheel."""
    run(sys.executable, "-c", f"from scikit_build_core.build import build_sdist; build_sdist({str(work)!r})")
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(work)
    return work / archive.name.removesuffix(".tar.gz")


def add_backend(source: Path) -> None:
    """Adds nanobind-backend to what the wheel requires. The source and the pure wheel do without it."""
    project = source / "pyproject.toml"
    text = project.read_text()
    before, found, after = text.partition('\ndependencies = ["torch')
    if not found:
        raise SystemExit(f"{project} has no list of dependencies that begins with torch")
    project.write_text(f'{before}\ndependencies = ["{BACKEND}", "torch{after}')


def build(kind: str, out: Path, work: Path) -> Path:
    """Builds the wheel ``kind`` into the folder ``out``, and returns it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = unpack_source(work)
    settings, environment = {"wheel.cmake": "false", "wheel.py-api": "py3"}, {}
    if kind != "pure":
        add_backend(source)
        settings = {"cmake.define.FASTVAE_WHEEL": "ON", "wheel.py-api": "cp310", "build-dir": str(work / "objects")}
    if kind not in ("pure", platform.machine()):
        environment = {"CXX": f"{kind}-linux-gnu-g++", "STRIP": f"{kind}-linux-gnu-strip"}
        settings |= {"cmake.define.CMAKE_SYSTEM_NAME": "Linux", "cmake.define.CMAKE_SYSTEM_PROCESSOR": kind}
    run(
        *(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--wheel-dir",
            work / "raw",
            source,
        ),
        *[f"--config-settings={name}={value}" for name, value in settings.items()],
        **environment,
    )
    (made,) = (work / "raw").glob("*.whl")
    if kind == "pure":
        return Path(shutil.copy2(made, out))
    if kind != platform.machine():
        # Its name has this machine's architecture.
        run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", f"linux_{kind}", made)
        (made,) = (work / "raw").glob("*.whl")
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", work / "repaired", made)
    (made,) = (work / "repaired").glob("*.whl")
    return Path(shutil.copy2(made, out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m wheels", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels", help="folder of wheels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    print(build(given.kind, given.out, ROOT / "build" / f"wheel-{given.kind}"))
