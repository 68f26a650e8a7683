"""Convolutions that see only the pixels before the output's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops._convolution import lower_to_constants, padding_of, structure_of
from ..ops.masked_conv2d import masked_conv2d_of
from ..precision import compute_dtype
from ..reference.masked_conv2d import mask_of
from ..reference.masked_linear import ACTIVATIONS, row_factors
from ..structure.convolution import MASK_TYPES, ConvStructure, pair
from ..structure.integers import integers
from ._start import start_of
from .masked_linear import set_gain_and_bias

__all__ = ["MaskedConv2d"]


class CallableMask(Tensor):
    """A mask that can also be called, for itself: ``layer.mask`` and ``layer.mask()`` are the same numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __call__(self) -> Tensor:
        return self.as_subclass(Tensor)


class MaskedConv2d(nn.Conv2d):
    r"""A :class:`torch.nn.Conv2d` over the pixels before one's own, in raster order.

    .. math::
        y = \operatorname{act}((W \circ M) * x + b) \quad\text{or, normalised,}\quad
        y = \operatorname{act}\left(\left(g \odot \frac{W \circ M}{\lVert W \circ M \rVert}\right) * x + b\right)

    See :func:`fastvae.functional.masked_conv2d` for the mask. It is neither stored nor multiplied into a copy of the
    weight; gradients of masked weights are zero. Parameters and their initialisation are those of
    :class:`torch.nn.Conv2d`; a checkpoint that carries a ``mask`` of the same connections loads.

    Args:
        in_channels, out_channels, kernel_size, padding, dilation, groups, bias, device, dtype: as in
            :class:`torch.nn.Conv2d`. With ``padding="same"`` the origin is at the output's own pixel.
        stride: must be 1.
        padding_mode: must be ``"zeros"``.
        mask_type: ``"A"``, ``"B"``, ``"vertical_A"`` or ``"vertical_B"``; ``"A"`` by default. By name only, since
            other libraries put it first or after the kernel's size.
        num_colors: colours that channels are divided into.
        color_layout: ``"contiguous"`` or ``"interleaved"``.
        in_degrees: degree of each input channel, in place of its colour.
        out_degrees: degree of each output channel.
        origin: (row, column) of the tap at the output's own pixel; even kernels need it.
        order: ``"raster"`` or ``"reversed"``.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, or None.
        weight_norm: whether the weights of each output channel that count are normalised, with a learned gain g,
            ``weight_gain``; see :func:`initialize_from_data`.
        impl: implementation, see :mod:`fastvae.backend`.

    Attributes:
        structure: the :class:`~fastvae.structure.ConvStructure`.
        in_degrees, out_degrees: lowered degrees, int64: at the origin's tap a weight counts where the first is at most
            the second; None where the structure has no such rule.

    Shape:
        ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``; the batch may be missing.

    Raises:
        TypeError: ``mask_type`` comes by position, or degrees are no integers.
        ValueError: a stride other than 1, padding of another mode, no ``mask_type`` for a kernel that ``"A"`` leaves
            without weights, or any of the errors of :func:`fastvae.functional.masked_conv2d`.

    Reference:
        *Pixel Recurrent Neural Networks* (van den Oord, Kalchbrenner, Kavukcuoglu, 2016).

    Example:
        >>> layer = MaskedConv2d(3, 6, 5, mask_type="A", num_colors=3, padding=2)
        >>> layer(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 6, 8, 8])
    """

    # The kind of layer that a sampler sees, see fastvae/sampling/layers.py.
    sampled_as: ClassVar[str] = "masked_conv"

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
        weight_norm: bool = False,
        impl: str = "auto",
    ) -> None:
        misplaced = next((v for v in (in_channels, out_channels, kernel_size, stride) if isinstance(v, str)), None)
        if misplaced is not None:
            raise TypeError(
                "mask_type must be given by name, as in MaskedConv2d(in_channels, out_channels, kernel_size, "
                f"mask_type={misplaced if misplaced in MASK_TYPES else 'A'!r}), got {misplaced!r} by position"
            )
        if isinstance(padding, str) and padding != "same":
            raise ValueError(f"padding must be an integer, two, or 'same', got {padding!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        if pair("stride", stride, 1) != (1, 1):
            raise ValueError(f"stride must be 1, got {stride!r}")
        in_channels, out_channels, groups = integers(
            1, in_channels=in_channels, out_channels=out_channels, groups=groups
        )
        kernel_size, dilation = pair("kernel_size", kernel_size, 1), pair("dilation", dilation, 1)
        padding = padding if isinstance(padding, str) else pair("padding", padding, 0)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, 1, padding, dilation, groups, bias, "zeros", device, dtype
        )
        self.activation, self.impl = activation, impl
        height, width = self.kernel_size
        self.structure: ConvStructure = structure_of(
            (height, width), "A" if mask_type is None else mask_type, origin, order, num_colors, color_layout,
            in_degrees, out_degrees,
        )  # fmt: skip
        padding_of(padding, self.structure, (1, 1))
        self._constants = lower_to_constants(
            self.structure, in_channels, out_channels, num_colors, color_layout, in_degrees, out_degrees
        )
        if mask_type is None and not self.structure.taps:
            raise ValueError(
                f"mask_type must be given for a kernel of {self.kernel_size}, of which the default 'A' keeps no "
                "weight, got None. Adapters such as LoRA make such a layer beside a MaskedConv2d, whose mask they do "
                "not know: adapt its weight by torch.nn.utils.parametrize, or wrap the whole network"
            )
        self.weight_gain = nn.Parameter(self.masked_norm().detach()) if weight_norm else None

    def reset_parameters(self) -> None:
        """Draws the initial weights again; a gain becomes the norm of its channel, which changes no output."""
        super().reset_parameters()
        gain = getattr(self, "weight_gain", None)
        if gain is not None:
            with torch.no_grad():
                gain.copy_(self.masked_norm())
        start_of(self).apply(self)

    def masked_norm(self) -> Tensor:
        """Norm of every output channel's weights over those that count, ``(out_channels,)``."""
        return _norm_of(self._kept_weight())

    def scaled_weight(self) -> Tensor:
        """The weight of the convolution: with weight normalisation g W / norm, where it counts, else the parameter."""
        if self.weight_gain is None:
            return self.weight
        kept = self._kept_weight()
        return kept * row_factors(self.weight_gain, _norm_of(kept)).view(-1, 1, 1, 1)

    def _kept_weight(self) -> Tensor:
        # Not a product with the mask: what is masked may be anything, NaN as well.
        return torch.where(self._mask_on(self.weight.device), self.weight, 0.0)

    @torch.no_grad()
    def initialize(self, pre_activations: Tensor, target_std: float = 1.0) -> None:
        """Sets gain and bias from data, such that pre-activations have mean 0 and standard deviation ``target_std``.

        Args:
            pre_activations: the layer's outputs for a first batch, before its activation: ``(N, out_channels, H, W)``.
            target_std: the standard deviation to start from.

        Raises:
            ValueError: the layer has no weight normalisation, or the batch is empty.

        Reference:
            *Weight Normalization* (Salimans, Kingma, 2016), data-dependent initialisation.
        """
        if self.weight_gain is None:
            raise ValueError("initialize needs a layer with weight_norm=True")
        if not pre_activations.numel():
            raise ValueError(
                f"pre_activations must hold one pixel or more to set gains from, got {tuple(pre_activations.shape)}"
            )
        rows = pre_activations.movedim(-3, -1).reshape(-1, self.out_channels).to(self.weight.dtype)
        set_gain_and_bias(self.weight_gain, self.bias, rows, target_std)

    @property
    def in_degrees(self) -> Tensor | None:
        degrees: Tensor | None = self._constants.on(self.weight.device)[0]
        return degrees

    @property
    def out_degrees(self) -> Tensor | None:
        degrees: Tensor | None = self._constants.on(self.weight.device)[1]
        return degrees

    @property
    def mask_type(self) -> str:
        return self.structure.mask_type

    @property
    def mask(self) -> CallableMask:
        """Which weights count: bool, in the shape of the weight; a tensor, as other libraries have it, or a method."""
        return self._mask_on(self.weight.device).as_subclass(CallableMask)

    def _mask_on(self, device: torch.device) -> Tensor:
        structure = self.structure
        ins, outs = self._constants.on(device)
        return mask_of(self.weight.shape, structure.taps, structure.origin_tap, ins, outs, self.groups, device)

    def forward(self, input: Tensor) -> Tensor:
        return masked_conv2d_of(
            input,
            self.weight if self.weight_gain is None else self.scaled_weight(),
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
        if mask is not None and not mask.is_meta and not _covers(mask.cpu() != 0, self._mask_on(torch.device("cpu"))):
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
        if self.weight_gain is not None:
            parts.append("weight_norm=True")
        return ", ".join(parts)


def _norm_of(kept: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kept, dim=(1, 2, 3), dtype=compute_dtype(kept.dtype)).to(kept.dtype)


def _covers(mask: Tensor, expected: Tensor) -> bool:
    """Whether ``mask``, which other libraries also store for the taps alone, says the same."""
    try:
        return torch.equal(mask.expand(expected.shape), expected)
    except RuntimeError:
        return False
