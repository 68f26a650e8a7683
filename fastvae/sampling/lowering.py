"""The base of the lowering of a recorded network: values of its graph, and the nodes that layers become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from ..structure.sampling_plan import Activation, Lookup, Span
from .builder import PlanBuilder
from .graph import SUPPORTED, InexpressibleError, Recording, depends_on_image
from .layers import MaskedConvolution

__all__ = ["ACTIVATION_MODULES", "FIXED_OPTIONS", "Codes", "Lowering", "Rows"]

ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.Tanh: "tanh",
    nn.Softplus: "softplus",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.LeakyReLU: "leaky_relu",
}
# Options of which a plan's activation has one value only.
FIXED_OPTIONS: dict[str, dict[str, Any]] = {
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "gelu": {"approximate": "none"},
}


@dataclass(frozen=True)
class Codes:
    """``factor`` times a channel of the image, on its way to integers.

    Args:
        span: the channel.
        factor: what it is multiplied by.
        is_rounded, is_integral: whether it is rounded to integers, and of an integer dtype.
        is_flat: whether the dimension of channels is gone.
    """

    span: Span
    factor: float = 1.0
    is_rounded: bool = False
    is_integral: bool = False
    is_flat: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows of a table; their numbers are the last dimension."""

    span: Span


class Lowering:
    """The values of a recording's nodes, and the plan as far as it is known."""

    def __init__(self, recording: Recording, in_channels: int, constants: Mapping[str, Any]) -> None:
        self.recording, self.constants = recording, constants
        self.plan = PlanBuilder(in_channels)
        self.layers: list[str | Lookup] = []
        self.env: dict[fx.Node, Any] = {recording.image: Span(0, 0, in_channels)}

    @property
    def label(self) -> str:
        return self.plan.label

    def refuse(self, reason: str) -> InexpressibleError:
        return InexpressibleError(f"{self.label}: {reason}. Supported: {SUPPORTED}")

    def span(self, value: Any, count: int | None = None) -> Span:
        """The channels of ``value``, a node of the graph; a constant gets ``count`` channels."""
        if not isinstance(value, fx.Node):
            raise self.refuse(f"takes activations, got {value!r}")
        if not depends_on_image(value):
            return self.plan.constant(value.name, self.constant_channels(value) if count is None else count)
        found = self.env[value]
        if isinstance(found, (Codes, Rows)):
            raise self.refuse("takes activations (N, channels, H, W), got integers of the image, or their embedding")
        if not isinstance(found, Span):
            raise self.refuse("takes one activation, got several")
        return found

    def constant_channels(self, node: fx.Node) -> int:
        value = self.constants[node.name]
        if not isinstance(value, Tensor) or value.dim() != 4:
            raise self.refuse(f"takes constants of shape (N, channels, H, W), got {_describe(value)}")
        return value.shape[1]

    def activation(self, name: str, src: Span, slope: float | None, options: Mapping[str, Any]) -> Span:
        for key, value in options.items():
            if value != FIXED_OPTIONS[name].get(key):
                raise self.refuse(f"{name} must have {key}={FIXED_OPTIONS[name].get(key)!r}, got {value!r}")
        dst = self.plan.result(src)
        self.plan.emit(Activation(dst, src, name, slope))
        return dst

    def conv(
        self,
        path: str,
        layer: nn.Conv2d | MaskedConvolution,
        src: Span,
        taps: tuple[tuple[int, int, int], ...],
        origin_tap: int = -1,
        degrees: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
        activation: str = "identity",
    ) -> Span:
        if src.channels != layer.in_channels:
            raise self.refuse(f"takes {layer.in_channels} channels, got {src.channels}")
        return self.plan.conv(
            src, int(layer.out_channels), self._layer(path), taps, groups=int(layer.groups),
            kernel_area=int(layer.kernel_size[0]) * int(layer.kernel_size[1]), origin_tap=origin_tap, degrees=degrees,
            activation=activation,
        )  # fmt: skip

    def pointwise_conv(self, weights: Lookup, src: Span, channels: int) -> Span:
        """A convolution of 1 x 1 with weights that are made of a table."""
        return self.plan.conv(
            src, channels, self._layer(weights), ((0, 0, 0),), groups=1, kernel_area=1, origin_tap=-1, degrees=None,
            activation="identity",
        )  # fmt: skip

    def _layer(self, weights: str | Lookup) -> int:
        if weights not in self.layers:
            self.layers.append(weights)
        return self.layers.index(weights)

    def replace(self, changed: Any, made: Span) -> None:
        """After a change in place: later nodes that read ``changed`` read ``made``."""
        if isinstance(changed, fx.Node) and depends_on_image(changed):
            self.env[changed] = made


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
