"""Weights of the code of the papers' authors, as state dicts of our models."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import RecipeError
from ..files import read_bounded

__all__ = ["M1_ARRAYS", "M2_ARRAYS", "read_m1_weights", "read_m2_weights"]

# Bytes of a file, and of one array.
MOST_BYTES = 1 << 28
SOURCE = "the code of Semi-Supervised Learning with Deep Generative Models"

# The arrays by our names.
M1_ARRAYS = {
    "encoder.0.weight": "q_w0",
    "encoder.0.bias": "q_b0",
    "encoder.2.weight": "q_w1",
    "encoder.2.bias": "q_b1",
    "decoder.0.weight": "p_w0",
    "decoder.0.bias": "p_b0",
    "decoder.2.weight": "p_w1",
    "decoder.2.bias": "p_b1",
    "to_logits.weight": "p_out_w",
    "to_logits.bias": "p_out_b",
}
M2_ARRAYS = {
    "encoder_in.weights.0": "q_w0x",
    "encoder_in.class_weight": "q_w0y",
    "encoder_in.bias": "q_b0",
    "encoder.0.weight": "q_w1",
    "encoder.0.bias": "q_b1",
    "decoder_in.weights.0": "p_w0z",
    "decoder_in.class_weight": "p_w0y",
    "decoder_in.bias": "p_b0",
    "decoder.0.weight": "p_w1",
    "decoder.0.bias": "p_b1",
    "to_data.weight": "p_out_w",
    "to_data.bias": "p_out_b",
}
# mu and the log-variance become one layer of mu and log sigma.
HEAD = ("q_mean_w", "q_mean_b", "q_logvar_w", "q_logvar_b")


def read_m1_weights(path: Path) -> dict[str, Tensor]:
    """The weights of M1 as the state dict of :class:`~fastvae.recipes.systems.m1.model.M1`.

    The file has the arrays of the authors' ``params.ndict``: ``q_w0``, ``q_b0``, ``q_w1``, ``q_b1``, ``q_mean_w``,
    ``q_mean_b``, ``q_logvar_w`` and ``q_logvar_b`` of the encoder, ``p_w0``, ``p_b0``, ``p_w1``, ``p_b1``, ``p_out_w``
    and ``p_out_b`` of the decoder. Weights are ``(out, in)`` and biases ``(out, 1)``.

    Args:
        path: an npz file.

    Returns:
        ``encoder.0``, ``encoder.2``, ``head.linear``, ``decoder.0``, ``decoder.2`` and ``to_logits``, each with
        ``weight`` and ``bias``, float32. The head has the rows of mu, then those of log sigma.

    Raises:
        RecipeError: the file cannot be read, lacks an array, or has one of a shape that does not fit.
    """
    return convert(path, M1_ARRAYS)


def read_m2_weights(path: Path) -> dict[str, Tensor]:
    """The weights of M2 as the state dict of a :class:`~fastvae.recipes.class_models.conditional.ConditionalVAE`.

    The arrays are those of :func:`read_m1_weights`, but the first layers are ``q_w0x``, ``q_w0y``, ``p_w0z`` and
    ``p_w0y``: a weight of the images or latents, and one of the one-hot class, ``(out, classes)``.

    Args:
        path: an npz file.

    Returns:
        ``encoder_in``, ``encoder.0``, ``head.linear``, ``decoder_in``, ``decoder.0`` and ``to_data``, each with
        ``weight`` and ``bias``, float32; ``encoder_in`` and ``decoder_in`` with ``weights.0``, ``class_weight`` and
        ``bias``.

    Raises:
        RecipeError: as :func:`read_m1_weights`.
    """
    return convert(path, M2_ARRAYS)


def convert(path: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    arrays = read_arrays(path, [*names.values(), *HEAD])
    found = {ours: arrays[theirs] for ours, theirs in names.items()}
    mean, mean_bias, log_variance, log_variance_bias = (arrays[name] for name in HEAD)
    if mean.shape != log_variance.shape or mean_bias.shape != log_variance_bias.shape:
        raise RecipeError(
            f"{path}: q_logvar_w and q_logvar_b must have the shapes of q_mean_w and q_mean_b, {mean.shape} and "
            f"{mean_bias.shape}, got {log_variance.shape} and {log_variance_bias.shape}"
        )
    found["head.linear.weight"] = np.concatenate([mean, 0.5 * log_variance])
    found["head.linear.bias"] = np.concatenate([mean_bias, 0.5 * log_variance_bias])
    for name in found:
        if name.endswith("bias"):
            found[name] = check_bias(path, name, found[name])
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}


def check_bias(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.shape[1] != 1:
        raise RecipeError(f"{path}: {name} must have one column, got shape {array.shape}")
    return array[:, 0]


def read_arrays(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Matrices of these names, float32 and finite; others are left alone.

    Raises:
        RecipeError: the file cannot be read, lacks an array, or holds another kind.
    """
    content = read_bounded(path, MOST_BYTES, "weights of " + SOURCE)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        if missing := [name for name in names if f"{name}.npy" not in sizes]:
            raise RecipeError(f"{path} must hold the arrays of {SOURCE}; it lacks {', '.join(missing)}")
        if large := [name for name in names if sizes[f"{name}.npy"] > MOST_BYTES]:
            raise RecipeError(
                f"{path}: {large[0]} must have at most {MOST_BYTES} bytes, got {sizes[large[0] + '.npy']}"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names}
    except RecipeError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{path} cannot be read as weights of {SOURCE}: {said}") from None
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.ndim != 2 or array.size == 0:
            raise RecipeError(f"{path}: {name} must be a matrix of floats, got {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise RecipeError(f"{path}: {name} must be finite")
    return {name: array.astype(np.float32) for name, array in arrays.items()}
