"""The structure of a masked convolution: the taps it keeps, their offsets, and a rule of degrees at one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .integers import integer

__all__ = ["COLOR_LAYOUTS", "MASK_TYPES", "ORDERS", "ConvStructure", "colors_of", "pair"]

MASK_TYPES = ("A", "B", "vertical_A", "vertical_B")
ORDERS = ("raster", "reversed")
COLOR_LAYOUTS = ("contiguous", "interleaved")


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """``value`` as two integers, both at least ``least``.

    Raises:
        ValueError: ``value`` is neither an integer nor two, or one is below ``least``.

    Example:
        >>> pair("dilation", 2, 1)
        (2, 2)
    """
    both = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{name} must be an integer or two, got {value!r}")
    try:
        first, second = integer(name, both[0]), integer(name, both[1])
    except TypeError:
        raise ValueError(f"{name} must be an integer or two, got {value!r}") from None
    if first < least or second < least:
        raise ValueError(f"{name} must be >= {least}, got {value!r}")
    return first, second


def colors_of(name: str, channels: int, num_colors: int, color_layout: str) -> tuple[int, ...]:
    """The colour, 0 to ``num_colors - 1``, of each channel of ``name``.

    ``"contiguous"`` colours are groups of neighbours; ``"interleaved"`` is the channel modulo ``num_colors``.

    Raises:
        TypeError: ``channels`` or ``num_colors`` is no integer.
        ValueError: the layout is unknown, or ``num_colors`` is below 1 or does not divide the channels.

    Example:
        >>> colors_of("in_channels", 6, 3, "contiguous"), colors_of("in_channels", 6, 3, "interleaved")
        ((0, 0, 1, 1, 2, 2), (0, 1, 2, 0, 1, 2))
    """
    num_colors, channels = check_colors(num_colors, color_layout), integer(name, channels)
    if channels % num_colors:
        raise ValueError(f"num_colors must divide {name}, {channels}, got {num_colors}")
    if color_layout == "interleaved":
        return tuple(channel % num_colors for channel in range(channels))
    return tuple(channel * num_colors // channels for channel in range(channels))


def check_colors(num_colors: int, color_layout: str) -> int:
    """``num_colors`` as a Python integer, once both arguments are known to be valid."""
    if color_layout not in COLOR_LAYOUTS:
        raise ValueError(f"color_layout must be one of {', '.join(COLOR_LAYOUTS)}, got {color_layout!r}")
    return integer("num_colors", num_colors, 1)


@dataclass(frozen=True)
class ConvStructure:
    """The taps of a convolution's kernel that count.

    ``"A"`` keeps the rows above the origin and, in its row, what is left of it; ``"B"`` keeps the origin as well.
    ``"vertical_A"`` keeps the rows above, whole; ``"vertical_B"`` the origin's row as well. The order ``"reversed"`` is
    the mirror image: rows below, and what is right of the origin.

    With a rule of degrees, ``has_rule``, the origin's tap of ``"A"`` and ``"B"`` keeps the weights from an input i to
    an output o for which ``in_degrees[i] < out_degrees[o]`` (A) or ``<=`` (B). :attr:`degree_shift` turns both into
    ``in_degrees[i] <= out_degrees[o] + degree_shift``. The vertical types know no such rule.

    Args:
        kernel_size: height and width of the kernel.
        mask_type: one of :data:`MASK_TYPES`.
        origin: row and column of the tap at the output's own pixel; the centre of an odd kernel by default.
        order: ``"raster"`` or ``"reversed"``.
        has_rule: whether weights at the origin's tap count by degrees.

    Attributes:
        taps: flat indices, ky * width + kx, of the taps that keep weights: one ascending range.

    Raises:
        ValueError: an argument has another value, or an even kernel comes without an origin.

    Example:
        >>> ConvStructure((3, 3), "A").taps, ConvStructure((3, 3), "B").taps
        ((0, 1, 2, 3), (0, 1, 2, 3, 4))
        >>> ConvStructure((2, 2), "B", origin=(1, 1)).offsets()
        ((-1, -1), (-1, 0), (0, -1), (0, 0))
    """

    kernel_size: tuple[int, int]
    mask_type: str
    origin: tuple[int, int] | None = None
    order: str = "raster"
    has_rule: bool = False
    # Not computed on demand: compilers trace construction, but not the lock of a cached property.
    taps: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        height, width = kernel = pair("kernel_size", self.kernel_size, 1)
        if self.mask_type not in MASK_TYPES:
            raise ValueError(f"mask_type must be one of {', '.join(MASK_TYPES)}, got {self.mask_type!r}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {self.order!r}")
        if self.origin is None:
            if height % 2 == 0 or width % 2 == 0:
                raise ValueError(
                    f"an even kernel has no centre: origin must name the row and column of the tap over the output's "
                    f"own pixel for kernel_size {kernel}, got None"
                )
            origin = (height // 2, width // 2)
        else:
            origin = pair("origin", self.origin, 0)
            if origin[0] >= height or origin[1] >= width:
                raise ValueError(f"origin must be a tap of the kernel {kernel}, got {origin}")
        object.__setattr__(self, "kernel_size", kernel)
        object.__setattr__(self, "origin", origin)
        # The vertical types never have a rule, so that equal structures compare equal.
        object.__setattr__(self, "has_rule", not self.is_vertical and self.has_rule)
        object.__setattr__(self, "taps", self._range_of_taps(*kernel, *origin))

    def _range_of_taps(self, height: int, width: int, row: int, column: int) -> tuple[int, ...]:
        if self.order == "reversed":
            row, column = height - 1 - row, width - 1 - column
        # Not every torch adds a truth value to a symbolic size.
        if self.is_vertical:
            count = (row + int(self.mask_type == "vertical_B")) * width
        else:
            count = row * width + column + int(self.mask_type == "B" or self.has_rule)
        first = 0 if self.order == "raster" else height * width - count
        return tuple(range(first, first + count))

    @property
    def is_vertical(self) -> bool:
        return self.mask_type.startswith("vertical")

    @property
    def origin_tap(self) -> int:
        """Flat index of the tap that keeps weights by degrees, or -1 where none does."""
        if not self.has_rule:
            return -1
        assert self.origin is not None
        return self.origin[0] * self.kernel_size[1] + self.origin[1]

    @property
    def degree_shift(self) -> int:
        """What to add to the outputs' degrees so that ``<=`` is the rule: -1 for type A, 0 for B."""
        return -1 if self.mask_type == "A" else 0

    def offsets(self, dilation: int | Sequence[int] = 1) -> tuple[tuple[int, int], ...]:
        """For each of ``taps`` the row and column of the pixel that it reads, relative to the output's own pixel."""
        assert self.origin is not None
        (step_y, step_x), (row, column) = pair("dilation", dilation, 1), self.origin
        width = self.kernel_size[1]
        return tuple(((tap // width - row) * step_y, (tap % width - column) * step_x) for tap in self.taps)

    def padding(self, dilation: int | Sequence[int] = 1) -> tuple[int, int, int, int]:
        """Zeros (top, left, bottom, right) that put the origin at the own pixel and keep the image's size."""
        assert self.origin is not None
        (step_y, step_x), (height, width), (row, column) = pair("dilation", dilation, 1), self.kernel_size, self.origin
        return row * step_y, column * step_x, (height - 1 - row) * step_y, (width - 1 - column) * step_x
