"""Sampling of images from a causal network in plain PyTorch, with caches and without.

The cached sampler computes each activation once. It computes a whole row at a time where an activation depends on the
rows above only. It computes the others pixel by pixel, for the whole batch. A convolution is a matrix product on the
neighbourhood. A buffer keeps as many rows as the nodes read. :func:`naive_sample` runs the whole network for every
pixel; tests compare the cached sampler with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from ..structure.likelihood import PixelLikelihood
from ..structure.sampling_plan import Binding, Conv, Node, Plan, Span
from .masked_linear import ACTIVATIONS

Function = Callable[[Tensor], Tensor]
# Which channels of a node: all of them, or those of one pass.
Selection = slice | Tensor
Step = Callable[[int, int], object]


def activation(name: str, slope: float | None = None) -> Function:
    if name == "leaky_relu":
        return lambda x: functional.leaky_relu(x, slope or 0.0)
    return torch.sigmoid if name == "sigmoid" else ACTIVATIONS[name]


class _Caches:
    """Rows of every buffer, ``(N, rows, left + W + right, channels)``: the last one is current, margins are zeros."""

    def __init__(self, plan: Plan, like: Tensor, n: int, width: int) -> None:
        self.width = width
        self.left = [buffer.left for buffer in plan.buffers]
        self.rows = [like.new_zeros(n, b.rows, b.left + width + b.right, b.channels) for b in plan.buffers]

    def row(self, span: Span) -> Tensor:
        """``(N, W, count)``."""
        left = self.left[span.buffer]
        return self.rows[span.buffer][:, -1, left : left + self.width, span.first : span.first + span.channels]

    def pixel(self, span: Span, x: int) -> Tensor:
        """``(N, count)``."""
        return self.rows[span.buffer][:, -1, self.left[span.buffer] + x, span.first : span.first + span.channels]

    def neighbour_row(self, span: Span, dy: int, dx: int) -> Tensor:
        """``(N, W, count)``: the values at ``(dy, dx)`` from each pixel of the current row."""
        start = self.left[span.buffer] + dx
        return self.rows[span.buffer][:, dy - 1, start : start + self.width, span.first : span.first + span.channels]

    def window(self, span: Span, ys: range, xs: range, x: int) -> Tensor:
        """``(N, rows * columns * count)``: a rectangle of the neighbourhood of pixel x."""
        rows, left = self.rows[span.buffer], self.left[span.buffer] + x
        top = rows.shape[1] - 1
        return rows[
            :, top + ys.start : top + ys.stop : ys.step, left + xs.start : left + xs.stop : xs.step,
            span.first : span.first + span.channels,
        ].flatten(1)  # fmt: skip

    def next_row(self) -> None:
        for rows in self.rows:
            if rows.shape[1] > 1:
                rows[:, :-1] = rows[:, 1:].clone()


def _evenly(values: Sequence[int]) -> range:
    step = values[1] - values[0] if len(values) > 1 else 1
    return range(values[0], values[-1] + 1, step)


def _rectangles(taps: Sequence[tuple[int, int, int]]) -> list[tuple[range, range]]:
    """The taps as few rectangles (rows, columns), in their order."""
    lines = [(dy, tuple(dx for _, _, dx in line)) for dy, line in groupby(taps, key=lambda tap: tap[1])]
    return [
        (_evenly([dy for dy, _ in block]), _evenly(columns))
        for columns, lines_of in groupby(lines, key=lambda line: line[1])
        if (block := list(lines_of))
    ]


def _select(passes: Sequence[int], current: int, device: torch.device) -> Selection | None:
    """The channels of pass ``current``, or None where there are none."""
    indices = [channel for channel, own in enumerate(passes) if own == current]
    if len(indices) == len(passes):
        return slice(None)
    return torch.tensor(indices, device=device) if indices else None


class _Executor:
    def __init__(self, plan: Plan, binding: Binding, like: Tensor, n: int, width: int) -> None:
        self.plan, self.binding = plan, binding
        self.caches = _Caches(plan, like, n, width)
        self.row_steps: list[Step] = []
        self.pass_steps: list[list[Step]] = [[] for _ in range(plan.num_colors + 1)]
        for node in plan.nodes:
            passes = plan.buffers[node.dst.buffer].passes_of(node.dst)
            if plan.buffers[node.dst.buffer].kind == "row":
                self.row_steps.append(self._row_step(node))
                continue
            for current, steps in enumerate(self.pass_steps):
                chosen = _select(passes, current, like.device)
                if chosen is not None:
                    steps.append(self._pixel_step(node, chosen))

    def _matrix(self, node: Conv) -> tuple[Tensor, Tensor | None]:
        """Weights ``(taps * inputs, outputs)`` and bias of a convolution."""
        first, count = node.group * node.dst.channels, node.dst.channels
        weight = self.binding.weights[node.layer][first : first + count].flatten(2)
        bias = self.binding.biases[node.layer]
        parts = []
        for tap, _, _ in node.taps:
            part = weight[:, :, tap]
            if tap == node.origin_tap:
                rule = torch.tensor(node.in_degrees) <= torch.tensor(node.out_degrees)[:, None]
                part = torch.where(rule.to(part.device), part, 0.0)
            parts.append(part.t())
        matrix = torch.cat(parts) if parts else weight.new_zeros(0, count)
        return matrix, None if bias is None else bias[first : first + count]

    def _row_step(self, node: Node) -> Step:
        caches = self.caches
        if node.op == "conv":
            (matrix, bias), act = self._matrix(node), activation(node.activation)
            weight = matrix.t()

            def conv(y: int, x: int) -> None:
                near = [caches.neighbour_row(node.src, dy, dx) for _, dy, dx in node.taps]
                source = torch.cat(near, -1) if near else weight.new_zeros(*caches.row(node.dst).shape[:2], 0)
                caches.row(node.dst).copy_(act(functional.linear(source, weight, bias)))

            return conv
        if node.op == "constant":
            value = self.binding.constants[node.index]
            if value.dim() == 2:
                caches.row(node.dst).copy_(value[:, None])
                # Rows of constants are alike and never replaced.
                return lambda y, x: None
            return lambda y, x: caches.row(node.dst).copy_(value[:, :, y].transpose(1, 2))
        function = self._pointwise(node, slice(None))
        return lambda y, x: caches.row(node.dst).copy_(function(caches.row))

    def _pixel_step(self, node: Node, chosen: Selection) -> Step:
        caches = self.caches
        if node.op == "conv":
            (matrix, bias), act = self._matrix(node), activation(node.activation)
            matrix, bias = matrix[:, chosen].contiguous(), None if bias is None else bias[chosen]
            rectangles = _rectangles(node.taps)
            own_only = [(0, 0)] == [(dy, dx) for _, dy, dx in node.taps]

            def compute(x: int) -> Tensor:
                if own_only:
                    source = caches.pixel(node.src, x)
                else:
                    source = torch.cat([caches.window(node.src, ys, xs, x) for ys, xs in rectangles], 1)
                return act(source @ matrix if bias is None else torch.addmm(bias, source, matrix))

        else:
            function = self._pointwise(node, chosen)

            def compute(x: int) -> Tensor:
                return function(lambda span: caches.pixel(span, x))

        def step(y: int, x: int) -> None:
            caches.pixel(node.dst, x)[:, chosen] = compute(x)

        return step

    def _pointwise(self, node: Node, chosen: Selection) -> Callable[[Callable[[Span], Tensor]], Tensor]:
        """A function that takes a reader of spans, and returns the node's values."""
        if node.op == "copy":
            return lambda at: at(node.src)[..., chosen]
        if node.op == "affine":
            return lambda at: node.alpha * at(node.src)[..., chosen] + node.beta
        if node.op == "activation":
            act = activation(node.name, node.slope)
            return lambda at: act(at(node.src)[..., chosen])
        if node.op == "gate":
            first, second = node.src.part(0, node.dst.channels), node.src.part(node.dst.channels, node.dst.channels)
            act = torch.tanh if node.kind == "tanh" else ACTIVATIONS["identity"]
            if node.condition is None:
                return lambda at: act(at(first)[..., chosen]) * torch.sigmoid(at(second)[..., chosen])
            third, fourth = (node.condition.part(i * node.dst.channels, node.dst.channels) for i in (0, 1))
            return lambda at: (
                act((at(first) + at(third))[..., chosen]) * torch.sigmoid((at(second) + at(fourth))[..., chosen])
            )
        assert node.op in ("add", "sub", "mul")
        combine: Callable[[Tensor, Tensor], Tensor] = getattr(torch, node.op)
        return lambda at: combine(at(node.a)[..., chosen], at(node.b)[..., chosen])


def _draw(
    likelihood: PixelLikelihood, parameters: Tensor, uniforms: Tensor, temperature: float, channels: list[int], of: int
) -> Tensor:
    """Draws the channels ``channels`` of a pixel with ``of`` channels: ``(N, len(channels))``."""
    if len(channels) < of:
        parameters = parameters.unflatten(1, (of, -1))[:, channels].flatten(1)
        uniforms = uniforms[:, channels]
    return likelihood.draw(parameters, uniforms, temperature)


def causal_sampler(
    plan: Plan,
    binding: Binding,
    likelihood: PixelLikelihood,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float = 1.0,
    parameters: Tensor | None = None,
) -> None:
    """Fills ``images`` ``(N, C, H, W)`` and, unless it is None, ``parameters`` ``(N, P, H, W)``.

    ``given``, bool, marks the numbers of ``images`` that stay. ``uniforms`` are ``(N, H W columns)``; None means that
    all numbers stay.
    """
    n, channels, height, width = images.shape
    executor = _Executor(plan, binding, images, n, width)
    caches = executor.caches
    image, outputs = plan.whole(0), plan.whole(len(plan.buffers) - 1)
    by_color = [[j for j, color in enumerate(plan.image_colors) if color == c] for c in range(plan.num_colors)]
    columns = likelihood.columns(channels)
    for y in range(height):
        for step in executor.row_steps:
            step(y, 0)
        for x in range(width):
            place = (y * width + x) * columns
            for current, steps in enumerate(executor.pass_steps):
                for step in steps:
                    step(y, x)
                if current == plan.num_colors:
                    break
                chosen = by_color[current]
                pixel = images[:, chosen, y, x]
                if uniforms is not None:
                    numbers = uniforms[:, place : place + columns]
                    drawn = _draw(likelihood, caches.pixel(outputs, x), numbers, temperature, chosen, channels)
                    pixel = drawn if given is None else torch.where(given[:, chosen, y, x], pixel, drawn)
                    images[:, chosen, y, x] = pixel
                caches.pixel(image, x)[:, chosen] = pixel
            if parameters is not None:
                parameters[:, :, y, x] = caches.pixel(outputs, x)
        caches.next_row()


def naive_sample(
    network: Callable[[Tensor], Tensor],
    likelihood: PixelLikelihood,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor,
    temperature: float = 1.0,
    image_colors: Sequence[int] = (0,),
) -> Tensor:
    """Fills ``images`` by one pass of the whole network for each color of each pixel; returns the last parameters."""
    _, channels, height, width = images.shape
    columns = likelihood.columns(channels)
    parameters = images.new_empty(0)
    for y in range(height):
        for x in range(width):
            place = (y * width + x) * columns
            for current in range(max(image_colors) + 1):
                chosen = [j for j, color in enumerate(image_colors) if color == current]
                parameters = network(images)
                numbers = uniforms[:, place : place + columns]
                pixel = _draw(likelihood, parameters[:, :, y, x], numbers, temperature, chosen, channels)
                if given is not None:
                    pixel = torch.where(given[:, chosen, y, x], images[:, chosen, y, x], pixel)
                images[:, chosen, y, x] = pixel
    return network(images)
