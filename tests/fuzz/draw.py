"""Random sizes, values and memory layouts, all drawn from one seed."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HOSTILE = (
    float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, -1e-45, 5e-324, 1e-39, 1e4, -1e4, 1e18, -1e30, 3.4e38,
    1e300, 20.0, 44.5, 88.5, 89.0, -89.0, -104.0, 355.0, 700.0, -700.0, -1000.0, 1000.0,
)  # fmt: skip
T = TypeVar("T")


@dataclass
class Problem:
    """One call of something public.

    Attributes:
        call: the function of the module, or None, and the inputs; it returns tensors.
        inputs: its tensors; one that occurs twice is passed twice.
        module: what holds the parameters.
        constants: places of the inputs that have no gradient.
        compared: whether the reference gives the same values. It does not where draws depend on roundings.
        cuts: whether a mask cuts connections. The reference multiplies what is not finite by the zeros of the mask, the
            kernels do not read it.
        ill_conditioned: whether the difference to float64 says little, because roundings grow from step to step.
    """

    call: Callable[..., Any]
    inputs: list[Any]
    module: nn.Module | None = None
    constants: tuple[int, ...] = ()
    compared: bool = True
    cuts: bool = False
    ill_conditioned: bool = False


@dataclass
class Draw:
    """A source of random choices.

    Args:
        name: of the case; equal names draw equal things, whatever else was drawn.
        tame: whether values are ordinary, layouts dense and dtypes equal.
    """

    name: str
    tame: bool = False
    rng: random.Random = field(init=False)
    generator: torch.Generator = field(init=False)
    dtype: torch.dtype = field(init=False)
    hostile: bool = field(init=False)

    def __post_init__(self) -> None:
        seed = zlib.crc32(self.name.encode())
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.rng.choices(DTYPES, (5, 2, 1, 1))[0]
        self.hostile = self.chance(0.35)

    # Choices

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def choice(self, options: Sequence[T]) -> T:
        return self.rng.choice(options)

    def size(self, largest: int = 9, zero: float = 0.06) -> int:
        """Mostly small, now and then one beside the width of a vector or of a block of samples, or 0."""
        if self.chance(zero):
            return 0
        if largest >= 9 and self.chance(0.2):
            return self.choice((15, 16, 17, 31, 33, 63, 64, 65))
        return self.rng.randint(1, largest)

    def some(self, largest: int = 9) -> int:
        return self.size(largest, zero=0.0)

    def batch(self) -> tuple[int, ...]:
        return tuple(self.size(5) for _ in range(self.rng.choices((0, 1, 2, 3), (1, 5, 2, 1))[0]))

    def degrees(self, count: int, largest: int) -> list[int]:
        return [self.rng.randint(0, max(largest, 0)) for _ in range(count)]

    # Tensors

    def values(self, shape: Sequence[int], scale: float = 0.5) -> Tensor:
        """Numbers in float64, some of them hostile in a hostile case."""
        t = scale * torch.randn(tuple(shape), dtype=torch.float64, generator=self.generator)
        if self.tame or not self.hostile or not t.numel() or self.chance(0.5):
            return t
        if self.chance(0.15):
            return torch.full_like(t, self.choice(HOSTILE))
        for _ in range(self.rng.randint(1, 3)):
            t.view(-1)[self.rng.randrange(t.numel())] = self.choice(HOSTILE)
        return t

    def tensor(self, *shape: int, scale: float = 0.5, values: Tensor | None = None) -> Tensor:
        """A tensor of the case's dtype, of a random layout, in a case with bad arguments of another dtype or shape."""
        if not self.tame and self.chance(0.01) and shape:
            shape, values = self.misshape(shape), None
        dtype = self.dtype if self.tame or not self.chance(0.01) else self.choice(DTYPES)
        values = self.values(shape, scale) if values is None else values
        return self.lay_out(values.to(dtype))

    def misshape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        place = self.rng.randrange(len(shape))
        other = self.choice((shape[place] + 1, max(shape[place] - 1, 0), 0, 1, 2))
        return self.choice(((*shape[:place], other, *shape[place + 1 :]), shape[1:], (*shape, 1), (2, *shape)))

    def lay_out(self, t: Tensor) -> Tensor:
        """``t`` in other memory; where numbers share memory, they become equal."""
        if self.tame or self.chance(0.4):
            return t
        layouts = [_slice, _step, _misalign, _transpose, _negate, _expand, _overlap, _put_channels_last]
        return self.choice(layouts)(self, t)


def _between_nan(t: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=t.dtype)


def _slice(draw: Draw, t: Tensor) -> Tensor:
    """Cut out of a larger tensor of NaN: what is read beside it shows."""
    around = [(draw.rng.randint(0, 2), draw.rng.randint(0, 2)) for _ in t.shape]
    whole = _between_nan(t, [size + a + b for size, (a, b) in zip(t.shape, around, strict=True)])
    part = whole[tuple(slice(a, a + size) for size, (a, _) in zip(t.shape, around, strict=True))]
    return part.copy_(t)


def _step(draw: Draw, t: Tensor) -> Tensor:
    steps = [draw.rng.randint(1, 3) for _ in t.shape]
    whole = _between_nan(t, [size * step for size, step in zip(t.shape, steps, strict=True)])
    return whole[tuple(slice(None, None, step) for step in steps)].copy_(t)


def _misalign(draw: Draw, t: Tensor) -> Tensor:
    start = draw.rng.randint(1, 7)
    return _between_nan(t, [t.numel() + start + 3])[start : start + t.numel()].view(t.shape).copy_(t)


def _transpose(draw: Draw, t: Tensor) -> Tensor:
    order = draw.rng.sample(range(t.dim()), t.dim())
    back = [order.index(i) for i in range(t.dim())]
    return t.permute(order).contiguous().permute(back)


def _negate(draw: Draw, t: Tensor) -> Tensor:
    return torch._neg_view(-t)


def _expand(draw: Draw, t: Tensor) -> Tensor:
    """Stride 0 in some dimensions."""
    shared = [draw.chance(0.5) and size > 0 for size in t.shape]
    first = t[tuple(slice(0, 1) if one else slice(None) for one in shared)].clone()
    return first.expand(t.shape)


def _overlap(draw: Draw, t: Tensor) -> Tensor:
    """Rows that share all numbers but one with the next."""
    if not t.numel():
        return t
    strides = [1] * t.dim()
    needed = 1 + sum(size - 1 for size in t.shape)
    memory = t.reshape(-1)[:needed].clone()
    return memory.as_strided(t.shape, strides) if memory.numel() == needed else t


def _put_channels_last(draw: Draw, t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t
