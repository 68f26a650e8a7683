"""Builder of a plan: a channel's dependence on the image decides when the channel is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..structure.sampling_plan import Buffer, Constant, Conv, Copy, Lookup, Node, Norm, Plan, Span

__all__ = ["PlanBuilder"]


class PlanBuilder:
    """Collects nodes, and tracks for every channel which channels of the image's own pixel it depends on.

    ``label`` is the name of the present node in errors.
    """

    def __init__(self, in_channels: int) -> None:
        self.in_channels, self.label = in_channels, ""
        self.buffers = [Buffer(in_channels, "pixel")]
        self.known = [torch.eye(in_channels, dtype=torch.bool)]
        self.nodes: list[Node] = []
        self.labels: list[str] = []
        self.constants: dict[tuple[str | float | Norm, int], Span] = {}

    def new(self, channels: int, kind: str, known: Tensor | None = None) -> Span:
        self.buffers.append(Buffer(channels, "row" if kind == "row" else "pixel"))
        self.known.append(torch.zeros(channels, self.in_channels, dtype=torch.bool) if known is None else known)
        return Span(len(self.buffers) - 1, 0, channels)

    def emit(self, node: Node) -> None:
        self.nodes.append(node)
        self.labels.append(self.label)

    def known_of(self, span: Span) -> Tensor:
        return self.known[span.buffer][span.first : span.first + span.channels]

    def kind_of(self, *spans: Span) -> str:
        return "row" if all(self.buffers[s.buffer].kind == "row" for s in spans) else "pixel"

    def result(self, *spans: Span) -> Span:
        """A new buffer for a function of single numbers of ``spans``."""
        known = self.known_of(spans[0])
        for span in spans[1:]:
            known = known | self.known_of(span)
        return self.new(spans[0].channels, self.kind_of(*spans), known)

    def constant(self, source: str | float | Norm, channels: int) -> Span:
        """A value that does not depend on the image: of a node of the graph, of a batch norm, or a number."""
        key = (source, channels)
        if key not in self.constants:
            self.emit(Constant(self.new(channels, "row"), len(self.constants)))
            self.constants[key] = self.nodes[-1].dst
        return self.constants[key]

    def concatenate(self, parts: Sequence[Span]) -> Span:
        known = torch.cat([self.known_of(part) for part in parts])
        dst = self.new(len(known), self.kind_of(*parts), known)
        first = 0
        for part in parts:
            self.emit(Copy(dst.part(first, part.channels), part))
            first += part.channels
        return dst

    def conv(
        self,
        src: Span,
        channels: int,
        layer: int,
        taps: tuple[tuple[int, int, int], ...],
        *,
        groups: int,
        kernel_area: int,
        origin_tap: int,
        degrees: tuple[tuple[int, ...], tuple[int, ...]] | None,
        activation: str,
    ) -> Span:
        """A node for each group of a convolution; see :class:`fastvae.structure.sampling_plan.Conv`."""
        self._reach(src.buffer, taps)
        inputs, outputs = src.channels // groups, channels // groups
        at_pixel = any(dy == 0 and dx == 0 for _, dy, dx in taps)
        own_row = any(dy == 0 for _, dy, _ in taps)
        dst = self.new(channels, self.kind_of(src) if own_row else "row")
        for group in range(groups):
            part, to = src.part(group * inputs, inputs), dst.part(group * outputs, outputs)
            seen = torch.full((outputs, inputs), at_pixel)
            ins = outs = None
            if degrees is not None:
                ins = degrees[0][group * inputs : (group + 1) * inputs]
                outs = degrees[1][group * outputs : (group + 1) * outputs]
                seen = seen & (torch.tensor(ins) <= torch.tensor(outs)[:, None])
            self.known_of(to).copy_((seen.float() @ self.known_of(part).float()) > 0)
            self.emit(Conv(to, part, layer, group, taps, kernel_area, origin_tap, ins, outs, activation))
        return dst

    def _reach(self, index: int, taps: tuple[tuple[int, int, int], ...]) -> None:
        buffer = self.buffers[index]
        self.buffers[index] = replace(
            buffer,
            rows=max([buffer.rows, *(1 - dy for _, dy, _ in taps)]),
            left=max([buffer.left, *(-dx for _, _, dx in taps)]),
            right=max([buffer.right, *(dx for _, _, dx in taps)]),
        )

    def finish(self, output: Span, layers: Sequence[str | Lookup], per_channel: bool) -> Plan:
        """The plan with the parameters ``output``; see :func:`fastvae.sampling.trace.lower`."""
        colors = self._image_colors(output, per_channel)
        whole = Span(output.buffer, 0, self.buffers[output.buffer].channels)
        if output != whole or output.buffer == 0 or self.kind_of(output) == "row":
            dst = self.new(output.channels, "pixel", self.known_of(output))
            self.emit(Copy(dst, output))
            output = dst
        order = [i for i in range(len(self.buffers)) if i != output.buffer] + [output.buffer]
        place = {old: new for new, old in enumerate(order)}
        return Plan(
            tuple(replace(self.buffers[i], passes=self._passes(i, colors)) for i in order),
            tuple(_move(node, place) for node in self.nodes),
            tuple(layers),
            tuple(self.constants),
            tuple(colors),
        )

    def _passes(self, index: int, colors: list[int]) -> tuple[int, ...] | None:
        if self.buffers[index].kind == "row":
            return None
        after = torch.tensor(colors) + 1
        return tuple((self.known[index] * after).amax(1).tolist())

    def _image_colors(self, output: Span, per_channel: bool) -> list[int]:
        """The colour of each channel of the image: a channel is drawn after those that its parameters depend on."""
        known = self.known_of(output)
        channels = self.in_channels
        if not per_channel:
            if known.any():
                raise self._not_causal(output, int(known.any(0).nonzero()[0, 0]), "its parameters depend")
            return [0] * channels
        depends = known.unflatten(0, (channels, -1)).any(1)
        colors: dict[int, int] = {}
        while len(colors) < channels:
            needs = {j: set(depends[j].nonzero().flatten().tolist()) for j in range(channels) if j not in colors}
            ready = {j: 1 + max((colors[i] for i in n), default=-1) for j, n in needs.items() if n <= colors.keys()}
            if not ready:
                own = next((j for j in needs if j in needs[j]), min(needs))
                source = own if own in needs[own] else min(needs[own] - colors.keys())
                raise self._not_causal(output, source, f"its parameters of image channel {own} depend")
            colors.update(ready)
        return [colors[j] for j in range(channels)]

    def _not_causal(self, output: Span, channel: int, how: str) -> ValueError:
        label, buffer = self.label, output.buffer
        while buffer:
            for node, name in zip(self.nodes, self.labels, strict=True):
                sources = [s for s in _sources(node) if self.known_of(s)[:, channel].any()]
                if node.dst.buffer == buffer and self.known_of(node.dst)[:, channel].any() and sources:
                    label, buffer = name, sources[0].buffer
                    break
        return ValueError(
            f"the network is not causal: {how} on channel {channel} of the same pixel, which {label} reads. Begin "
            "every stream with mask_type='A' or 'vertical_A'"
        )


def _sources(node: Node) -> list[Span]:
    return [span for name in ("src", "condition", "a", "b") if (span := getattr(node, name, None)) is not None]


def _move(node: Node, place: Mapping[int, int]) -> Node:
    fields = {
        name: span._replace(buffer=place[span.buffer])
        for name in ("dst", "src", "condition", "a", "b")
        if (span := getattr(node, name, None)) is not None
    }
    return replace(node, **fields)
