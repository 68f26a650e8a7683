"""The structure of a masked autoregressive network: sizes, degrees, activation."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from .constants import IntegerConstants, Tables

__all__ = ["ACTIVATION_NAMES", "LAYOUTS", "MadeStructure", "hidden_degrees_of", "read_structure", "spread_degrees"]

# In the order of the kernels' numbers (csrc/base/codes.h).
ACTIVATION_NAMES = ("identity", "relu", "elu", "tanh", "softplus", "gelu", "silu")
LAYOUTS = ("blocked", "interleaved")


def spread_degrees(width: int, features: int, with_context: bool) -> tuple[int, ...]:
    """Degrees of ``width`` hidden units in groups of equal size, in ascending order.

    They run from 1 to D - 1. With a context, units of degree 0, which see nothing but the context, carry it to the
    output of the first feature.

    Example:
        >>> spread_degrees(6, 4, False), spread_degrees(4, 4, True)
        ((1, 1, 2, 2, 3, 3), (0, 1, 2, 3))
    """
    first = 0 if with_context or features == 1 else 1
    count = max(features - first, 1)
    return tuple(first + unit * count // width for unit in range(width))


@dataclass(frozen=True)
class MadeStructure:
    r"""The shape of a masked autoregressive network (MADE).

    Feature i has the place ``order[i]`` (0 is first); its input has degree ``order[i] + 1``, its outputs
    ``order[i]``. A weight counts where the degree of its input is at most that of its output, so that the parameters
    of a feature depend on the features before it only.

    Without ``residual``: :math:`h_1 = a(W_1 x + b_1 + c)`, :math:`h_l = a(W_l h_{l-1} + b_l)`, parameters
    :math:`W_{L+1} h_L + b_{L+1}`, with c the context's term. With it: :math:`h = W_1 x + b_1 + c`, then for each
    pair of hidden layers :math:`h \leftarrow h + W_b\, a(W_a\, a(h) + b_a) + b_b`, parameters
    :math:`W_{L+1} h + b_{L+1}`.

    Args:
        features: number D of features.
        hidden_degrees: degrees of the units of each hidden layer; with ``residual`` layer 1 and then two layers for
            each block, all alike.
        order: place of each feature.
        params_per_feature: parameters P of each feature.
        activation: name of a.
        residual: whether hidden layers form residual blocks.
        layout: ``"blocked"``: output ``p * D + i`` is parameter p of feature i; ``"interleaved"``: ``i * P + p``.
    """

    features: int
    hidden_degrees: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    params_per_feature: int = 2
    activation: str = "elu"
    residual: bool = False
    layout: str = "blocked"
    # The numbers that ``fastvae.ops`` makes of the structure for the C++ extension, by kind of the flow step.
    fields: dict[str | None, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    # Degrees of the inputs, of each hidden layer, of the outputs. Not computed on demand: compilers trace construction,
    # but not the lock of a cached property.
    degrees: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    # The number of units of each of these layers with a degree of at most 0, 1, ..., D.
    counts: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False)
    # What the kernels of a GPU read of the structure, beside the degrees.
    tables: Tables = field(default_factory=Tables, init=False, repr=False, compare=False)
    # All of this as text: ops take numbers, tensors and text only, see `read_structure`.
    description: str = field(init=False, repr=False, compare=False)
    _constants: IntegerConstants = field(init=False, repr=False, compare=False)
    _sorted: IntegerConstants = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features must be >= 1, got {self.features}")
        if not self.hidden_degrees or not all(self.hidden_degrees):
            raise ValueError("hidden_features must name one or more layers of one or more units")
        if sorted(self.order) != list(range(self.features)):
            raise ValueError(f"order must be a permutation of 0, ..., {self.features - 1}, got {tuple(self.order)}")
        if self.params_per_feature < 1:
            raise ValueError(f"params_per_feature must be >= 1, got {self.params_per_feature}")
        if self.activation not in ACTIVATION_NAMES:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATION_NAMES)}, got {self.activation!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.residual:
            if len(self.hidden_degrees) % 2 == 0:
                raise ValueError(
                    "with residual, hidden_features must be a first layer and two layers for each block, an odd number "
                    f"of layers, got {len(self.hidden_degrees)}"
                )
            if any(degrees != self.hidden_degrees[0] for degrees in self.hidden_degrees):
                raise ValueError("with residual, all hidden layers must have the same width and degrees")
        inputs = tuple(place + 1 for place in self.order)
        if self.layout == "blocked":
            outputs = tuple(self.order) * self.params_per_feature
        else:
            outputs = tuple(place for place in self.order for _ in range(self.params_per_feature))
        object.__setattr__(self, "degrees", (inputs, *self.hidden_degrees, outputs))
        words = (self.params_per_feature, self.activation, int(self.residual), self.layout)
        parts = [" ".join(map(str, part)) for part in (words, self.order, *self.hidden_degrees)]
        object.__setattr__(self, "description", ";".join(parts))
        object.__setattr__(self, "_constants", IntegerConstants(*self.degrees))
        ascending = [sorted(range(len(degrees)), key=degrees.__getitem__) for degrees in self.degrees]
        object.__setattr__(self, "_sorted", IntegerConstants(*ascending))
        object.__setattr__(
            self,
            "counts",
            tuple(
                tuple(bisect_right(in_order, degree) for degree in range(self.features + 1))
                for in_order in map(sorted, self.degrees)
            ),
        )

    @property
    def output_features(self) -> int:
        return self.features * self.params_per_feature

    def degree_tensors(self, device: torch.device | str | None = None) -> list[Tensor]:
        """``degrees`` as int64 tensors, made once for each device."""
        return self._constants.on(torch.device("cpu") if device is None else torch.device(device))

    @property
    def features_in_order(self) -> tuple[int, ...]:
        """The features, the one at place 0 first."""
        order = self._sorted.vectors[0]
        assert order is not None
        return order

    def sorted_units(self, device: torch.device) -> list[Tensor]:
        """The units of each layer by ascending degree, int64."""
        return self._sorted.on(device)

    def place_tensor(self, device: torch.device) -> Tensor:
        """Place of each feature in the order, int64."""
        place: Tensor = self._constants.on(device)[0] - 1
        return place

    def split(self, params: Tensor) -> Tensor:
        """``(*, P * D)``, the network's output, as ``(*, P, D)``."""
        if self.layout == "blocked":
            return params.unflatten(-1, (self.params_per_feature, self.features))
        return params.unflatten(-1, (self.features, self.params_per_feature)).transpose(-1, -2)


# Never forgotten: CUDA graphs read tables that are made of a structure.
@cache
def read_structure(description: str) -> MadeStructure:
    """The structure whose ``description`` this is.

    Raises:
        ValueError: it describes none.

    Example:
        >>> structure = MadeStructure(2, ((1, 1, 1),), (0, 1))
        >>> read_structure(structure.description) == structure
        True
    """
    words, *parts = description.split(";")
    if len(parts) < 2 or len(words.split()) != 4:
        raise ValueError(f"a network's description must be words, an order and degrees, got {description!r}")
    params, activation, residual, layout = words.split()
    order, *degrees = (tuple(map(int, part.split())) for part in parts)
    return MadeStructure(len(order), tuple(degrees), order, int(params), activation, residual == "1", layout)


def hidden_degrees_of(hidden_features: Sequence[int], features: int, with_context: bool) -> tuple[tuple[int, ...], ...]:
    return tuple(spread_degrees(width, features, with_context) for width in hidden_features)
