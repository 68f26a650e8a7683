"""Damaged files: each is refused by the documented error, within bounds of time and memory, or read as it was."""

from __future__ import annotations

import functools
import json
import os
import pickle
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from fastvae.nn import GatedPixelCNN, PixelCNN
from fastvae.recipes import RecipeError
from fastvae.recipes.cli.settings_file import read_settings_file
from fastvae.recipes.data.static_mnist import load_static_mnist
from fastvae.recipes.evaluation.chunks import Chunk, make_head, read_chunks, write_chunks
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.uses.compress import compress_images, decompress_images
from fastvae.sampling import Categorical

from .draw import Draw
from .failure import FuzzError

# What a damaged file may cost. A sanitizer makes everything slower and larger.
SECONDS, BYTES = 1.0, 200 * 2**20
SLOWER = float(os.environ.get("FASTVAE_FUZZ_SLOWER", "1"))


@contextmanager
def bound_cost(described: str) -> Iterator[None]:
    """Raises a failure where the block takes more than its share of processor time or of memory."""
    Path("/proc/self/clear_refs").write_text("5")
    memory, start = _peak(), time.process_time()
    yield
    seconds, more = time.process_time() - start, _peak() - memory
    if seconds > SECONDS * SLOWER or more > BYTES * SLOWER:
        raise FuzzError(f"{described}: took {seconds:.1f} s and {more / 2**20:.0f} MB")


def _peak() -> int:
    """Bytes that the process has held at most since the count was reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def damage(draw: Draw, data: bytes) -> tuple[bytes, str]:
    """A few bits flipped, bytes replaced, dropped or inserted, the end missing, or more at the end."""
    content, said = bytearray(data), []
    for _ in range(draw.choice((1, 1, 2, 5))):
        # Headers are short, and decide most.
        near = draw.chance(0.5)
        place = draw.rng.randrange(max(1, min(len(content), 64) if near else len(content)))
        action = draw.choice(("flip", "flip", "byte", "word", "huge", "drop", "insert", "truncate", "append", "swap"))
        said.append(f"{action} at {place}")
        if action == "flip" and content:
            content[place] ^= 1 << draw.rng.randrange(8)
        elif action == "byte" and content:
            content[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif action == "word":
            content[place : place + 2] = struct.pack("<H", draw.rng.randrange(2**16))
        elif action == "huge":
            content[place : place + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\0\0\1\0")
            )
        elif action == "drop":
            del content[place : place + draw.rng.randint(1, 8)]
        elif action == "insert":
            content[place:place] = draw.rng.randbytes(draw.rng.randint(1, 8))
        elif action == "truncate":
            del content[place:]
        elif action == "append":
            content += draw.rng.randbytes(draw.rng.randint(1, 64))
        elif action == "swap":
            other = draw.rng.randrange(max(1, len(content)))
            content[place : place + 4], content[other : other + 4] = (
                content[other : other + 4],
                content[place : place + 4],
            )
    return bytes(content), ", ".join(said)


@functools.cache
def _compress_images() -> list[tuple[Any, Any, torch.Tensor, bytes]]:
    """Networks, contexts, images and their files."""
    found = []
    for kind, channels, options in (
        (PixelCNN, 1, {}), (PixelCNN, 2, {"likelihood": Categorical(4)}), (GatedPixelCNN, 1, {"context_features": 2}),
    ):  # fmt: skip
        torch.manual_seed(1)
        network = kind(channels, 4, 1, **options).eval()
        context = torch.randn(2, 2) if options.get("context_features") else None
        x = network.sample(2, (6, 5), context=context)
        found.append((network, context, x, compress_images(network, x, context)))
    return found


def decompress_damaged(case: str, folder: Path) -> None:
    draw = Draw(case)
    network, context, x, data = draw.choice(_compress_images())
    content, said = damage(draw, data)
    if draw.chance(0.6) and len(content) >= 4:
        # Not by accident: the checksum at the end fits.
        content = content[:-4] + struct.pack("<I", zlib.crc32(content[:-4]))
        said += ", checksum mended"
    described = f"compressed images: {said}"
    with bound_cost(described):
        try:
            found = decompress_images(network, content, context)
        except RecipeError as error:
            return _check_message(error, described)
    if found.shape != x.shape or not torch.equal(found, x):
        raise FuzzError(f"{described}: gives other images, {tuple(found.shape)}")


@functools.cache
def _checkpoints() -> list[tuple[bytes, Callable[[Path], Any], dict[str, torch.Tensor]]]:
    """Checkpoints as training writes them, how each is loaded, and its weights."""
    from .trained import checkpoints

    found = []
    for data, load in checkpoints():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sound.ckpt"
            path.write_bytes(data)
            found.append((data, load, load(path)[0].state_dict()))
    return found


class _Touch:
    """Pickled, it asks its reader to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def checkpoint(case: str, folder: Path) -> None:
    draw = Draw(case)
    data, load, weights = draw.choice(_checkpoints())
    path, touched = folder / "last.ckpt", folder / "touched"
    if draw.chance(0.1):
        said, content = "a pickle that makes a file", pickle.dumps({"hyper_parameters": _Touch(touched)})
        if draw.chance(0.5):
            torch.save({"hyper_parameters": {"model": _Touch(touched)}, "state_dict": {}}, path)
            content = path.read_bytes()
    else:
        content, said = damage(draw, data)
    path.write_bytes(content)
    described = f"checkpoint: {said}"
    with bound_cost(described):
        try:
            model = load(path)[0]
        except RecipeError as error:
            model = None
            _check_message(error, described)
    if touched.exists():
        raise FuzzError(f"{described}: its code was executed")
    if model is not None:
        found = model.state_dict()
        if found.keys() != weights.keys() or not all(torch.equal(found[name], weights[name]) for name in weights):
            raise FuzzError(f"{described}: gives other weights")


def configuration(case: str, folder: Path) -> None:
    draw = Draw(case)
    suffix = draw.choice((".json", ".json", ".toml"))
    plain = asdict(VAEConfig()) | asdict(VAETrainConfig())
    if suffix == ".json":
        data = json.dumps({"recipe": "vae", "model": plain}, indent=draw.choice((None, 2))).encode()
    else:
        data = (
            b'recipe = "vae"\nepochs = 3\nlearning_rate = 1e-3\nhidden_features = [20, 30]\n[model]\nkl = "analytic"\n'
        )
    content, said = damage(draw, data)
    if draw.chance(0.1):
        content, said = (
            draw.choice((b"[" * 100_000, b'{"a":' * 50_000, b'{"epochs": 1' + b"0" * 5000 + b"}", b"\xff\xfe")),
            "hostile",
        )
    path = folder / f"config{suffix}"
    path.write_bytes(content)
    described = f"configuration {suffix}: {said}"
    with bound_cost(described):
        try:
            values = read_settings_file(path, "vae", (VAEConfig, VAETrainConfig))
        except RecipeError as error:
            return _check_message(error, described)
    for name, value in values.items():
        if type(value) is not type(plain[name]):
            raise FuzzError(f"{described}: {name} is {value!r}")


def images(case: str, folder: Path) -> None:
    """Static binarised MNIST: whatever is read is not it, since no checksum fits."""
    draw = Draw(case)
    path = folder / "binarized_mnist.npz"
    kind = draw.choice(("damaged", "damaged", "damaged", "large"))
    rows = 50 if kind == "damaged" else 10_000_000
    parts = {name: np.zeros((rows, 98), np.uint8) for name in ("train", "valid", "test")} if kind == "damaged" else {}
    if kind == "damaged":
        (np.savez if draw.chance(0.5) else np.savez_compressed)(path, **parts)
    else:
        _write_large(path, rows)
    content, said = (
        damage(draw, path.read_bytes()) if kind == "damaged" else (path.read_bytes(), "a small file of 3 GB")
    )
    path.write_bytes(content)
    places = {"FASTVAE_DATA": str(folder), "XDG_CACHE_HOME": str(folder)}
    with bound_cost(f"images: {said}"), mock.patch.dict(os.environ, places):
        try:
            load_static_mnist()
        except RecipeError as error:
            return _check_message(error, f"images: {said}")
    raise FuzzError(f"images: {said}: read as if they were static binarised MNIST")


def _write_large(path: Path, rows: int) -> None:
    """A small archive whose first array is as large as it can be made in little time."""
    import zipfile

    head = np.lib.format.magic(1, 0)
    text = repr({"descr": "|u1", "fortran_order": False, "shape": (rows, 98)}).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("train", "valid", "test"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head + struct.pack("<H", len(text)) + text)
                for _ in range(20):
                    file.write(bytes(2**20))


def evaluation(case: str, folder: Path) -> None:
    draw, settings, path = Draw(case), {"samples": 5, "model": "0123456789abcdef"}, folder / "work"
    numbers = torch.rand(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sound = {name: {first: Chunk(*numbers.split((3, 3, 6))) for first in (0, 3)} for name in ("test", "valid")}
    write_chunks(path, settings, sound)
    data = path.read_bytes()
    mended = draw.chance(0.6)
    if mended:
        # Not by accident: the checksum fits.
        content, said = damage(draw, data[data.index(b"\n") + 1 :])
        content, said = make_head(content) + content, said + ", checksum mended"
    else:
        content, said = damage(draw, data)
    path.write_bytes(content)
    described = f"unfinished evaluation: {said}"
    with bound_cost(described):
        try:
            found = read_chunks(path, settings)
        except RecipeError as error:
            return _check_message(error, described)
    if not mended and str(found) != str(sound):
        raise FuzzError(f"{described}: gives other figures")


def _check_message(error: RecipeError, described: str) -> None:
    if not str(error).strip():
        raise FuzzError(f"{described}: the error says nothing")


TARGETS = {
    "compressed": decompress_damaged,
    "checkpoint": checkpoint,
    "configuration": configuration,
    "images": images,
    "evaluation": evaluation,
}


def run(name: str, case: str) -> None:
    """Reads a damaged file of the kind ``name``.

    Raises:
        FuzzError: it is read as something else, refused by another error, or takes too long or too much.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fastvae-fuzz-") as folder:
        try:
            TARGETS[name](case, Path(folder))
        except FuzzError:
            raise
        except Exception as error:
            raise FuzzError(f"{name}: raises {error!r}, which is no RecipeError") from error
