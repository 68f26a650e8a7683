"""Image files as tensors, and tensors as image files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.static_mnist import load_static_mnist
from ..errors import RecipeError
from ..files import explain, replace_file

__all__ = ["read_images", "write_images"]

# Pillow's modes of images of one and of three channels.
MODES = {1: "L", 3: "RGB"}
# Pillow's names of the formats that are read; readers of other formats run programs, or follow paths in the file.
FORMATS = ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 24


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
        raise RecipeError(f"{path} cannot be read as an image: {explain(error)}") from None
    except (SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        # How Pillow's readers refuse damaged files, besides OSError.
        raise RecipeError(f"{path} cannot be read as an image: it is damaged ({error})") from None
    if mode not in MODES.values():
        raise RecipeError(f"{path} must be black and white, grey or RGB with 8 bits, got mode {mode}")
    return shades[None] if mode == "L" else shades.transpose(2, 0, 1)
