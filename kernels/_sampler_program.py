"""A sampler's plan as the tables of integers that its kernel reads, and where the kernel's numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..structure.sampling_plan import Binding, Node, Plan, Span

_OPS = {"conv": 0, "add": 1, "sub": 2, "mul": 3, "affine": 4, "activation": 5, "copy": 5, "gate": 6, "constant": 7}
# The job that draws the channels of a color.
DRAW = 8
_ACTIVATIONS = ("identity", "relu", "elu", "tanh", "softplus", "gelu", "silu", "sigmoid", "leaky_relu")
# Integers of a job: op, channels, destination, its channels, two operands and theirs, terms, weights, bias, activation,
# kind, slope; and of a buffer: where it begins, rows, numbers of a row, channels, margin on the left.
JOB_FIELDS, BUFFER_FIELDS = 14, 5

Shape = tuple[int, ...]


# Of each plan, which lives as long as its sampler: CUDA graphs read a program's tensors.
_PROGRAMS: WeakKeyDictionary[Plan, dict[Any, Program]] = WeakKeyDictionary()


def program_of(plan: Plan, binding: Binding, width: int, device: torch.device) -> Program:
    """Made once for a plan and its shapes: a later call copies nothing to the device, and may stand in a CUDA graph."""
    weights = tuple(tuple(t.shape) for t in binding.weights)
    constants = tuple(tuple(t.shape[1:]) for t in binding.constants)
    key = weights, constants, tuple(b is not None for b in binding.biases), width, device
    known = _PROGRAMS.setdefault(plan, {})
    if key not in known:
        known[key] = Program(plan, *key)
    return known[key]


class Program:
    """A plan as the kernel reads it, on ``device``.

    Its numbers are a selection, in an order of their own, of what is fixed, the weights and the biases, one after
    another: entry ``index[i]`` of these is number i. Entry 0 is a zero, which stands for what is masked or absent.
    ``constants`` are the shapes of an image's part.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Shape],
        constants: Sequence[Shape],
        biased: Sequence[bool],
        width: int,
        device: torch.device,
    ) -> None:
        self._lists = list[int]()
        buffers: list[int] = []
        self.image_numbers = 0
        for buffer in plan.buffers:
            row = (buffer.left + width + buffer.right) * buffer.channels
            buffers += [self.image_numbers, buffer.rows, row, buffer.channels, buffer.left]
            self.image_numbers += buffer.rows * row
        scalars = [float(v) for node in plan.nodes if node.op == "affine" for v in (node.alpha, node.beta)]
        scalars += [float(node.slope) for node in plan.nodes if node.op == "activation" and node.slope is not None]
        self._fixed = {value: place for place, value in enumerate(dict.fromkeys([0.0, *scalars]))}
        self._weights, end = list[Tensor](), len(self._fixed)
        for shape in weights:
            self._weights.append(torch.arange(end, end + math.prod(shape)).view(shape))
            end += math.prod(shape)
        self._biases = list[Tensor | None]()
        for shape, has_bias in zip(weights, biased, strict=True):
            self._biases.append(torch.arange(end, end + shape[0]) if has_bias else None)
            end += shape[0] * has_bias
        self._constants = list[tuple[int, Shape]]()
        self._constant_numbers = 0
        for shape in constants:
            self._constants.append((self._constant_numbers, shape))
            self._constant_numbers += math.prod(shape)
        self._parts, self._count = [torch.zeros(1, dtype=torch.long)], 1

        by_pass: list[list[list[int]]] = [[] for _ in range(plan.num_colors + 2)]
        for node in plan.nodes:
            passes = plan.buffers[node.dst.buffer].passes_of(node.dst)
            for current in sorted(set(passes)):
                chosen = [c for c, own in enumerate(passes) if own == current]
                by_pass[current + 1].append(self._job(plan, node, chosen))
        for color in range(plan.num_colors):
            by_pass[color + 1].append([DRAW, color, *[0] * (JOB_FIELDS - 2)])
        self.row_jobs, self.pixel_jobs = len(by_pass[0]), sum(len(jobs) for jobs in by_pass[1:])

        def integers(values: Sequence[int]) -> Tensor:
            # One more: programs read lists in blocks, and an empty tensor has no address.
            return torch.tensor([*values, 0], dtype=torch.int32).to(device)

        self.jobs = integers([number for jobs in by_pass for job in jobs for number in job])
        self.lists, self.buffers, self.colors = integers(self._lists), integers(buffers), integers(plan.image_colors)
        self._index = torch.cat(self._parts).int().to(device)
        self._fixed_numbers = torch.tensor([*self._fixed], dtype=torch.float32).to(device)
        del self._parts, self._weights, self._biases, self._lists

    def numbers(self, binding: Binding) -> Tensor:
        parts = [*binding.weights, *(b for b in binding.biases if b is not None)]
        return torch.cat([self._fixed_numbers, *(t.flatten() for t in parts)])[self._index]

    def constants(self, binding: Binding) -> Tensor:
        """An image's constants together."""
        return torch.cat([t.flatten(1) for t in binding.constants], 1) if binding.constants else self._fixed_numbers

    def _list(self, values: Sequence[int]) -> int:
        self._lists += values
        return len(self._lists) - len(values)

    def _numbers(self, entries: Tensor) -> int:
        self._parts.append(entries.flatten())
        self._count += entries.numel()
        return self._count - entries.numel()

    def _scalar(self, value: float) -> int:
        return self._numbers(torch.tensor(self._fixed[float(value)]))

    def _channels(self, spans: Sequence[Span], chosen: Sequence[int]) -> int:
        return self._list([span.first + c for span in spans for c in chosen])

    def _job(self, plan: Plan, node: Node, chosen: list[int]) -> list[int]:
        count = len(chosen)
        to = [_OPS[node.op], count, node.dst.buffer, self._channels([node.dst], chosen)]
        if node.op == "conv":
            return [*to, *self._conv(plan, node, chosen), 0, 0]
        if node.op == "constant":
            first, shape = self._constants[node.index]
            channel, row, column = (*torch.empty(shape, device="meta").stride(), 0, 0)[:3]
            return [*to, 0, 0, -1, first, row, self._constant_numbers, channel, 0, column, 0]
        if node.op == "gate":
            half = node.dst.channels
            halves = [[span.part(i * half, half) for i in (0, 1)] for span in (node.src, node.condition) if span]
            a, b = halves[0], halves[1] if node.condition else None
            second = [-1, 0] if b is None else [b[0].buffer, self._channels(b, chosen)]
            return [*to, a[0].buffer, self._channels(a, chosen), *second, 0, 0, 0, 0, int(node.kind != "tanh"), 0]
        if node.op in ("affine", "activation", "copy"):
            numbers, activation, slope = [0, 0], 0, 0
            if node.op == "affine":
                numbers = [self._scalar(node.alpha), self._scalar(node.beta)]
            elif node.op == "activation":
                activation = _ACTIVATIONS.index(node.name)
                slope = 0 if node.slope is None else self._scalar(node.slope)
            return [*to, node.src.buffer, self._channels([node.src], chosen), -1, 0, 0, *numbers, activation, 0, slope]
        a, b = node.a, node.b
        operands = [a.buffer, self._channels([a], chosen), b.buffer, self._channels([b], chosen)]
        return [*to, *operands, 0, 0, 0, 0, 0, 0]

    def _conv(self, plan: Plan, node: Any, chosen: list[int]) -> list[int]:
        """Source, its terms, weights (terms, outputs) and bias."""
        first, inputs = node.group * node.dst.channels, node.src.channels
        rows = torch.tensor(chosen, dtype=torch.long)
        weight = self._weights[node.layer][first : first + node.dst.channels].flatten(2)
        parts = []
        for tap, _, _ in node.taps:
            part = weight[rows, :, tap]
            if tap == node.origin_tap:
                degrees = torch.tensor(node.out_degrees)[rows]
                part = torch.where(torch.tensor(node.in_degrees) <= degrees[:, None], part, 0)
            parts.append(part.t())
        matrix = torch.cat(parts) if parts else rows.new_zeros(0, len(chosen))
        bias = self._biases[node.layer]
        offset = rows.new_zeros(len(chosen)) if bias is None else bias[first : first + node.dst.channels][rows]
        channels = plan.buffers[node.src.buffer].channels
        terms = [dy for _, dy, _ in node.taps for _ in range(inputs)]
        terms += [dx * channels + node.src.first + i for _, _, dx in node.taps for i in range(inputs)]
        activation = _ACTIVATIONS.index(node.activation)
        return [
            node.src.buffer, self._list(terms), -1, 0, len(terms) // 2, self._numbers(matrix), self._numbers(offset),
            activation,
        ]  # fmt: skip
