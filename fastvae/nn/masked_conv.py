"""Convolutions whose kernels see the pixels before one's own only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..conv_structure import MASK_TYPES, ConvStructure
from ..ops._convolution import lowered_degrees, padding_of, structure_of
from ..ops.masked_conv2d import masked_conv2d_of
from ..reference.masked_conv2d import mask_of
from ..reference.masked_linear import ACTIVATIONS

__all__ = ["MaskedConv2d"]


class MaskedConv2d(nn.Conv2d):
    r"""A :class:`torch.nn.Conv2d` over the pixels before one's own, in raster order.

    .. math::
        y = \operatorname{act}((W \circ M) * x + b)

    See :func:`fastvae.functional.masked_conv2d` for the mask. It is neither stored nor multiplied into a copy of the
    weight; gradients of masked weights are zero. Parameters and their initialisation are those of
    :class:`torch.nn.Conv2d`; a checkpoint that carries a ``mask`` of the same connections loads.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation, groups, bias, device, dtype: as in
            :class:`torch.nn.Conv2d`. With ``padding="same"`` the origin lies over the output's own pixel.
        stride: must be 1.
        padding_mode: must be ``"zeros"``.
        mask_type: ``"A"``, ``"B"``, ``"vertical_A"`` or ``"vertical_B"``.
        num_colors: colours that channels are divided into.
        color_layout: ``"contiguous"`` or ``"interleaved"``.
        in_degrees: degree of each input channel, in place of its colour.
        out_degrees: degree of each output channel.
        origin: (row, column) of the tap over the output's own pixel; even kernels need it.
        order: ``"raster"`` or ``"reversed"``.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, or None.
        impl: implementation, see :mod:`fastvae.backend`.

    Attributes:
        structure: the :class:`~fastvae.conv_structure.ConvStructure`.
        in_degrees, out_degrees: lowered degrees, int64: at the origin's tap a weight counts where the first is at most
            the second; None where the structure has no such rule.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``; the batch may be missing.

    Raises:
        TypeError: ``mask_type`` is missing or stands where ``in_channels`` belongs, or degrees are no integers.
        ValueError: a stride other than 1, padding of another mode, or any of the errors of
            :func:`fastvae.functional.masked_conv2d`.

    Reference:
        *Pixel Recurrent Neural Networks* (van den Oord, Kalchbrenner, Kavukcuoglu, 2016).

    Example:
        >>> layer = MaskedConv2d(3, 6, 5, mask_type="A", num_colors=3, padding=2)
        >>> layer(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 6, 8, 8])
    """

    in_degrees: Tensor | None
    out_degrees: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        mask_type: str | None = None,
        num_colors: int = 1,
        color_layout: str = "contiguous",
        in_degrees: Sequence[int] | Tensor | None = None,
        out_degrees: Sequence[int] | Tensor | None = None,
        origin: tuple[int, int] | None = None,
        order: str = "raster",
        activation: str | None = None,
        impl: str = "auto",
    ) -> None:
        # Other libraries take the type by position, first or after the kernel's size.
        misplaced = next((v for v in (in_channels, out_channels, kernel_size, stride) if isinstance(v, str)), None)
        if misplaced is not None or mask_type is None:
            raise TypeError(
                "mask_type must be given by name, as in MaskedConv2d(in_channels, out_channels, kernel_size, "
                f"mask_type={misplaced if misplaced in MASK_TYPES else 'A'!r}), got "
                + ("none" if misplaced is None else f"{misplaced!r} by position")
            )
        if isinstance(padding, str) and padding != "same":
            raise ValueError(f"padding must be an integer, two, or 'same', got {padding!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        if stride not in (1, (1, 1), [1, 1]):
            raise ValueError(f"stride must be 1, got {stride!r}")
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, 1, padding, dilation, groups, bias, "zeros", device, dtype
        )
        self.activation, self.impl = activation, impl
        height, width = self.kernel_size
        self.structure: ConvStructure = structure_of(
            (height, width), mask_type, origin, order, num_colors, color_layout, in_degrees, out_degrees
        )
        padding_of(padding, self.structure, (1, 1))
        lowered = lowered_degrees(
            self.structure, in_channels, out_channels, num_colors, color_layout, in_degrees, out_degrees,
            self.weight.device,
        )  # fmt: skip
        for name, degrees in zip(("in_degrees", "out_degrees"), lowered, strict=True):
            # Structure, not state: checkpoints stay those of nn.Conv2d.
            self.register_buffer(name, None if degrees is None else degrees.clone(), persistent=False)

    @property
    def mask_type(self) -> str:
        return self.structure.mask_type

    def mask(self) -> Tensor:
        """Which weights count: bool, in the shape of the weight."""
        return mask_of(
            self.weight.shape, self.structure.taps, self.structure.origin_tap, self.in_degrees, self.out_degrees,
            self.groups, self.weight.device,
        )  # fmt: skip

    def forward(self, input: Tensor) -> Tensor:
        return masked_conv2d_of(
            input,
            self.weight,
            self.bias,
            self.structure,
            self.in_degrees,
            self.out_degrees,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            impl=self.impl,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        mask = state_dict.pop(prefix + "mask", None)
        if mask is not None and not _covers(mask.to(self.weight.device) != 0, self.mask()):
            raise ValueError(
                f"{prefix}mask in the checkpoint, of shape {tuple(mask.shape)}, has other connections than this layer "
                f"of mask_type={self.mask_type!r}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        structure = self.structure
        height, width = structure.kernel_size
        parts = [super().extra_repr(), f"mask_type={structure.mask_type}"]
        if structure.has_rule:
            parts.append("colored")
        if structure.origin != (height // 2, width // 2) or height % 2 == 0 or width % 2 == 0:
            parts.append(f"origin={structure.origin}")
        if structure.order != "raster":
            parts.append(f"order={structure.order}")
        if self.activation:
            parts.append(f"activation={self.activation}")
        return ", ".join(parts)


def _covers(mask: Tensor, expected: Tensor) -> bool:
    """Whether ``mask``, which other libraries also store for the taps alone, says the same."""
    try:
        return torch.equal(mask.expand(expected.shape), expected)
    except RuntimeError:
        return False
