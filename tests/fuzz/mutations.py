"""Wrong arguments made of right ones, by the type that the operator's schema names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .draw import DTYPES, Draw

INTEGERS = (-1, 0, 1, 2, 3, 7, 63, 64, 65, 2**31 - 1, 2**31, 2**32, 2**57, 2**62, 2**63 - 1, -(2**31), -(2**63))
STRINGS = ("", "nonsense", "identity", "relu", "silu", "gelu", "tanh", "linear", "gated", "exp", "\0", "x" * 4096, "é")
FLOATS = (0.0, -1.0, 1e308, float("nan"), float("inf"), -float("inf"))


def mutate(draw: Draw, args: list[Any], types: list[str]) -> list[Any]:
    """The arguments with one of them replaced, or with two of them exchanged."""
    place = draw.rng.randrange(len(args))
    if draw.chance(0.08):
        other = draw.rng.randrange(len(args))
        args = list(args)
        args[place], args[other] = args[other], args[place]
        return args
    changed = _argument(draw, args[place], types[place])
    return [*args[:place], changed, *args[place + 1 :]]


def _argument(draw: Draw, value: Any, kind: str) -> Any:
    if draw.chance(0.05):
        return None
    if isinstance(value, Tensor):
        return _tensor(draw, value)
    if isinstance(value, (list, tuple)):
        return _list(draw, list(value))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((*INTEGERS, value + 1, value - 1))
    if isinstance(value, float):
        return draw.choice(FLOATS)
    if isinstance(value, str):
        return draw.choice(STRINGS)
    # An optional tensor that there was not.
    return torch.randn([draw.size(6) for _ in range(draw.rng.randint(0, 4))], generator=draw.generator)


def _list(draw: Draw, values: list[Any]) -> list[Any]:
    action = draw.choice(("empty", "shorter", "longer", "doubled", "entry", "entry", "entry", "reversed"))
    if action == "empty" or not values:
        return [] if values or draw.chance(0.5) else [draw.choice(INTEGERS)]
    place = draw.rng.randrange(len(values))
    if action == "shorter":
        return values[:place] + values[place + 1 :]
    if action == "longer":
        return [*values[:place], values[place], *values[place:]]
    if action == "doubled":
        return values * draw.choice((2, 40))
    if action == "reversed":
        return values[::-1]
    changed = _argument(draw, values[place], "")
    return [*values[:place], changed, *values[place + 1 :]]


def _tensor(draw: Draw, t: Tensor) -> Tensor:
    return draw.choice((_resize, _resize, _resize, _retype, _move, _restride, _restride, _revalue))(draw, t)


def _is_plain(t: Tensor) -> bool:
    return t.is_cpu and t.layout is torch.strided and not t.is_nested


def _resize(draw: Draw, t: Tensor) -> Tensor:
    """Of another shape, with numbers of the same kind."""
    shape = [] if t.is_nested else list(t.shape)
    action = draw.choice(("size", "size", "size", "fewer", "more", "none", "flat", "exchanged"))
    if action == "none" or (not shape and action != "more"):
        shape = [0] if draw.chance(0.5) else []
    elif action == "size":
        place = draw.rng.randrange(len(shape))
        shape[place] = max(0, draw.choice((shape[place] + 1, shape[place] - 1, 2 * shape[place], 0, 1, 64)))
    elif action == "fewer":
        shape.pop(draw.rng.randrange(len(shape)))
    elif action == "more":
        shape.insert(draw.rng.randint(0, len(shape)), draw.choice((1, 1, 2, 0)))
    elif action == "flat":
        shape = [t.numel()]
    else:
        draw.rng.shuffle(shape)
    if not _is_plain(t):
        return torch.zeros(shape)
    count = torch.Size(shape).numel()
    numbers = t.reshape(-1)
    repeated = numbers.repeat(-(-count // numbers.numel())) if numbers.numel() else numbers.new_zeros(count)
    return repeated[:count].reshape(shape)


def _retype(draw: Draw, t: Tensor) -> Tensor:
    if not _is_plain(t):
        return t
    others = (*DTYPES, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64)
    return t.to(draw.choice(others))


def _move(draw: Draw, t: Tensor) -> Tensor:
    """On the meta device, sparse, or conjugated: nothing that a kernel can read."""
    action = draw.choice(("meta", "meta", "sparse", "conjugated", "nested"))
    if action == "meta" or not _is_plain(t):
        return torch.zeros(1, device="meta") if t.is_nested else t.to("meta")
    if action == "sparse":
        return t.to_sparse() if t.dim() else t.to("meta")
    if action == "nested":
        return torch.nested.nested_tensor([t]) if t.dim() and t.is_floating_point() else t.to("meta")
    return torch.complex(t.float(), t.float()).conj()


def _restride(draw: Draw, t: Tensor) -> Tensor:
    """The same or other numbers in other memory; many of these are right."""
    if not _is_plain(t):
        return t
    action = draw.choice(("expanded", "transposed", "overlapping", "laid out", "laid out", "negated"))
    if action == "expanded":
        return t.reshape(-1)[:1].reshape([1] * t.dim()).expand(t.shape) if t.numel() else t
    if action == "transposed":
        return t.transpose(draw.rng.randrange(t.dim()), draw.rng.randrange(t.dim())) if t.dim() else t
    if action == "overlapping":
        return t.contiguous().as_strided(t.shape, [draw.choice((0, 1)) for _ in t.shape]) if t.numel() else t
    if action == "negated":
        return torch._neg_view(t) if t.is_floating_point() else t
    wild = Draw(f"{draw.name}/layout/{draw.rng.random()}")
    return wild.lay_out(t) if t.is_floating_point() and t.dim() else t


def _revalue(draw: Draw, t: Tensor) -> Tensor:
    """Other numbers, huge and negative ones among integers."""
    if not _is_plain(t) or not t.numel():
        return t
    copy = t.clone(memory_format=torch.contiguous_format)
    place = draw.rng.randrange(copy.numel())
    if t.is_floating_point():
        copy.view(-1)[place] = draw.choice((float("nan"), float("inf"), -1e30, 1e4))
    elif t.dtype is torch.int64:
        copy.view(-1)[place] = draw.choice((*INTEGERS, int(copy.view(-1)[place]) + 1))
    return copy
