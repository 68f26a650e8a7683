"""The discretised mixture of ten logistics over colour images, as a PixelCNN++ ends in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Rows are images, columns the pixels of each side.
SHAPES = {"cpu": (Shape(16, 32), Shape(64, 32)), "cuda": (Shape(16, 32), Shape(256, 32))}
_CHANNELS, _COMPONENTS, _MAPS, _LEVELS = 3, 10, 100, 256
_SEED = 20260102
_TOLERANCE = 1e-4


def _images(case: Case) -> Tensor:
    """Data, which get no gradient."""
    side = case.shape.columns
    level = torch.randint(
        _LEVELS, (case.shape.rows, _CHANNELS, side, side), generator=torch.Generator().manual_seed(_SEED)
    )
    return _arrange(case, (level * (2.0 / (_LEVELS - 1)) - 1.0).to(case.device))


def _arrange(case: Case, maps: Tensor) -> Tensor:
    last = case.variant == "channels_last"
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Weights and means ~ N(0, 1), log-scales ~ N(-3, 1): as early in training."""
    side = case.shape.columns
    params = torch.randn((case.shape.rows, _MAPS, side, side), **gaussian.options(case, generator))
    params[:, (1 + _CHANNELS) * _COMPONENTS : (1 + 2 * _CHANNELS) * _COMPONENTS] -= 3.0
    return (_arrange(case, params),)


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.logistic_mixture import logistic_mixture_log_prob

    x = _images(case)
    return lambda params: logistic_mixture_log_prob(x, params, levels=_LEVELS, impl=impl)


def _reference(case: Case) -> Function:
    from fastvae.reference.logistic_mixture import logistic_mixture_log_prob

    x = _images(case)
    return lambda params: logistic_mixture_log_prob(x, params, _LEVELS)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    from fastvae.reference.logistic_mixture import logistic_mixture_log_prob

    first = slice(gaussian.CHECKED_ROWS)
    expected = logistic_mixture_log_prob(_images(case)[first], inputs[0][first].detach().double(), _LEVELS)
    error, scale = (outputs[first].detach().double() - expected).abs().max().item(), expected.abs().max().item()
    # Written so that a NaN fails; computed in float32 at least, whatever the parameters' dtype.
    return None if error <= _TOLERANCE * scale else f"log_prob is off by {error:.3g} at a scale of {scale:.3g}"


def _work(case: Case) -> Work:
    """About 30 operations for each bin, and as many again for its derivatives."""
    images, pixels = case.shape.rows, case.shape.rows * case.shape.columns**2
    bins = pixels * _CHANNELS * _COMPONENTS
    # x and params -> log_prob
    read = pixels * (_CHANNELS * case.density_itemsize + _MAPS * case.itemsize)
    if case.mode == "fwd":
        return Work(read + images * case.density_itemsize, 30 * bins)
    # Then the same and d_log_prob -> d_params
    written = pixels * _MAPS * case.itemsize
    return Work(2 * (read + images * case.density_itemsize) + written, 90 * bins)


TASKS = tuple(
    Task(
        op="logistic_mixture",
        entry="likelihood",
        variant=variant,
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
        sampled=False,
    )
    for variant in ("", "channels_last")
)
