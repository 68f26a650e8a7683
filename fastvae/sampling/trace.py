"""From a recorded network to a plan: which of its layers become which nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from ..reference.gated_activation import KINDS
from ..structure.sampling_plan import Gate, Norm, Plan, Pointwise, Span
from .functions import FunctionLowering
from .graph import InexpressibleError, Recording, depends_on_image
from .layers import MaskedConvolution, find_role
from .lookup import embed, rows_of
from .lowering import ACTIVATION_MODULES, FIXED_OPTIONS, Rows

__all__ = ["lower"]

_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)


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
    lowering = NetworkLowering(recording, in_channels, constants)
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


class NetworkLowering(FunctionLowering):
    """The lowering of layers and functions."""

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
        name = ACTIVATION_MODULES.get(type(module))
        if name is None:
            raise self.refuse("cannot be computed pixel by pixel")
        fixed = {key: getattr(module, key) for key in FIXED_OPTIONS.get(name, {})}
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
