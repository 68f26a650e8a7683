"""Builds a wheel for an index out of the source distribution: ``python -m wheels pure|x86_64|aarch64|macos``.

``pure`` has no extension and installs everywhere. The others have one file for every Python from 3.10 on; the package
nanobind-backend has what differs between them, and PyTorch brings the OpenMP. ``requirements.txt`` lists what it takes,
besides a compiler. That of ``macos``, for arm64, is Apple's on a Mac and Zig elsewhere.
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

from wheels import macho

ROOT = Path(__file__).resolve().parents[1]
BACKEND = "nanobind-backend>=1.0,<2"
KINDS = ("pure", "x86_64", "aarch64", "macos")
OLDEST_MACOS = "12.0"
MOST_BYTES = 4_000_000  # of a wheel
MACOS = ROOT / "wheels" / "macos"


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


def cross_compile(kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """Settings and environment of a build for another machine than this one, or for a Mac."""
    if kind == "macos":
        settings = {"cmake.define.FASTVAE_LIBOMP": str(MACOS)}
        if sys.platform == "darwin":
            return settings, {"MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS, "ARCHFLAGS": "-arch arm64"}
        settings |= {"cmake.define.CMAKE_SYSTEM_NAME": "Darwin", "cmake.define.CMAKE_SYSTEM_PROCESSOR": "arm64"}
        return settings, {"CXX": str(MACOS / "zig-c++")}
    if kind in ("pure", platform.machine()):
        return {}, {}
    settings = {"cmake.define.CMAKE_SYSTEM_NAME": "Linux", "cmake.define.CMAKE_SYSTEM_PROCESSOR": kind}
    return settings, {"CXX": f"{kind}-linux-gnu-g++", "STRIP": f"{kind}-linux-gnu-strip"}


def name_platform(wheel: Path, tag: str) -> Path:
    """Names the system in the wheel's name, which otherwise has the one of this machine."""
    run(sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel)
    (wheel,) = wheel.parent.glob("*.whl")
    return wheel


def deliver(wheel: Path, out: Path) -> Path:
    """Copies a wheel into the folder ``out``, unless it has become too large."""
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{wheel} has {size} bytes, and at most {MOST_BYTES} are allowed")
    print(f"{wheel.name} has {size} of {MOST_BYTES} bytes")
    return Path(shutil.copy2(wheel, out))


def build(kind: str, out: Path, work: Path) -> Path:
    """Builds the wheel ``kind`` into the folder ``out``, and returns it."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = unpack_source(work)
    settings, environment = cross_compile(kind)
    if kind == "pure":
        settings |= {"wheel.cmake": "false", "wheel.py-api": "py3"}
    else:
        add_backend(source)
        settings |= {"cmake.define.FASTVAE_WHEEL": "ON", "wheel.py-api": "cp310", "build-dir": str(work / "objects")}
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
        return deliver(made, out)
    if kind == "macos":
        made = name_platform(made, f"macosx_{OLDEST_MACOS.replace('.', '_')}_arm64")
        macho.check(made)
        return deliver(made, out)
    if kind != platform.machine():
        made = name_platform(made, f"linux_{kind}")
    run(sys.executable, "-m", "auditwheel", "repair", "-z", "9", "--wheel-dir", work / "repaired", made)
    (made,) = (work / "repaired").glob("*.whl")
    return deliver(made, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m wheels", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "wheels", help="folder of wheels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    print(build(given.kind, given.out, ROOT / "build" / f"wheel-{given.kind}"))
