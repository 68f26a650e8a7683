"""What a row must say about the machine and the code; nothing names a host, a user or a place on a disk."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

# An absolute path of two parts or more, also right behind a compiler's option such as -I.
_PATH = re.compile(r"""(?:(?<![\w.])|(?<=\s-[A-Z]))(?:~|[A-Za-z]:)?[\\/](?:[^\s\\/:'",;()]+[\\/])+([^\s\\/:'",;()]*)""")
_ROOT = Path(__file__).resolve().parent.parent


def describe(device: str) -> dict[str, Any]:
    """Versions, processor, threads, commit and date; of a GPU also its name, memory and cache."""
    described: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": find_commit(),
        "versions": find_versions(),
        "isa": find_instruction_set(),
        "cpu": read_cpu_model(),
        "threads": torch.get_num_threads(),
        "load": read_load(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    if device == "cuda":
        described["gpu"] = describe_gpu()
    return described


def read_load() -> float | None:
    """Running processes per processor over the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except (AttributeError, OSError):
        return None


def find_versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "numpy", "fastvae-kernels", "zuko", "nflows", "pyro-ppl"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def find_instruction_set() -> str | None:
    """The instruction set that the C++ extension chose; None without the extension."""
    try:
        extension = importlib.import_module("fastvae._C")
    except ImportError:
        return None
    return extension.isa()


def read_cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or "unknown"


def describe_gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cache_mib": round(properties.L2_cache_size / 2**20, 1),
        "cuda": torch.version.cuda,
    }


@functools.cache
def find_last_cache_bytes(device: str) -> int:
    """Size of the last cache before memory; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        number = re.fullmatch(r"(\d+)([KMG])", path.read_text().strip())
        if number:
            sizes.append(int(number[1]) << {"K": 10, "M": 20, "G": 30}[number[2]])
    return max(sizes) or 32 << 20


@functools.cache
def find_commit() -> str | None:
    """The commit of this checkout, ``-dirty`` when tracked files differ from it.

    Outside a checkout the environment variable ``FASTVAE_COMMIT`` may tell.
    """
    told = os.environ.get("FASTVAE_COMMIT")
    if told:
        return told
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return head + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cut_paths(text: str) -> str:
    """``text`` with every absolute path reduced to its last part."""
    return _PATH.sub(r"\1", text)
