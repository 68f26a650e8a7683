"""A sampler's plan as tables of integers for its kernel, and the selection of the numbers that the kernel reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..structure.sampling_plan import Binding, Conv, Gate, Node, Plan, Span
from ..structure.sampling_records import ABSENT, ActivationCode, GateCode, OpCode, flatten, lay_out

Shape = tuple[int, ...]


class Job(NamedTuple):
    """What a node computes for the channels of one pass, or a draw of the channels of one colour.

    ``dst``, ``src`` and ``other`` are buffers. A list is a place in the program's lists. It has an entry for each
    channel of the job; a list of a gate's operands has two. The list of a convolution's terms holds how many rows and
    numbers each term is away from the pixel. ``weights``, ``bias``, ``slope``, ``alpha`` and ``beta`` are places among
    the program's numbers. A constant begins at ``constant``, and the steps lead from it to other images, channels, rows
    and columns.
    """

    op: int
    channels: int = 0
    dst: int = 0
    dst_list: int = 0
    src: int = 0
    src_list: int = 0
    other: int = ABSENT
    other_list: int = 0
    terms: int = 0
    weights: int = 0
    bias: int = 0
    activation: int = ActivationCode.IDENTITY
    slope: int = 0
    gate: int = 0
    alpha: int = 0
    beta: int = 0
    constant: int = 0
    image_step: int = 0
    channel_step: int = 0
    row_step: int = 0
    column_step: int = 0
    color: int = 0


# Programs by plan. A plan lives as long as its sampler: CUDA graphs read a program's tensors.
_PROGRAMS: WeakKeyDictionary[Plan, dict[Any, Program]] = WeakKeyDictionary()


def get_program(plan: Plan, binding: Binding, width: int, device: torch.device) -> Program:
    """The program of a plan and its shapes. Only the first call copies to the device: a CUDA graph may not."""
    weights = tuple(tuple(t.shape) for t in binding.weights)
    constants = tuple(tuple(t.shape[1:]) for t in binding.constants)
    key = weights, constants, tuple(b is not None for b in binding.biases), width, device
    known = _PROGRAMS.setdefault(plan, {})
    if key not in known:
        known[key] = Program(plan, *key)
    return known[key]


class Program:
    """A plan as the kernel reads it, on ``device``.

    Fixed numbers, weights and biases follow each other in one array. The program's numbers are a selection of them:
    number i is entry ``index[i]``. Entry 0 is a zero, for masked weights and absent biases. ``constants`` are shapes of
    the constants of one image.
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
        buffers, self.image_numbers = lay_out(plan, width)
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

        by_pass: list[list[Job]] = [[] for _ in range(plan.num_colors + 2)]
        for node in plan.nodes:
            passes = plan.buffers[node.dst.buffer].passes_of(node.dst)
            for current in sorted(set(passes)):
                chosen = [c for c, own in enumerate(passes) if own == current]
                by_pass[current + 1].append(self._make_job(plan, node, chosen))
        for color in range(plan.num_colors):
            by_pass[color + 1].append(Job(OpCode.DRAW, color=color))
        self.row_jobs, self.pixel_jobs = len(by_pass[0]), sum(len(jobs) for jobs in by_pass[1:])

        def integers(values: Sequence[int]) -> Tensor:
            # One entry more, since an empty tensor has no address.
            return torch.tensor([*values, 0], dtype=torch.int32).to(device)

        self.jobs = integers(flatten(job for jobs in by_pass for job in jobs))
        self.lists, self.colors = integers(self._lists), integers(plan.image_colors)
        self.buffers = integers(flatten(buffers))
        self._index = torch.cat(self._parts).int().to(device)
        self._fixed_numbers = torch.tensor([*self._fixed], dtype=torch.float32).to(device)
        del self._parts, self._weights, self._biases, self._lists

    def gather_numbers(self, binding: Binding) -> Tensor:
        parts = [*binding.weights, *(b for b in binding.biases if b is not None)]
        return torch.cat([self._fixed_numbers, *(t.flatten() for t in parts)])[self._index]

    def gather_constants(self, binding: Binding) -> Tensor:
        """The constants of each image, ``(N, numbers)``."""
        return torch.cat([t.flatten(1) for t in binding.constants], 1) if binding.constants else self._fixed_numbers

    def _add_list(self, values: Sequence[int]) -> int:
        self._lists += values
        return len(self._lists) - len(values)

    def _add_numbers(self, entries: Tensor) -> int:
        self._parts.append(entries.flatten())
        self._count += entries.numel()
        return self._count - entries.numel()

    def _add_scalar(self, value: float) -> int:
        return self._add_numbers(torch.tensor(self._fixed[float(value)]))

    def _add_channels(self, spans: Sequence[Span], chosen: Sequence[int]) -> int:
        return self._add_list([span.first + c for span in spans for c in chosen])

    def _make_job(self, plan: Plan, node: Node, chosen: list[int]) -> Job:
        job = Job(OpCode[node.op.upper()], len(chosen), node.dst.buffer, self._add_channels([node.dst], chosen))
        if node.op == "conv":
            return job._replace(**self._make_conv(plan, node, chosen))
        if node.op == "constant":
            first, shape = self._constants[node.index]
            channel, row, column = (*torch.empty(shape, device="meta").stride(), 0, 0)[:3]
            return job._replace(
                constant=first,
                image_step=self._constant_numbers,
                channel_step=channel,
                row_step=row,
                column_step=column,
            )
        if node.op == "add" or node.op == "sub" or node.op == "mul":
            return job._replace(
                src=node.a.buffer, src_list=self._add_channels([node.a], chosen),
                other=node.b.buffer, other_list=self._add_channels([node.b], chosen),
            )  # fmt: skip
        if node.op == "gate":
            return job._replace(**self._make_gate(node, chosen))
        job = job._replace(src=node.src.buffer, src_list=self._add_channels([node.src], chosen))
        if node.op == "affine":
            return job._replace(alpha=self._add_scalar(node.alpha), beta=self._add_scalar(node.beta))
        if node.op == "activation":
            slope = 0 if node.slope is None else self._add_scalar(node.slope)
            return job._replace(activation=ActivationCode[node.name.upper()], slope=slope)
        return job

    def _make_gate(self, node: Gate, chosen: list[int]) -> dict[str, int]:
        def add_halves(span: Span) -> int:
            half = node.dst.channels
            return self._add_channels([span.part(0, half), span.part(half, half)], chosen)

        fields = {"gate": int(GateCode[node.kind.upper()]), "src": node.src.buffer, "src_list": add_halves(node.src)}
        if node.condition is not None:
            fields |= {"other": node.condition.buffer, "other_list": add_halves(node.condition)}
        return fields

    def _make_conv(self, plan: Plan, node: Conv, chosen: list[int]) -> dict[str, int]:
        """The fields of source, terms, weights (terms, outputs) and bias."""
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
        return {
            "src": node.src.buffer,
            "src_list": self._add_list(terms),
            "terms": len(terms) // 2,
            "weights": self._add_numbers(matrix),
            "bias": self._add_numbers(offset),
            "activation": ActivationCode[node.activation.upper()],
        }
