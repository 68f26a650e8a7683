"""Masked autoregressive networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..ops.autoregressive_flow import masked_network
from ..reference.made import MadeParameters
from ..reference.masked_linear import ACTIVATIONS
from ..structure import MadeStructure, spread_degrees
from ..structure.integers import integer
from ._discrete import DiscreteFeatures
from ._hooks import has_hooks, has_hooks_on_all
from ._refusals import check_linear
from ._replicas import replicas_of_first_batch, share
from .masked_linear import MaskedLinear

__all__ = ["MADE"]


class MADE(DiscreteFeatures):
    r"""A masked network: the parameters of feature i depend on the features before i in the order, and on a context.

    The context reaches every output, also that of the first feature: hidden units of degree 0 see nothing else. See
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
        features, context_features = integer("features", features, 1), integer("context_features", context_features, 0)
        params_per_feature = integer("params_per_feature", params_per_feature, 1)
        hidden_features = widths_of("hidden_features", hidden_features)
        if hidden_degrees is None:
            hidden_degrees = [spread_degrees(width, features, context_features > 0) for width in hidden_features]
        elif [len(degrees) for degrees in hidden_degrees] != list(hidden_features):
            raise ValueError(
                f"hidden_degrees must have the lengths {list(hidden_features)}, got {[len(d) for d in hidden_degrees]}"
            )
        self.structure = MadeStructure(
            features,
            tuple(tuple(int(d) for d in degrees) for degrees in hidden_degrees),
            tuple(places_of(order, features)),
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
        # A number, not a truth value: averages of models subtract their buffers.
        self.register_buffer("initialized", torch.tensor(int(not weight_norm)))
        self._weight_norm = self._wants_initialization = weight_norm

    def masked_layers(self) -> list[MaskedLinear]:
        """The layers, first to last.

        Raises:
            TypeError: a layer is neither a :class:`MaskedLinear` nor a wrapper of one.
        """
        return [
            layer if isinstance(layer, MaskedLinear) else _find_wrapped(layer, i) for i, layer in enumerate(self.layers)
        ]

    def fused_parameters(self) -> MadeParameters | None:
        """The parameters for one call of the network's op in place of calls of its layers.

        None where such a call would do something else: a layer has hooks, or a forward of its own.
        """
        weights: list[Any] = []
        biases: list[Any] = []
        gains: list[Any] = []
        degrees = self.structure.degrees
        for i, layer in enumerate(self.layers._modules.values()):
            if type(layer).forward is not MaskedLinear.forward or has_hooks(layer):
                return None
            own = layer.__dict__
            if "forward" in own or own["activation"] is not None or not _has_degrees(own["degrees"], degrees, i):
                return None
            # Looked up by hand: a module finds its parameters after all else, which takes as long as a kernel's call.
            # A parametrisation's are properties.
            found = own["_parameters"]
            gain = found["weight_gain"] if "weight_gain" in found else layer.weight_gain
            if (gain is not None) is not self._weight_norm:
                return None
            weights.append(found["weight"] if "weight" in found else layer.weight)
            biases.append(found["bias"] if "bias" in found else layer.bias)
            gains.append(gain)
        return MadeParameters(weights, biases, gains, normalized=self._weight_norm)

    def context_term(self, x: Tensor, context: Tensor | None) -> Tensor | None:
        """The term of the context in the first layer, ``(*, width)``, for inputs ``x`` ``(*, D)``.

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
        check_linear("context", context, self.context_layer)
        return self.context_layer(context)

    def wants_first_batch(self) -> bool:
        """Whether the next batch may set gains and biases, see :meth:`prepare`."""
        return self._wants_initialization and self.training

    def prepare(self, x: Tensor, context: Tensor | None) -> bool:
        """With weight normalisation, sets gains and biases from the first batch in training mode; tells whether it did.

        Processes of a :class:`torch.nn.parallel.DistributedDataParallel`, or in a
        :func:`fastvae.nn.shared_first_batch`, take those of their first process.

        Raises:
            RuntimeError: the first batch comes in one of several processes, and nothing keeps them equal.
        """
        if not self.wants_first_batch() or x.is_meta:
            return False
        # Read from the device once: neither a capture of a CUDA graph nor a compiler could do so. Where this batch is
        # refused, here or in initialize, the next one sets the gains.
        if not torch.compiler.is_compiling() and bool(self.initialized):
            self._wants_initialization = False
            return False
        replicas = replicas_of_first_batch()
        self.initialize(x, context)
        if replicas is not None:
            share(replicas, [p for layer in self.masked_layers() for p in (layer.weight_gain, layer.bias)])
        return True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = prefix + "initialized"
        loaded = state_dict.get(name)
        if loaded is not None:
            # Some checkpoints hold a truth value.
            state_dict[name] = loaded.to(torch.int64)
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Known from here on without a read from the device, which no compiler can follow.
        done = loaded is not None and not (loaded.is_meta or isinstance(loaded, FakeTensor)) and bool(loaded)
        self._wants_initialization = self._weight_norm and not done

    def reset_parameters(self) -> None:
        """Draws the initial weights again, and forgets a data-dependent initialisation."""
        for layer in self.masked_layers():
            layer.reset_parameters()
        if self.context_layer is not None:
            self.context_layer.reset_parameters()
        self.forget_initialization()

    @torch.no_grad()
    def forget_initialization(self) -> bool:
        """Lets the next batch in training mode set gains and biases; tells whether there is weight normalisation."""
        self.initialized.fill_(int(not self._weight_norm))
        self._wants_initialization = self._weight_norm
        return self._weight_norm

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        term = self.context_term(x, context)
        self.prepare(x, context)
        parameters = None if has_hooks_on_all() else self.fused_parameters()
        if parameters is not None:
            params = masked_network(x, term, parameters, self.structure, impl=self.impl)
        else:
            params = self._layer_by_layer(x, term, lambda layer, h, _: layer(h))
        return self.structure.split(params)

    def _layer_by_layer(
        self, x: Tensor, term: Tensor | None, run: Callable[[Callable[[Tensor], Tensor], Tensor, bool], Tensor]
    ) -> Tensor:
        """The network by calls ``run(layer, h, is_last)``; ``is_last``: of a block, or of the network."""
        first, *hidden, last = list(self.layers)
        self.masked_layers()  # raises for a layer of another kind
        act = ACTIVATIONS[self.structure.activation]
        h = run(first, x, False)
        if term is not None:
            h = h + term
        if self.structure.residual:
            for inner, outer in zip(hidden[::2], hidden[1::2], strict=True):
                h = h + run(outer, act(run(inner, act(h), False)), True)
        else:
            h = act(h)
            for layer in hidden:
                h = act(run(layer, h, False))
        return run(last, h, True)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None, *, output_std: float = 0.1) -> None:
        """Data-dependent initialisation: pre-activations of ``x`` get mean 0 and standard deviation 1.

        Args:
            x: a first batch, ``(*, D)``.
            context: its context.
            output_std: standard deviation of the last layer's outputs.

        Raises:
            ValueError: the network has no weight normalisation, or the batch is empty.

        Reference:
            *Weight Normalization* (Salimans, Kingma, 2016).
        """
        if x.numel() == 0:
            raise ValueError(f"x must hold one sample or more to initialise the network from, got {tuple(x.shape)}")

        def run(layer: Any, h: Tensor, is_last: bool) -> Tensor:
            layer.initialize(layer(h), output_std if is_last else 1.0)
            after: Tensor = layer(h)
            return after

        self._layer_by_layer(x, self.context_term(x, context), run)
        self.initialized.fill_(1)
        self._wants_initialization = False

    def extra_repr(self) -> str:
        s = self.structure
        return (
            f"features={s.features}, params_per_feature={s.params_per_feature}, activation={s.activation}, "
            f"residual={s.residual}, layout={s.layout}"
        )


def places_of(order: Sequence[int] | Tensor | None, features: int) -> list[int]:
    """The place of each feature."""
    if order is None:
        return list(range(features))
    given = order.tolist() if isinstance(order, Tensor) else list(order)
    return [integer(f"order[{i}]", place) for i, place in enumerate(given)]


def widths_of(name: str, widths: Sequence[int]) -> list[int]:
    """The widths of the hidden layers.

    Raises:
        ValueError: there is none, or one is below 1.
    """
    found = [integer(f"{name}[{i}]", width) for i, width in enumerate(widths)]
    if not found or min(found) < 1:
        raise ValueError(f"{name} must be one or more widths >= 1, got {tuple(widths)}")
    return found


def _has_degrees(own: tuple[tuple[int, ...], ...], degrees: Sequence[tuple[int, ...]], layer: int) -> bool:
    # The layer that the network made holds the very same tuples: no need to compare their numbers.
    return (own[0] is degrees[layer] and own[1] is degrees[layer + 1]) or own == tuple(degrees[layer : layer + 2])


def _find_wrapped(layer: nn.Module, index: int) -> MaskedLinear:
    """The masked layer that ``layer`` wraps."""
    inner = next((m for m in layer.modules() if isinstance(m, MaskedLinear)), None)
    own = {id(p) for p in inner.parameters()} if inner is not None else set()
    if inner is None or any(id(p) not in own for p in layer.parameters()):
        raise TypeError(
            f"layers[{index}] must be a MaskedLinear, or wrap one without parameters of its own, which no mask would "
            f"cut, got {type(layer).__name__}: adapt the weight of the MaskedLinear by torch.nn.utils.parametrize, or "
            "wrap the whole network"
        )
    return inner
