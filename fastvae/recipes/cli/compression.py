"""The commands ``fastvae compress`` and ``fastvae decompress``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import RecipeError
from ..files import check_target, replace_file
from ..systems.loading import find_system
from ..uses.compress import OVERHEAD, compress_images, decompress_images, levels_of
from ..uses.compressed_file import read_file
from ..uses.image_files import read_images, write_images
from .settings import parse

__all__ = ["CompressOptions", "DecompressOptions", "compress", "decompress"]

Sampler = Literal["auto", "cpp", "reference"]
CHECKPOINT = {"metavar": "CHECKPOINT"}


@dataclass(frozen=True)
class CompressOptions:
    """The files.

    Args:
        images: image files, black and white for a network of binary images, or numbers of test images of static
            binarised MNIST.
        checkpoint: what fastvae train pixelcnn wrote.
        out: the compressed file.
        impl: implementation instead of the checkpoint's own; the same for both commands.
    """

    images: tuple[str, ...] = field(metadata={"positional": True, "metavar": "IMAGE"})
    checkpoint: Path = field(metadata=CHECKPOINT)
    out: Path = field(metadata={"aliases": ("-o",), "metavar": "FILE"})
    impl: Sampler | None = None

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("the following arguments are required: IMAGE")


@dataclass(frozen=True)
class DecompressOptions:
    """The files.

    Args:
        file: what fastvae compress wrote.
        checkpoint: what fastvae train pixelcnn wrote.
        out: the image; several images are OUT-0.png, OUT-1.png, ...
        impl: implementation instead of the checkpoint's own; the same for both commands.
    """

    file: Path = field(metadata={"positional": True, "metavar": "FILE"})
    checkpoint: Path = field(metadata=CHECKPOINT)
    out: Path = field(metadata={"aliases": ("-o",), "metavar": "OUT.png"})
    impl: Sampler | None = None


def compress(words: Sequence[str]) -> None:
    """Compresses images."""
    options = parse(
        CompressOptions,
        words,
        prog="fastvae compress",
        description="Compress images without loss: a range coder takes the probabilities that a network over pixels "
        "gives. All images, of one size, go into one file. What decompresses must compute the same numbers: the same "
        "checkpoint, machine, torch and build of fastvae.",
    )
    check_target(options.out)
    network = load_network(options.checkpoint, options.impl)
    try:
        x = read_images(options.images, levels_of(network))
        data = compress_images(network, x)
        with torch.no_grad():
            ideal = -network.log_prob(x).double().sum().item() / math.log(2)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(str(error)) from None
    replace_file(options.out, data)
    bits = 8 * (len(data) - OVERHEAD)
    print(f"{len(x)} of {tuple(x.shape[1:])} in {len(data)} bytes, of which {OVERHEAD} describe and check the file")
    print(f"coded      {bits} bits, {bits / x.numel():.4f} for each number")
    print(f"-log2 p(x) {ideal:.1f} bits, {ideal / x.numel():.4f} for each number")


def decompress(words: Sequence[str]) -> None:
    """Writes the images of a compressed file."""
    options = parse(
        DecompressOptions,
        words,
        prog="fastvae decompress",
        description="Write the images of a file that fastvae compress made, as PNG.",
    )
    check_target(options.out)
    data = read_file(options.file)
    network = load_network(options.checkpoint, options.impl)
    try:
        images = decompress_images(network, data)
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"{options.file}: {error}") from None
    for path in write_images(images, levels_of(network), options.out):
        print(path)


def load_network(path: Path, impl: str | None) -> Any:
    """The network over pixels of a checkpoint, with another implementation unless that is None.

    Raises:
        RecipeError: the file cannot be read or is no checkpoint of ``pixelcnn``, or the model is conditional.
    """
    model = find_system("pixelcnn").load(path, impl=impl)[0]
    if model.config.conditional:
        raise RecipeError(f"{path} must be of a pixelcnn that is not conditional: nothing says the class of an image")
    return model.network
