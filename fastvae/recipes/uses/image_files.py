"""The commands ``fastvae compress`` and ``fastvae decompress``."""

from __future__ import annotations

import argparse
import io
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import RecipeError
from .paths import check_target, reason, replace_file

__all__ = ["add_to", "read_images", "write_images"]

# Of Pillow, for images of one and of three channels.
MODES = {1: "L", 3: "RGB"}
# Pillow's names of the formats that are read; readers of other ones run programs, or follow paths in the file.
FORMATS = ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 24


def add_to(commands: Any) -> None:
    """Adds both commands to what ``add_subparsers`` returned."""
    command = commands.add_parser(
        "compress",
        help="compress images without loss, with a trained pixelcnn",
        description="Compress images without loss: a range coder takes the probabilities that a network over pixels "
        "gives. All images, of one size, go into one file. What decompresses must compute the same numbers: the same "
        "checkpoint, machine, torch and build of fastvae.",
    )
    command.set_defaults(command=compress, parser=command)
    command.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="an image file, black and white for a network of binary images, or the number of a test image of static "
        "binarised MNIST",
    )
    add_files(command, "FILE", "the compressed file")

    command = commands.add_parser(
        "decompress",
        help="the images of a compressed file",
        description="Write the images of a file that fastvae compress made, as PNG.",
    )
    command.set_defaults(command=decompress, parser=command)
    command.add_argument("file", type=Path, metavar="FILE", help="what fastvae compress wrote")
    add_files(command, "OUT.png", "the image; several images are OUT-0.png, OUT-1.png, ...")


def add_files(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument(
        "--checkpoint", type=Path, required=True, metavar="CHECKPOINT", help="what fastvae train pixelcnn wrote"
    )
    command.add_argument(
        "--impl",
        choices=("auto", "cpp", "reference"),
        help="instead of the checkpoint's own; the same for both commands",
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar=metavar, help=text)


def compress(options: argparse.Namespace) -> None:
    from .compress import OVERHEAD, compress_images, levels_of

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


def decompress(options: argparse.Namespace) -> None:
    from .compress import decompress_images, levels_of
    from .compressed_file import read_file

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
        RecipeError: the file cannot be read or is no checkpoint of ``pixelcnn``.
    """
    from .pixelcnn_training import load_pixelcnn

    return load_pixelcnn(path, impl=impl)[0].network


def read_images(sources: Sequence[str], levels: int) -> Tensor:
    """Images ``(N, C, H, W)`` with values k / (levels - 1), from files and numbers of test images of static MNIST.

    Raises:
        RecipeError: a source cannot be had, has other values than ``levels`` equidistant shades, or another size than
            the first one.
    """
    images = [_test_image(int(source)) if source.isdecimal() else _picture(Path(source)) for source in sources]
    for source, image in zip(sources, images, strict=True):
        if image.shape != images[0].shape:
            raise RecipeError(
                f"all images must have the size of the first one, {images[0].shape[1:]} with {images[0].shape[0]} "
                f"channels; {source} has {image.shape[1:]} with {image.shape[0]}"
            )
        if not np.array_equal(_shades(_levels(image, levels), levels), image):
            allowed = "0 and 255" if levels == 2 else f"the {levels} shades k * 255 / {levels - 1}"
            raise RecipeError(f"{source} must have values of {allowed} only, as the network's images have")
    return torch.from_numpy(np.stack([_levels(image, levels) for image in images])).float() / (levels - 1)


def write_images(images: Tensor, levels: int, path: Path) -> list[Path]:
    """Writes images ``(N, C, H, W)`` as PNG, several ones with their number in the name; the paths.

    Raises:
        RecipeError: they have neither one nor three channels, more than 256 levels, or cannot be written.
    """
    from PIL import Image

    if images.shape[1] not in MODES or levels > 256:
        raise RecipeError(
            f"a PNG must have 1 or 3 channels of up to 256 levels, got {images.shape[1]} channels of {levels}"
        )
    paths = [path]
    if len(images) != 1:
        paths = [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(len(images))]
    shades = _shades(torch.round(images.double() * (levels - 1)).numpy().astype(np.int64), levels)
    for target, image in zip(paths, shades, strict=True):
        picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(content, format="PNG")
        replace_file(target, content.getvalue())
    return paths


def _levels(shades: np.ndarray, levels: int) -> np.ndarray:
    return np.rint(shades.astype(np.float64) * (levels - 1) / 255).astype(np.int64)


def _shades(levels: np.ndarray, count: int) -> np.ndarray:
    return np.rint(levels * 255.0 / (count - 1)).astype(np.uint8)


def _test_image(index: int) -> np.ndarray:
    from .static_data import load_static_mnist

    images = load_static_mnist().x_test
    if index >= len(images):
        raise RecipeError(f"the number of a test image must be below {len(images)}, got {index}")
    return images[index][None]


def _picture(path: Path) -> np.ndarray:
    """Shades, uint8 ``(C, H, W)``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as picture:
            # Before anything is decoded: a small file may hold a huge picture.
            if picture.width * picture.height > MOST_PIXELS:
                raise RecipeError(
                    f"{path} must have at most {MOST_PIXELS} pixels, got {picture.width} x {picture.height}"
                )
            mode = {"1": "L"}.get(picture.mode, picture.mode)
            shades = np.asarray(picture.convert(mode))
    except FileNotFoundError:
        raise RecipeError(f"there is no image {path}") from None
    except UnidentifiedImageError:
        raise RecipeError(f"{path} cannot be read as an image: it must be a whole {', '.join(FORMATS)} file") from None
    except Image.DecompressionBombError:
        raise RecipeError(f"{path} must have at most {MOST_PIXELS} pixels, got far more") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read as an image: {reason(error)}") from None
    except (SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        # How Pillow's readers refuse damaged files, besides OSError.
        raise RecipeError(f"{path} cannot be read as an image: it is damaged ({error})") from None
    if mode not in MODES.values():
        raise RecipeError(f"{path} must be black and white, grey or RGB with 8 bits, got mode {mode}")
    return shades[None] if mode == "L" else shades.transpose(2, 0, 1)
