"""A Python that this system does not have, out of Debian's packages: ``python -m tests.compat.debian 3.14 [arm64]``.

The packages are unpacked under ``build/compat/debian``, and the interpreter runs there with their libraries. Nothing is
installed. It takes a Debian with apt, and patchelf on the path.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build" / "compat" / "debian"
# The suite that has a Python.
SUITES = {"3.13": "trixie", "3.14": "sid"}
# Debian's word for this processor.
HERE = {"aarch64": "arm64", "x86_64": "amd64"}.get(platform.machine(), platform.machine())
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def interpreter_of(version: str, machine: str = HERE) -> Path:
    """Where the Python of ``version`` for ``machine`` is, once it is unpacked."""
    return FOLDER / f"{version}-{machine}" / "usr" / "bin" / f"python{version}"


def find_archive() -> str:
    """The address of Debian's packages that this system has in its own sources."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"^Debian Debian (\S+)$", text, re.MULTILINE)
    if not found:
        raise SystemExit("apt has no list of Debian's packages: run apt-get update")
    return found[1]


def download(packages: list[str], suite: str, machine: str, work: Path) -> list[Path]:
    """Downloads packages and all that they depend on."""
    for name in ("lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    # Nothing counts as installed.
    (work / "status").touch()
    (work / "sources.list").write_text(f"deb [signed-by={KEYS}] {find_archive()} {suite} main\n")
    options = {
        "APT::Architecture": machine,
        "APT::Architectures": machine,
        "Debug::NoLocking": "true",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": work / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": work / "status",
    }
    apt = ["apt-get", "--quiet", "--yes", *(f"-o{name}={value}" for name, value in options.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--download-only", "--no-install-recommends", *packages], check=True)
    return sorted((work / "cache" / "archives").glob("*.deb"))


def make_movable(python: Path, root: Path) -> None:
    """Lets the Python of the system in ``root`` run where it is, with the libraries beside it."""
    (loader,) = root.glob("usr/lib/*-linux-gnu/ld-linux-*.so.*")
    # What Python loads looks for its libraries where the interpreter does; a RUNPATH would not be handed down.
    places = ["--set-interpreter", loader, "--force-rpath", "--set-rpath", loader.parent]
    subprocess.run(["patchelf", *places, python], check=True)
    # Debian's venv takes pip from a folder of the system, and Debian's headers include one of another folder.
    wheels = "/usr/share/python-wheels"
    for settings in root.glob("usr/lib/python*/_sysconfigdata*.py"):
        settings.write_text(settings.read_text().replace(f"'{wheels}", f"'{root}{wheels}"))
    headers = root / "usr" / "include"
    shutil.copy(headers / loader.parent.name / python.name / "pyconfig.h", headers / python.name)


def unpack(version: str, machine: str = HERE) -> Path:
    """Brings the Python of ``version`` for ``machine``, and returns its interpreter."""
    if version not in SUITES:
        raise SystemExit(f"version must be {' or '.join(SUITES)}, got {version}")
    root, work = FOLDER / f"{version}-{machine}", FOLDER / "work"
    for folder in (root, work):
        shutil.rmtree(folder, ignore_errors=True)
    packages = [f"python{version}-venv", f"libpython{version}-dev", "libstdc++6"]
    for package in download(packages, SUITES[version], machine, work):
        subprocess.run(["dpkg", "--extract", package, root], check=True)
    make_movable(interpreter_of(version, machine), root)
    shutil.rmtree(work)
    return interpreter_of(version, machine)


if __name__ == "__main__":
    print(unpack(*sys.argv[1:]))
