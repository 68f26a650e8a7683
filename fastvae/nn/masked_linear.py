"""Linear layers with weights that the degrees of their units mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._layers import degrees_of
from ..ops.masked_linear import masked_linear, masked_norm
from ..reference.masked_linear import ACTIVATIONS, mask_of, row_factors
from ..structure.constants import IntegerConstants
from ..structure.integers import integers
from ._start import start_of

__all__ = ["MaskedLinear"]


class MaskedLinear(nn.Linear):
    r"""A :class:`torch.nn.Linear` that keeps a weight where ``in_degrees[i] <= out_degrees[o]``.

    .. math::
        y = \operatorname{act}((W \circ M)\, x + b) \quad\text{or, normalised,}\quad
        y = \operatorname{act}\left(g \odot \frac{(W \circ M)\, x}{\lVert W \circ M \rVert} + b\right)

    The mask is neither stored nor multiplied into a copy of the weight; gradients of masked weights are zero.
    A checkpoint that carries a ``mask`` of the same connections, and maybe ``degrees``, loads.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        in_degrees: degree of each input.
        out_degrees: degree of each output.
        bias: whether b is learned.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, or None.
        weight_norm: whether rows of the weight are normalised, with a learned gain g; see :meth:`initialize`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``(*, in_features)`` to ``(*, out_features)``.

    Raises:
        ValueError: degrees of the wrong length, or an unknown activation.

    Example:
        >>> layer = MaskedLinear(3, 4, [1, 2, 3], [0, 1, 2, 3], activation="elu")
        >>> layer(torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        in_degrees: Sequence[int] | Tensor,
        out_degrees: Sequence[int] | Tensor,
        bias: bool = True,
        *,
        activation: str | None = None,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        in_features, out_features = integers(1, in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self.impl = activation, impl
        self.degrees = (
            degrees_of("in_degrees", in_degrees, in_features),
            degrees_of("out_degrees", out_degrees, out_features),
        )
        self._constants = IntegerConstants(*self.degrees)
        self.weight_gain = nn.Parameter(self.masked_norm().detach()) if weight_norm else None

    @property
    def in_degrees(self) -> Tensor:
        """Degree of each input, int64, on the device of the weight."""
        degrees: Tensor = self._constants.on(self.weight.device)[0]
        return degrees

    @property
    def out_degrees(self) -> Tensor:
        """Degree of each output, int64, on the device of the weight."""
        degrees: Tensor = self._constants.on(self.weight.device)[1]
        return degrees

    def reset_parameters(self) -> None:
        """Draws the initial weights again; a gain becomes the norm of its row, which changes no output."""
        super().reset_parameters()
        gain = getattr(self, "weight_gain", None)
        if gain is not None:
            with torch.no_grad():
                gain.copy_(self.masked_norm())
        start_of(self).apply(self)

    def masked_norm(self) -> Tensor:
        """Norm of every row of the weight over the connections that count, ``(out_features,)``."""
        return masked_norm(self.weight, in_degrees=self.in_degrees, out_degrees=self.out_degrees, impl=self.impl)

    def weight_scale(self) -> Tensor | None:
        """With weight normalisation the factor of each row, g / norm; rows without connections have the factor 0."""
        if self.weight_gain is None:
            return None
        return row_factors(self.weight_gain, self.masked_norm())

    def forward(self, input: Tensor) -> Tensor:
        return masked_linear(
            input,
            self.weight,
            self.bias,
            in_degrees=self.in_degrees,
            out_degrees=self.out_degrees,
            activation=self.activation,
            weight_scale=self.weight_scale(),
            impl=self.impl,
        )

    @torch.no_grad()
    def initialize(self, pre_activations: Tensor, target_std: float = 1.0) -> None:
        """Sets gain and bias from data, such that pre-activations have mean 0 and standard deviation ``target_std``.

        Args:
            pre_activations: the layer's outputs for a first batch, before its activation: ``(*, out_features)``.
            target_std: the standard deviation to start from.

        Raises:
            ValueError: the layer has no weight normalisation, or the batch is empty.

        Reference:
            *Weight Normalization* (Salimans, Kingma, 2016), data-dependent initialisation.
        """
        if self.weight_gain is None:
            raise ValueError("initialize needs a layer with weight_norm=True")
        rows = pre_activations.reshape(-1, self.out_features).to(self.weight.dtype)
        if not len(rows):
            raise ValueError(
                f"pre_activations must hold one sample or more to set gains from, got {tuple(pre_activations.shape)}"
            )
        set_gain_and_bias(self.weight_gain, self.bias, rows, target_std)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "degrees", None)
        mask = state_dict.pop(prefix + "mask", None)
        expected = mask_of(*self._constants.on(torch.device("cpu")))
        if mask is not None and not mask.is_meta and not torch.equal(mask.cpu() != 0, expected):
            raise ValueError(
                f"{prefix}mask in the checkpoint has other connections than in_degrees and out_degrees of this layer"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        more = f", activation={self.activation}" if self.activation else ""
        return super().extra_repr() + more + (", weight_norm=True" if self.weight_gain is not None else "")


def set_gain_and_bias(gain: Tensor, bias: Tensor | None, rows: Tensor, target_std: float) -> None:
    """Gives pre-activations, now ``rows`` ``(samples, out)``, mean 0, where there is a bias, and this deviation."""
    std, mean = torch.std_mean(rows, 0, correction=0)
    factor = torch.where(std > 1e-6, target_std / std.clamp(min=1e-6), 1.0)
    gain.mul_(factor)
    if bias is not None:
        bias.sub_(mean).mul_(factor)
