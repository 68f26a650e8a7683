"""Linear layers whose weights are masked by the degrees of their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.masked_linear import masked_linear, masked_norm
from ..reference.masked_linear import ACTIVATIONS, mask_of, row_factors

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

    in_degrees: Tensor
    out_degrees: Tensor

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
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation, self.impl = activation, impl
        for name, degrees, count in (
            ("in_degrees", in_degrees, in_features),
            ("out_degrees", out_degrees, out_features),
        ):
            degrees = torch.as_tensor(degrees, device=device).detach().clone()
            if degrees.shape != (count,) or degrees.is_floating_point() or degrees.is_complex():
                raise ValueError(
                    f"{name} must be {count} integers, got shape {tuple(degrees.shape)} of {degrees.dtype}"
                )
            # Structure, not state: checkpoints stay those of nn.Linear.
            self.register_buffer(name, degrees.to(torch.int64), persistent=False)
        self.weight_gain = nn.Parameter(self.masked_norm().detach()) if weight_norm else None

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
            pre_activations: what the layer, without its activation, makes of a first batch: ``(*, out_features)``.
            target_std: the standard deviation to start from.

        Raises:
            ValueError: the layer has no weight normalisation.

        Reference:
            *Weight Normalization* (Salimans, Kingma, 2016), data-dependent initialisation.
        """
        if self.weight_gain is None:
            raise ValueError("initialize needs a layer with weight_norm=True")
        rows = pre_activations.reshape(-1, self.out_features).to(self.weight.dtype)
        std, mean = torch.std_mean(rows, 0, correction=0)
        factor = torch.where(std > 1e-6, target_std / std.clamp(min=1e-6), 1.0)
        self.weight_gain.mul_(factor)
        if self.bias is not None:
            self.bias.sub_(mean).mul_(factor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "degrees", None)
        mask = state_dict.pop(prefix + "mask", None)
        if mask is not None and not torch.equal(
            mask.to(self.weight.device) != 0, mask_of(self.in_degrees, self.out_degrees)
        ):
            raise ValueError(
                f"{prefix}mask in the checkpoint has other connections than in_degrees and out_degrees of this layer"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        more = f", activation={self.activation}" if self.activation else ""
        return super().extra_repr() + more + (", weight_norm=True" if self.weight_gain is not None else "")
