"""Masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.autoregressive_flow import made
from ..reference.made import MadeParameters
from ..reference.masked_linear import ACTIVATIONS
from ..structure import MadeStructure, spread_degrees
from .masked import MaskedLinear

__all__ = ["MADE"]


class MADE(nn.Module):
    r"""A network whose parameters of feature i depend on the features before i in the order, and on a context.

    The context reaches every output, the first one's included: hidden units of degree 0 see nothing else. See
    :class:`fastvae.structure.MadeStructure` for the layers, plain and residual.

    Args:
        features: number D of features.
        hidden_features: widths of the hidden layers; with ``residual`` one layer and then two for each block, all of
            one width.
        params_per_feature: parameters P of each feature.
        context_features: width of the context, 0 for none.
        order: place of each feature in the order, a permutation of 0, ..., D - 1; None: 0, 1, ...
        activation: ``"elu"``, ``"relu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"`` or ``"identity"``.
        residual: whether hidden layers form residual blocks.
        weight_norm: whether weights are normalised, with gains and biases set from the first batch in training mode.
        layout: order of the last layer's outputs: ``"blocked"`` (p D + i) or ``"interleaved"`` (i P + p).
        hidden_degrees: degrees of the hidden units of each layer, instead of groups of equal size.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``x`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, P, D)``; batches broadcast.

    Raises:
        ValueError: sizes, order or names that do not fit; a context that is missing, unexpected or of another width.

    Reference:
        *MADE: Masked Autoencoder for Distribution Estimation* (Germain, Gregor, Murray, Larochelle, 2015).

    Example:
        >>> net = MADE(5, (32, 32), context_features=3)
        >>> net(torch.randn(7, 5), torch.randn(7, 3)).shape
        torch.Size([7, 2, 5])
    """

    def __init__(
        self,
        features: int,
        hidden_features: Sequence[int] = (512, 512),
        *,
        params_per_feature: int = 2,
        context_features: int = 0,
        order: Sequence[int] | Tensor | None = None,
        activation: str = "elu",
        residual: bool = False,
        weight_norm: bool = False,
        layout: str = "blocked",
        hidden_degrees: Sequence[Sequence[int]] | None = None,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be >= 1, got {features}")
        if context_features < 0:
            raise ValueError(f"context_features must be >= 0, got {context_features}")
        if not hidden_features or min(hidden_features) < 1:
            raise ValueError(f"hidden_features must be one or more widths >= 1, got {tuple(hidden_features)}")
        if hidden_degrees is None:
            hidden_degrees = [spread_degrees(width, features, context_features > 0) for width in hidden_features]
        elif [len(degrees) for degrees in hidden_degrees] != list(hidden_features):
            raise ValueError(
                f"hidden_degrees must have the lengths {list(hidden_features)}, got {[len(d) for d in hidden_degrees]}"
            )
        places = range(features) if order is None else torch.as_tensor(order).tolist()
        self.structure = MadeStructure(
            features,
            tuple(tuple(int(d) for d in degrees) for degrees in hidden_degrees),
            tuple(places),
            params_per_feature,
            activation,
            residual,
            layout,
        )
        self.features, self.context_features, self.impl = features, context_features, impl
        degrees = self.structure.degrees
        self.layers = nn.ModuleList(
            MaskedLinear(
                len(degrees[i]),
                len(degrees[i + 1]),
                degrees[i],
                degrees[i + 1],
                weight_norm=weight_norm,
                impl=impl,
                device=device,
                dtype=dtype,
            )
            for i in range(len(degrees) - 1)
        )
        self.context_layer = (
            nn.Linear(context_features, len(degrees[1]), bias=False, device=device, dtype=dtype)
            if context_features
            else None
        )
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(not weight_norm))
        self._weight_norm = self._wants_initialization = weight_norm

    def masked_layers(self) -> list[MaskedLinear]:
        return list(self.layers)  # type: ignore[arg-type]

    def parameters_of_layers(self) -> MadeParameters:
        layers = self.masked_layers()
        return MadeParameters(
            [layer.weight for layer in layers],
            [layer.bias for layer in layers],
            [layer.weight_gain for layer in layers],
            [layers[0].in_degrees, *(layer.out_degrees for layer in layers)],
            normalized=layers[0].weight_gain is not None,
        )

    def context_term(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first layer, ``(*, width)``, for inputs ``x`` ``(*, D)``.

        Raises:
            ValueError: ``x`` or ``context`` is of another width than expected, or the context is missing or unexpected.
        """
        if x.dim() == 0 or x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (*, {self.features}), got {tuple(x.shape)}")
        if self.context_layer is None:
            if context is not None:
                raise ValueError("context must be None: the network was made with context_features=0")
            return None
        if context is None:
            raise ValueError(f"context must be given, shape (*, {self.context_features})")
        if context.dim() == 0 or context.shape[-1] != self.context_features:
            raise ValueError(f"context must have shape (*, {self.context_features}), got {tuple(context.shape)}")
        return self.context_layer(context)

    def prepare(self, x: Tensor, context: Tensor | None) -> bool:
        """With weight normalisation: sets gains and biases from the first batch in training mode; whether it did."""
        if not self._wants_initialization or not self.training:
            return False
        # Read from the device once: a capture of a CUDA graph could not wait for it.
        self._wants_initialization = False
        if bool(self.initialized):
            return False
        self.initialize(x, context)
        return True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._wants_initialization = self._weight_norm

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        term = self.context_term(x, context)
        self.prepare(x, context)
        return self.structure.split(made(x, term, self.parameters_of_layers(), self.structure, impl=self.impl))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None, *, output_std: float = 0.1) -> None:
        """Data-dependent initialisation: pre-activations of ``x`` get mean 0 and standard deviation 1.

        Args:
            x: a first batch, ``(*, D)``.
            context: its context.
            output_std: standard deviation of the last layer's outputs.

        Raises:
            ValueError: the network has no weight normalisation.

        Reference:
            *Weight Normalization* (Salimans, Kingma, 2016).
        """
        layers, act = self.masked_layers(), ACTIVATIONS[self.structure.activation]
        term = self.context_term(x, context)

        def run(layer: MaskedLinear, h: Tensor, std: float = 1.0) -> Tensor:
            layer.initialize(layer(h), std)
            return layer(h)

        h = run(layers[0], x)
        if term is not None:
            h = h + term
        if self.structure.residual:
            for first, second in zip(layers[1:-1:2], layers[2:-1:2], strict=True):
                h = h + run(second, act(run(first, act(h))), std=output_std)
        else:
            h = act(h)
            for layer in layers[1:-1]:
                h = act(run(layer, h))
        run(layers[-1], h, std=output_std)
        self.initialized.fill_(True)

    def extra_repr(self) -> str:
        s = self.structure
        return (
            f"features={s.features}, params_per_feature={s.params_per_feature}, activation={s.activation}, "
            f"residual={s.residual}, layout={s.layout}"
        )
