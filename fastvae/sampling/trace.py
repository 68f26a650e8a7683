"""From a recorded network to a plan: which of its layers and functions become which nodes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, fx, nn

from ..reference.gated_activation import KINDS
from ..structure.sampling_plan import Activation, Affine, Gate, Lookup, Norm, Plan, Pointwise, Span
from .builder import PlanBuilder
from .graph import SUPPORTED, InexpressibleError, Recording, changes_in_place, depends_on_image
from .layers import MaskedConvolution, find_role
from .lookup import Codes, Rows, embed, follow, rows_of

__all__ = ["lower"]

_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ELU: "elu",
    nn.Tanh: "tanh",
    nn.Softplus: "softplus",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
    nn.LeakyReLU: "leaky_relu",
}
# What a plan's activation of a name leaves no choice in.
_FIXED: dict[str, dict[str, Any]] = {
    "elu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "gelu": {"approximate": "none"},
}
_NAMES: dict[str, str] = {
    **dict.fromkeys((*_ACTIVATION_MODULES.values(), "relu_", "elu_", "tanh_", "sigmoid_"), "activation"),
    **{
        name: name
        for name in ("add", "sub", "rsub", "mul", "div", "neg", "cat", "chunk", "split", "getitem", "dropout")
    },
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "neg")},
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div"},
    **{"subtract": "sub", "multiply": "mul", "true_divide": "div", "divide": "div", "negative": "neg"},
    **{"concat": "cat", "concatenate": "cat", "dropout2d": "dropout", "ones_like": "ones", "zeros_like": "zeros"},
    **dict.fromkeys(("contiguous", "clone", "detach"), "identity"),
}
_CHANNEL_DIMS = (1, -3)


def lower(
    recording: Recording, in_channels: int, outputs: int, per_channel: bool, constants: Mapping[str, Any]
) -> Plan:
    """The plan of a recorded network.

    Args:
        recording: its graph.
        in_channels: channels of the image.
        outputs: channels that the network must have.
        per_channel: whether equal parts of the outputs belong to one channel of the image each; otherwise all channels
            of a pixel are drawn at once, from all outputs.
        constants: values of nodes that do not depend on the image.

    Raises:
        InexpressibleError: a layer or function that no plan can express; the message names it.
        ValueError: the network is not causal, or has another number of outputs.
        KeyError: how many channels a constant has decides, and ``constants`` does not hold it.
    """
    lowering = Lowering(recording, in_channels, constants)
    for node in recording.needed:
        if node.op == "placeholder" or not depends_on_image(node):
            continue
        lowering.env[node] = lowering.module(node) if node.op == "call_module" else lowering.function(node)
    output = lowering.span(recording.output) if isinstance(recording.output, fx.Node) else None
    if output is None or not depends_on_image(recording.output):
        raise InexpressibleError("the network must return one tensor that depends on the image")
    if output.channels != outputs:
        raise ValueError(
            f"the network must have {outputs} output channels for its likelihood and in_channels={in_channels}, "
            f"got {output.channels}"
        )
    return lowering.plan.finish(output, lowering.layers, per_channel)


class Lowering:
    """What each node of a recording becomes."""

    def __init__(self, recording: Recording, in_channels: int, constants: Mapping[str, Any]) -> None:
        self.recording, self.constants = recording, constants
        self.plan = PlanBuilder(in_channels)
        self.layers: list[str | Lookup] = []
        self.env: dict[fx.Node, Any] = {recording.image: Span(0, 0, in_channels)}

    @property
    def label(self) -> str:
        return self.plan.label

    # Values of the graph

    def refuse(self, reason: str) -> InexpressibleError:
        return InexpressibleError(f"{self.label}: {reason}. Supported: {SUPPORTED}")

    def span(self, value: Any, count: int | None = None) -> Span:
        """Channels that ``value``, a node of the graph, stands for; a constant is given ``count`` channels."""
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
            raise self.refuse(f"takes constants of shape (N, channels, H, W), got {_described(value)}")
        return value.shape[1]

    # Modules

    def module(self, node: fx.Node) -> Span | Rows:
        self.plan.label = self.recording.label(node)
        module: Any = self.recording.layer(str(node.target))
        role = find_role(module)
        if module._forward_hooks or module._forward_pre_hooks:
            raise self.refuse(
                "has forward hooks, as those of torch.nn.utils.weight_norm, which a plan does not call; "
                "torch.nn.utils.parametrizations need none"
            )
        if role == "gate":
            return self.gate(module.kind, list(node.args), dict(node.kwargs))
        if type(module).forward is nn.Embedding.forward:
            return rows_of(self, str(node.target), module, node)
        src = self.span(node.args[0] if node.args else next(iter(node.kwargs.values())))
        if role == "code_table":
            return embed(self, str(node.target), module, src, module.num_embeddings - 1.0)
        if type(module).forward is nn.BatchNorm2d.forward:
            return self.batch_norm(str(node.target), module, src)
        if role == "masked_conv":
            return self.masked_conv(str(node.target), module, src)
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            if (
                module.kernel_size != (1, 1)
                or module.stride != (1, 1)
                or module.padding not in ((0, 0), "same", "valid")
            ):
                raise self.refuse(
                    f"an nn.Conv2d must have kernel_size 1, stride 1 and no padding, got kernel_size "
                    f"{module.kernel_size}, stride {module.stride}, padding {module.padding}"
                )
            return self.conv(str(node.target), module, src, ((0, 0, 0),))
        if isinstance(module, (*_DROPOUTS, nn.Identity)):
            return src
        name = _ACTIVATION_MODULES.get(type(module))
        if name is None:
            raise self.refuse("cannot be computed pixel by pixel")
        fixed = {key: getattr(module, key) for key in _FIXED.get(name, {})}
        made = self.activation(name, src, getattr(module, "negative_slope", None), fixed)
        if getattr(module, "inplace", False):
            self.replace(node.args[0], made)
        return made

    def batch_norm(self, path: str, module: Any, src: Span) -> Span:
        if module.running_mean is None or module.running_var is None:
            raise self.refuse(
                "takes mean and variance of the whole batch, which no pixel is drawn before: track_running_stats must "
                f"be True, got {module.track_running_stats}"
            )
        if src.channels != module.num_features:
            raise self.refuse(f"takes {module.num_features} channels, got {src.channels}")
        factor, term = (self.plan.constant(Norm(path, part), src.channels) for part in ("factor", "term"))
        product = self.plan.result(src, factor)
        self.plan.emit(Pointwise(product, src, factor, "mul"))
        dst = self.plan.result(product, term)
        self.plan.emit(Pointwise(dst, product, term, "add"))
        return dst

    def activation(self, name: str, src: Span, slope: float | None, options: Mapping[str, Any]) -> Span:
        for key, value in options.items():
            if value != _FIXED[name].get(key):
                raise self.refuse(f"{name} must have {key}={_FIXED[name].get(key)!r}, got {value!r}")
        dst = self.plan.result(src)
        self.plan.emit(Activation(dst, src, name, slope))
        return dst

    def gate(self, kind: str, args: list[Any], named: dict[str, Any]) -> Span:
        x, condition = [*args, *(named[name] for name in ("x", "condition")[len(args) :] if name in named), None][:2]
        src = self.span(x)
        if src.channels % 2 or kind not in KINDS:
            raise self.refuse(f"takes an even number of channels, got {src.channels}")
        other = None if condition is None else self.span(condition, src.channels)
        if other is not None and other.channels != src.channels:
            raise self.refuse(f"takes a condition of {src.channels} channels, got {other.channels}")
        half = src.channels // 2
        parts = [span.part(first, half) for span in (src, other) if span is not None for first in (0, half)]
        dst = self.plan.result(*parts)
        self.plan.emit(Gate(dst, src, other, kind))
        return dst

    def masked_conv(self, path: str, layer: MaskedConvolution, src: Span) -> Span:
        structure = layer.structure
        if structure.order != "raster":
            raise self.refuse(f"order must be 'raster', got {structure.order!r}")
        top, left, bottom, right = structure.padding(layer.dilation)
        padding = layer.padding
        if padding != "same" and (padding != (top, left) or (top, left) != (bottom, right)):
            raise self.refuse(
                "padding must keep the image's size with the origin over the pixel, as padding='same' does, got "
                f"padding={padding!r} for kernel_size {structure.kernel_size} and origin {structure.origin}"
            )
        offsets = structure.offsets(layer.dilation)
        taps = tuple((tap, dy, dx) for tap, (dy, dx) in zip(structure.taps, offsets, strict=True))
        if self.plan.kind_of(src) == "pixel" and any(dy == 0 and dx > 0 for _, dy, dx in taps):
            raise ValueError(
                f"the network is not causal: {self.label}, mask_type={layer.mask_type!r}, sees its whole row of an "
                "input that depends on that row. Begin such a stream with mask_type='vertical_A'"
            )
        degrees: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        if structure.origin_tap >= 0:
            assert layer.in_degrees is not None
            assert layer.out_degrees is not None
            degrees = tuple(layer.in_degrees.tolist()), tuple(layer.out_degrees.tolist())
        return self.conv(path, layer, src, taps, structure.origin_tap, degrees, layer.activation or "identity")

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
        """A convolution of 1 x 1 whose weights are made."""
        return self.plan.conv(
            src, channels, self._layer(weights), ((0, 0, 0),), groups=1, kernel_area=1, origin_tap=-1, degrees=None,
            activation="identity",
        )  # fmt: skip

    def _layer(self, weights: str | Lookup) -> int:
        if weights not in self.layers:
            self.layers.append(weights)
        return self.layers.index(weights)

    # Functions and methods

    def function(self, node: fx.Node) -> Any:
        self.plan.label = self.recording.label(node)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        # A function of that name from elsewhere is not ours to judge.
        home = (getattr(node.target, "__module__", None) or "torch").split(".")[0]
        trusted = isinstance(node.target, str) or home in ("torch", "_operator", "operator", "builtins")
        made: Any = follow(self, name, node) if trusted else None
        if made is not None:
            return made
        handler = _NAMES.get(name) if trusted else None
        if handler is None:
            raise self.refuse("cannot be computed pixel by pixel")
        if handler == "activation":
            made = self._activation_function(node, name.removesuffix("_"))
        else:
            lowered = getattr(self, f"_{handler}")
            try:
                inspect.signature(lowered).bind(*node.args, **node.kwargs)
            except TypeError as error:
                raise self.refuse(str(error)) from None
            made = lowered(*node.args, **node.kwargs)
        if changes_in_place(node):
            self.replace(node.args[0], made)
        return made

    def replace(self, changed: Any, made: Span) -> None:
        """After a change in place: who reads ``changed`` later reads ``made``."""
        if isinstance(changed, fx.Node) and depends_on_image(changed):
            self.env[changed] = made

    def _activation_function(self, node: fx.Node, name: str) -> Span:
        options: dict[str, Any] = {key: v for key, v in node.kwargs.items() if key not in ("input", "inplace")}
        rest = list(node.args[1:])
        for key in ("negative_slope",) if name == "leaky_relu" else tuple(_FIXED.get(name, ())):
            if rest:
                options[key] = rest.pop(0)
        slope = options.pop("negative_slope", 0.01) if name == "leaky_relu" else None
        if options.keys() - _FIXED.get(name, {}).keys():
            raise self.refuse(f"takes no {', '.join(sorted(options))}")
        src = self.span(node.args[0] if node.args else node.kwargs["input"])
        return self.activation(name, src, slope, options)

    def _combined(self, op: Literal["add", "sub", "mul"], a: Any, b: Any) -> Span:
        if isinstance(b, (int, float)):
            factor, term = (b, 0.0) if op == "mul" else (1.0, b if op == "add" else -b)
            return self._affine(self.span(a), factor, term)
        if isinstance(a, (int, float)):
            factor, term = (a, 0.0) if op == "mul" else (1.0 if op == "add" else -1.0, a)
            return self._affine(self.span(b), factor, term)
        first = next((v for v in (a, b) if isinstance(v, fx.Node) and depends_on_image(v)), a)
        count = self.span(first).channels
        left, right = self.span(a, count), self.span(b, count)
        if left.channels != right.channels:
            raise self.refuse(f"takes activations of as many channels, got {left.channels} and {right.channels}")
        dst = self.plan.result(left, right)
        self.plan.emit(Pointwise(dst, left, right, op))
        return dst

    def _affine(self, src: Span, alpha: float, beta: float) -> Span:
        dst = self.plan.result(src)
        self.plan.emit(Affine(dst, src, float(alpha), float(beta)))
        return dst

    def _scaled(self, value: Any, alpha: Any) -> Any:
        if alpha != 1:
            raise self.refuse(f"alpha must be 1, got {alpha!r}")
        return value

    def _add(self, input: Any, other: Any, *, alpha: Any = 1) -> Span:
        return self._combined("add", input, self._scaled(other, alpha))

    def _sub(self, input: Any, other: Any, *, alpha: Any = 1) -> Span:
        return self._combined("sub", input, self._scaled(other, alpha))

    def _rsub(self, input: Any, other: Any, alpha: Any = 1) -> Span:
        return self._combined("sub", other, self._scaled(input, alpha))

    def _mul(self, input: Any, other: Any) -> Span:
        return self._combined("mul", input, other)

    def _div(self, input: Any, other: Any, *, rounding_mode: Any = None) -> Span:
        if rounding_mode is not None or isinstance(other, fx.Node) or other == 0:
            raise self.refuse(f"divides by a number other than 0 only, got {other!r}")
        return self._combined("mul", input, 1.0 / other)

    def _neg(self, input: Any) -> Span:
        return self._affine(self.span(input), -1.0, 0.0)

    def _identity(self, input: Any, **_: Any) -> Span:
        return self.span(input)

    def _dropout(self, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Span:
        if training and p:
            raise ValueError(f"{self.label}: dropout must be off: call network.eval() before the sampler is made")
        return self.span(input)

    def _ones(self, input: Any) -> Span:
        return self.plan.constant(1.0, self.span(input).channels)

    def _zeros(self, input: Any) -> Span:
        return self.plan.constant(0.0, self.span(input).channels)

    def _cat(self, tensors: Any, dim: int = 0) -> Span:
        self._along_channels(dim)
        parts = [self.span(tensor) for tensor in tensors]
        return self.plan.concatenated(parts)

    def _along_channels(self, dim: Any) -> None:
        if dim not in _CHANNEL_DIMS:
            raise self.refuse(f"dim must be 1, the channels, got {dim!r}")

    def _chunk(self, input: Any, chunks: int, dim: int = 0) -> tuple[Span, ...]:
        return self._split(input, -(-self.span(input).channels // chunks), dim)

    def _split(self, input: Any, split_size_or_sections: Any, dim: int = 0) -> tuple[Span, ...]:
        self._along_channels(dim)
        src, size = self.span(input), split_size_or_sections
        if isinstance(size, int):
            size = [min(size, src.channels - first) for first in range(0, src.channels, size)]
        if sum(size) != src.channels:
            raise self.refuse(f"sizes must add up to {src.channels} channels, got {tuple(size)}")
        firsts = [sum(size[:i]) for i in range(len(size))]
        return tuple(src.part(first, count) for first, count in zip(firsts, size, strict=True))

    def _getitem(self, input: Any, index: Any) -> Any:
        found = self.env[input]
        if not isinstance(found, Span):
            return found[index]
        whole = slice(None)
        index = index if isinstance(index, tuple) else (index,)
        if len(index) >= 2 and isinstance(index[1], slice) and index[0] == whole:
            numbers = all(v is None or isinstance(v, int) for v in (index[1].start, index[1].stop))
            if numbers and index[1].step in (None, 1) and all(i in (whole, Ellipsis) for i in index[2:]):
                first, stop, _ = index[1].indices(found.channels)
                return found.part(first, max(stop - first, 0))
        raise self.refuse("takes slices of neighbouring channels only, such as h[:, 2:5]")


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
