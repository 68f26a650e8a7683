"""Embeddings of a pixel's level: code that looks levels up in a table becomes nodes that do so at one pixel.

A forward turns the image into integers, by functions that are followed here, and an ``nn.Embedding`` takes these to
rows of its table, which are moved to the dimension of the channels. :class:`~fastvae.nn.CodeEmbedding` does it at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from ..structure.sampling_plan import Activation, Lookup, Pointwise, Span
from .lowering import Codes, Lowering, Rows

__all__ = ["embed", "follow", "rows_of"]

_INTEGERS = (torch.int64, torch.int32)
_WAY_OUT = "; fastvae.nn.CodeEmbedding does all of it: levels of images (N, 1, H, W) to (N, channels, H, W)"


def embed(lowering: Lowering, path: str, table: nn.Embedding, span: Span, factor: float) -> Span:
    """The row of ``table`` at the nearest integer to ``factor`` times a channel."""
    if table.max_norm is not None:
        raise lowering.refuse(f"max_norm must be None, which changes the table as it is read, got {table.max_norm}")
    if span.channels != 1:
        raise lowering.refuse(f"takes one channel, got {span.channels}")
    plan, rows = lowering.plan, table.num_embeddings
    steps = lowering.pointwise_conv(Lookup(path, "indicator", factor), span, 2 * rows)
    sigmoids = plan.result(steps)
    plan.emit(Activation(sigmoids, steps, "sigmoid"))
    below, above = sigmoids.part(0, rows), sigmoids.part(rows, rows)
    indicators = plan.result(below, above)
    plan.emit(Pointwise(indicators, below, above, "mul"))
    return lowering.pointwise_conv(Lookup(path, "table", factor), indicators, table.embedding_dim)


def rows_of(lowering: Lowering, path: str, table: Any, node: fx.Node) -> Rows:
    """The rows that an ``nn.Embedding`` looks up for codes."""
    source = node.args[0] if node.args else node.kwargs["input"]
    codes = lowering.env.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(codes, Codes) or not (codes.is_integral and codes.is_flat):
        raise lowering.refuse(
            "takes integers (N, H, W) of one channel of the image, such as (255 * x).round().long()[:, 0]" + _WAY_OUT
        )
    return Rows(embed(lowering, path, table, codes.span, codes.factor))


def follow(lowering: Lowering, name: str, node: fx.Node) -> Codes | Rows | Span | None:
    """The result of a function of codes or rows; None for a function of activations."""
    args = node.args
    if len(args) == 2 and name.startswith("mul") and not isinstance(args[0], fx.Node):
        args = args[::-1]
    found = lowering.env.get(args[0]) if args and isinstance(args[0], fx.Node) else None
    if isinstance(found, Rows):
        if _moves_channels(name, args[1:], node.kwargs):
            return found.span
        raise lowering.refuse("an embedding's last dimension must become that of the channels, permute(0, 3, 1, 2)")
    codes = found if isinstance(found, Codes) else None
    if isinstance(found, Span):
        codes = _start_codes(lowering, name, node, found)
    if codes is None:
        return None
    made = _next(lowering, name, args[1:], node.kwargs, codes)
    if made is None:
        raise lowering.refuse(
            "integers of an image must be made by a product with a number, round, long, and squeeze(1) or [:, 0]"
            + _WAY_OUT
        )
    return made


def _start_codes(lowering: Lowering, name: str, node: fx.Node, span: Span) -> Codes | None:
    """The codes at a function that begins to make integers of the image; None at any other."""
    begins = name in ("round", "long", "int", "squeeze", "select")
    begins = begins or (name in ("to", "type") and any(v in _INTEGERS for v in (*node.args, *node.kwargs.values())))
    if name == "getitem":
        index = node.args[1]
        begins = isinstance(index, tuple) and len(index) > 1 and isinstance(index[1], int)
    if not begins:
        return None
    if span.buffer == 0:
        return Codes(span)
    for made in lowering.plan.nodes:
        if made.op == "affine" and made.dst == span and made.src.buffer == 0 and made.beta == 0.0:
            return Codes(made.src, made.alpha)
    return None


def _next(lowering: Lowering, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], codes: Codes) -> Codes | None:
    number = args[0] if args and isinstance(args[0], (int, float)) else None
    if name in ("mul", "div", "truediv", "multiply") and number and not codes.is_rounded and not kwargs:
        return replace(codes, factor=codes.factor * number if name.startswith("mul") else codes.factor / number)
    if name == "round" and not args and not kwargs:
        return replace(codes, is_rounded=True)
    if name == "clamp" and codes.is_rounded:
        low, high = (
            [*args, kwargs.get("min"), kwargs.get("max")][:2] if args else (kwargs.get("min"), kwargs.get("max"))
        )
        if low in (None, 0) and (high is None or high >= round(codes.factor)):
            return codes
    if name in ("long", "int") or (name in ("to", "type") and args and args[0] in _INTEGERS):
        if not codes.is_rounded:
            raise lowering.refuse(
                "cuts numbers of the image off, which may lie just below an integer: call round() before" + _WAY_OUT
            )
        return replace(codes, is_integral=True)
    if codes.is_flat:
        return None
    if name == "squeeze" and args in ((1,), (-3,)) and codes.span.channels == 1:
        return replace(codes, is_flat=True)
    if name == "select" and len(args) == 2 and args[0] in (1, -3) and isinstance(args[1], int):
        return _channel(codes, args[1])
    if name == "getitem":
        index: Any = args[0]
        if index[0] == slice(None) and all(i in (slice(None), Ellipsis) for i in index[2:]):
            return _channel(codes, index[1])
    return None


def _channel(codes: Codes, channel: int) -> Codes | None:
    count = codes.span.channels
    if not -count <= channel < count:
        return None
    return replace(codes, span=codes.span.part(channel % count, 1), is_flat=True)


def _moves_channels(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if kwargs:
        return kwargs == {"dims": (0, 3, 1, 2)} and name == "permute"
    if name == "permute":
        dims = args[0] if len(args) == 1 else args
        return tuple(d % 4 for d in dims) == (0, 3, 1, 2)
    return name in ("movedim", "moveaxis") and len(args) == 2 and args[0] in (-1, 3) and args[1] in (1, -3)
