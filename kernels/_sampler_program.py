"""A sampler's plan as the tables of integers and the flat numbers that its kernel reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..sampling_plan import Binding, Node, Plan, Span

_OPS = {"conv": 0, "add": 1, "sub": 2, "mul": 3, "affine": 4, "activation": 5, "copy": 5, "gate": 6, "constant": 7}
# The job that draws the channels of a color.
DRAW = 8
_ACTIVATIONS = ("identity", "relu", "elu", "tanh", "softplus", "gelu", "silu", "sigmoid", "leaky_relu")
# Integers of a job: op, channels, destination, its channels, two operands and theirs, terms, weights, bias, activation,
# kind, slope; and of a buffer: where it begins, rows, numbers of a row, channels, margin on the left.
JOB_FIELDS, BUFFER_FIELDS = 14, 5


class Program:
    """A plan and the numbers of a call, as the kernel reads them."""

    def __init__(self, plan: Plan, binding: Binding, width: int) -> None:
        self.plan, self.binding = plan, binding
        self.lists: list[int] = []
        self.buffers: list[int] = []
        # The first numbers: a zero for what is absent.
        self.numbers: list[Tensor] = [torch.zeros(1)]
        self.n_numbers, self.n_constants = 1, 0
        self.image_numbers = 0
        for buffer in plan.buffers:
            row = (buffer.left + width + buffer.right) * buffer.channels
            self.buffers += [self.image_numbers, buffer.rows, row, buffer.channels, buffer.left]
            self.image_numbers += buffer.rows * row
        self.constants: list[Tensor] = []
        by_pass: list[list[list[int]]] = [[] for _ in range(plan.num_colors + 2)]
        for node in plan.nodes:
            passes = plan.buffers[node.dst.buffer].passes_of(node.dst)
            for current in sorted(set(passes)):
                by_pass[current + 1].append(self._job(node, [c for c, own in enumerate(passes) if own == current]))
        for color in range(plan.num_colors):
            by_pass[color + 1].append([DRAW, color, *[0] * (JOB_FIELDS - 2)])
        self.row_jobs, self.pixel_jobs = len(by_pass[0]), sum(len(jobs) for jobs in by_pass[1:])
        self.jobs = [number for jobs in by_pass for job in jobs for number in job]

    def _list(self, values: Sequence[int]) -> int:
        self.lists += values
        return len(self.lists) - len(values)

    def _numbers(self, values: Tensor) -> int:
        self.numbers.append(values.flatten())
        self.n_numbers += values.numel()
        return self.n_numbers - values.numel()

    def _channels(self, spans: Sequence[Span], chosen: Sequence[int]) -> int:
        return self._list([span.first + c for span in spans for c in chosen])

    def _job(self, node: Node, chosen: list[int]) -> list[int]:
        count = len(chosen)
        to = [_OPS[node.op], count, node.dst.buffer, self._channels([node.dst], chosen)]
        if node.op == "conv":
            return [*to, *self._conv(node, chosen), 0, 0]
        if node.op == "constant":
            value = self.binding.constants[node.index]
            self.constants.append(value.flatten())
            self.n_constants += value.numel()
            image, channel, row, column = (*value.stride(), 0, 0)[:4]
            return [*to, 0, 0, -1, self.n_constants - value.numel(), row, image, channel, 0, column, 0]
        if node.op == "gate":
            half = node.dst.channels
            halves = [[span.part(i * half, half) for i in (0, 1)] for span in (node.src, node.condition) if span]
            a, b = halves[0], halves[1] if node.condition else None
            second = [-1, 0] if b is None else [b[0].buffer, self._channels(b, chosen)]
            return [*to, a[0].buffer, self._channels(a, chosen), *second, 0, 0, 0, 0, int(node.kind != "tanh"), 0]
        if node.op in ("affine", "activation", "copy"):
            numbers, activation, slope = [0, 0], 0, 0
            if node.op == "affine":
                numbers = [self._numbers(torch.tensor([float(v)])) for v in (node.alpha, node.beta)]
            elif node.op == "activation":
                activation = _ACTIVATIONS.index(node.name)
                slope = self._numbers(torch.tensor([float(node.slope)])) if node.slope is not None else 0
            return [*to, node.src.buffer, self._channels([node.src], chosen), -1, 0, 0, *numbers, activation, 0, slope]
        a, b = node.a, node.b
        operands = [a.buffer, self._channels([a], chosen), b.buffer, self._channels([b], chosen)]
        return [*to, *operands, 0, 0, 0, 0, 0, 0]

    def _conv(self, node: Any, chosen: list[int]) -> list[int]:
        """Source, its terms, weights (terms, outputs) and bias."""
        first, inputs = node.group * node.dst.channels, node.src.channels
        rows = torch.tensor(chosen, dtype=torch.long)
        weight = self.binding.weights[node.layer][first : first + node.dst.channels].flatten(2)
        rows = rows.to(weight.device)
        parts = []
        for tap, _, _ in node.taps:
            part = weight[rows, :, tap]
            if tap == node.origin_tap:
                degrees = torch.tensor(node.out_degrees, device=weight.device)[rows]
                part = torch.where(torch.tensor(node.in_degrees, device=weight.device) <= degrees[:, None], part, 0.0)
            parts.append(part.t())
        matrix = torch.cat(parts) if parts else weight.new_zeros(0, len(chosen))
        bias = self.binding.biases[node.layer]
        offset = weight.new_zeros(len(chosen)) if bias is None else bias[first : first + node.dst.channels][rows]
        channels = self.plan.buffers[node.src.buffer].channels
        terms = [dy for _, dy, _ in node.taps for _ in range(inputs)]
        terms += [dx * channels + node.src.first + i for _, _, dx in node.taps for i in range(inputs)]
        activation = _ACTIVATIONS.index(node.activation)
        return [
            node.src.buffer, self._list(terms), -1, 0, len(terms) // 2, self._numbers(matrix), self._numbers(offset),
            activation,
        ]  # fmt: skip
