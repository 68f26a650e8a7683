"""A sampler's plan as tables of integers for its kernels, and the selection of the numbers that the kernels read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..structure.sampling_plan import ROW, Binding, Conv, Plan
from ..structure.sampling_records import ActivationCode, GateCode, OpCode, lay_out
from ._sampler_records import VECTOR, Block, Op, Run, Site
from ._sampler_stages import Follower, Place, Stage, find_read, form_stages, group_rows
from ._tiles import ceil_div

Shape = tuple[int, ...]
# Numbers of an image in the kernels' memory are a multiple of this, which Triton then knows.
_ALIGNED = 16


# Programs by plan. A plan lives as long as its sampler: CUDA graphs read a program's tensors.
_PROGRAMS: WeakKeyDictionary[Plan, dict[Any, Program]] = WeakKeyDictionary()


def get_program(
    plan: Plan, binding: Binding, height: int, width: int, device: torch.device, columns: int, terms: int
) -> Program:
    """The program of a plan and its shapes, for blocks of ``columns``, and of ``terms`` at a pixel.

    Only the first call copies to the device: a CUDA graph may not.
    """
    weights = tuple(tuple(t.shape) for t in binding.weights)
    constants = tuple(tuple(t.shape[1:]) for t in binding.constants)
    # Rings of rows are where they were after so many rows.
    period = min(math.lcm(*(buffer.rows for buffer in plan.buffers)), height)
    key = weights, constants, tuple(b is not None for b in binding.biases), width, period, device, columns, terms
    known = _PROGRAMS.setdefault(plan, {})
    if key not in known:
        known[key] = Program(plan, *key)
    return known[key]


class Program:
    """A plan as the kernels read it, on ``device``.

    Fixed numbers, weights and biases follow each other in one array. The program's numbers are a selection of them:
    number i is entry ``index[i]``. Entry 0 is a zero, for masked weights and absent biases. ``constants`` are shapes of
    the constants of one image.

    ``tables`` has a row for each of ``period`` rows of an image, which repeat: runs, blocks from ``blocks_at`` on, and
    operations from ``ops_at`` on. ``row_blocks`` are ranges of blocks; each is for one launch over whole rows.
    ``pixel_blocks`` is the range for a pixel. A run follows theirs: the next pixel's first one.
    """

    def __init__(
        self,
        plan: Plan,
        weights: Sequence[Shape],
        constants: Sequence[Shape],
        biased: Sequence[bool],
        width: int,
        period: int,
        device: torch.device,
        columns: int,
        terms: int,
    ) -> None:
        self._plan, self._columns, self.period = plan, columns, period
        self._places = dict[tuple[int, ...], int]()
        self._lists = list[int]()
        self._runs, self._blocks, self._ops = list[Run](), list[Block](), list[Op]()
        self._number_inputs(weights, biased)
        ends = [0, *torch.tensor([math.prod(shape) for shape in constants], dtype=torch.long).cumsum(0).tolist()]
        self._constants = [*zip(ends, constants, strict=False)]
        self._constant_numbers = ends[-1]
        self._parts, self._count = [torch.zeros(VECTOR, dtype=torch.long)], VECTOR

        passes = [form_stages(plan, current) for current in range(plan.num_colors + 1)]
        rows = form_stages(plan, ROW)
        self._read = find_read(plan, chain(rows, *passes))
        self.row_blocks = list[tuple[int, int]]()
        for group in group_rows(rows):
            first = len(self._blocks)
            for stage in group:
                self._add_stage(stage, None)
            self.row_blocks.append((first, len(self._blocks)))
        self.first_run, first = len(self._runs), len(self._blocks)
        for current, stages in enumerate(passes):
            for stage in stages:
                self._add_stage(stage, terms)
            if current < plan.num_colors:
                self._add_draw(current)
        self.pixel_blocks = first, len(self._blocks)
        self._runs.append((self._runs[self.first_run :] or [Run()])[0])

        self.tables, self.image_numbers = self._fill_tables(width, device)
        self.blocks_at = len(self._runs) * len(Run._fields)
        self.ops_at = self.blocks_at + len(self._blocks) * len(Block._fields)
        # One entry more, since an empty tensor has no address.
        self.lists = torch.tensor([*self._lists, 0], dtype=torch.int32).to(device)
        self.colors = torch.tensor(plan.image_colors, dtype=torch.int32).to(device)
        self._index = torch.cat(self._parts).int().to(device)
        self._fixed_numbers = torch.tensor([*self._fixed], dtype=torch.float32).to(device)
        del self._parts, self._weights, self._biases, self._lists, self._places, self._read

    def gather_numbers(self, binding: Binding) -> Tensor:
        """The numbers that the kernels read: weights in the order of their use, and the others."""
        parts = [*binding.weights, *(b for b in binding.biases if b is not None)]
        return torch.cat([self._fixed_numbers, *(t.flatten() for t in parts)])[self._index]

    def gather_constants(self, binding: Binding) -> Tensor:
        """The constants of each image, ``(N, numbers)``."""
        return torch.cat([t.flatten(1) for t in binding.constants], 1) if binding.constants else self._fixed_numbers

    def _number_inputs(self, weights: Sequence[Shape], biased: Sequence[bool]) -> None:
        """The entries of fixed numbers, weights and biases in the array of all."""
        nodes = self._plan.nodes
        scalars = [float(v) for node in nodes if node.op == "affine" for v in (node.alpha, node.beta)]
        scalars += [float(node.slope) for node in nodes if node.op == "activation" and node.slope is not None]
        self._fixed = {value: place for place, value in enumerate(dict.fromkeys([0.0, *scalars]))}
        self._weights, end = list[Tensor](), len(self._fixed)
        for shape in weights:
            self._weights.append(torch.arange(end, end + math.prod(shape)).view(shape))
            end += math.prod(shape)
        self._biases = list[Tensor | None]()
        for shape, has_bias in zip(weights, biased, strict=True):
            self._biases.append(torch.arange(end, end + shape[0]) if has_bias else None)
            end += shape[0] * has_bias

    def _fill_tables(self, width: int, device: torch.device) -> tuple[Tensor, int]:
        """The tables, and how many numbers of an image the kernels keep."""
        layout, numbers = lay_out(self._plan, width)
        entries = []
        for entry in chain(*self._runs, *self._blocks, *self._ops):
            if isinstance(entry, Site):
                buffer = layout[entry.buffer]
                first = buffer.first + buffer.left * buffer.channels + entry.offset
                entries.append((first, entry.row, buffer.rows, buffer.row_numbers))
            else:
                entries.append((int(entry), 0, 1, 0))
        first, row, rows, row_numbers = torch.tensor(entries).unbind(1)
        table = first + (torch.arange(self.period)[:, None] + row) % rows * row_numbers
        return table.int().to(device), ceil_div(numbers, _ALIGNED) * _ALIGNED

    def _add_list(self, values: Iterable[int]) -> int:
        key = tuple(values)
        if key not in self._places:
            self._places[key] = len(self._lists)
            self._lists += key
        return self._places[key]

    def _add_numbers(self, entries: Tensor) -> int:
        """The place of ``entries``, a multiple of the vector's width, which fills with zeros."""
        place, count = self._count, entries.numel()
        self._count += ceil_div(count, VECTOR) * VECTOR
        self._parts += [entries.flatten(), torch.zeros(self._count - place - count, dtype=torch.long)]
        return place

    def _add_scalar(self, value: float | None) -> int:
        return self._add_numbers(torch.tensor(self._fixed[float(value or 0.0)]))

    def _locate(self, places: Sequence[Place]) -> dict[str, Any]:
        """Where the numbers of the columns are, all of one buffer."""
        (buffer,) = {buffer for buffer, _ in places}
        channels = self._plan.buffers[buffer].channels
        return {"at": Site(buffer), "step": channels, "places": self._add_list(channel for _, channel in places)}

    def _add_stage(self, stage: Stage, terms: int | None) -> None:
        """Blocks of the stage's columns; runs have at most so many ``terms``."""
        columns = stage.columns
        for first in range(0, len(columns), self._columns):
            self._add_block(stage, columns[first : first + self._columns], terms)

    def _add_block(self, stage: Stage, columns: list[int], terms: int | None) -> None:
        node, start = stage.source, [stage.start[c] for c in columns]
        first_op = len(self._ops)
        if node is None:
            block = Block(OpCode.COPY, len(columns), **self._locate(start))
        elif node.op == "constant":
            block = self._make_constant(node.index, [stage.channels[c] for c in columns])
        else:
            block = self._make_conv(node, [stage.channels[c] for c in columns], terms)
            if node.activation != "identity":
                self._ops.append(Op(OpCode.ACTIVATION, kind=ActivationCode[node.activation.upper()]))
        if node is not None:
            self._add_store(start)
        for follower in stage.followers:
            self._add_follower(follower, columns)
        self._blocks.append(block._replace(first_op=first_op, end_op=len(self._ops)))

    def _add_store(self, places: Sequence[Place]) -> None:
        if not self._read.isdisjoint(places):
            self._ops.append(Op(OpCode.COPY, **self._locate(places)))

    def _add_follower(self, follower: Follower, columns: list[int]) -> None:
        node = follower.node
        other = [follower.other[c] for c in columns] if follower.other else []
        if node.op == "gate":
            if other:
                self._ops.append(Op(OpCode.ADD, **self._locate(other)))
            # The first column of each pair has the number of the gate's channel.
            results = [follower.results[c] for c in columns[::2]]
            self._ops.append(Op(OpCode.GATE, kind=GateCode[node.kind.upper()], **self._locate(results)))
            return
        if node.op == "affine":
            self._ops.append(Op(OpCode.AFFINE, alpha=self._add_scalar(node.alpha), beta=self._add_scalar(node.beta)))
        elif node.op == "activation":
            kind, slope = ActivationCode[node.name.upper()], self._add_scalar(node.slope)
            self._ops.append(Op(OpCode.ACTIVATION, kind=kind, alpha=slope))
        elif node.op != "copy":
            self._ops.append(Op(OpCode[node.op.upper()], **self._locate(other)))
        self._add_store([follower.results[c] for c in columns])

    def _make_constant(self, index: int, channels: list[int]) -> Block:
        first, shape = self._constants[index]
        channel, row, column = (*torch.empty(shape, device="meta").stride(), 0, 0)[:3]
        places = self._add_list(c * channel for c in channels)
        return Block(
            OpCode.CONSTANT, len(channels), at=first, step=column, places=places, row_step=row,
            image_step=self._constant_numbers,
        )  # fmt: skip

    def _make_conv(self, node: Conv, channels: list[int], terms: int | None) -> Block:
        """A block of a convolution's outputs, after the addition of its runs."""
        first, step = node.group * node.dst.channels, self._plan.buffers[node.src.buffer].channels
        outputs = torch.tensor(channels, dtype=torch.long)
        weight = self._weights[node.layer][first : first + node.dst.channels].flatten(2)
        first_run, width = len(self._runs), ceil_div(len(channels), VECTOR)
        for taps in _join_taps(node, step):
            parts = []
            for tap, _, _ in taps:
                part = weight[outputs, :, tap]
                if tap == node.origin_tap:
                    degrees = torch.tensor(node.out_degrees)[outputs]
                    part = torch.where(torch.tensor(node.in_degrees) <= degrees[:, None], part, 0)
                parts.append(part.t())
            matrix = torch.nn.functional.pad(torch.cat(parts), (0, width * VECTOR - len(channels)))
            place, count = self._add_numbers(matrix) // VECTOR, len(matrix)
            _, dy, dx = taps[0]
            for start in range(0, count, terms or count):
                site = Site(node.src.buffer, dy, dx * step + node.src.first + start)
                length = min(count - start, terms or count)
                self._runs.append(Run(length, site, step, place + start * width, width))
        bias = self._biases[node.layer]
        offset = torch.zeros_like(outputs) if bias is None else bias[first : first + node.dst.channels][outputs]
        return Block(OpCode.CONV, len(channels), first_run, len(self._runs), self._add_numbers(offset))

    def _add_draw(self, color: int) -> None:
        """A draw from the last buffer into the first one."""
        first, last = (self._locate([(buffer, 0)]) for buffer in (0, len(self._plan.buffers) - 1))
        self._ops.append(Op(OpCode.DRAW, **first))
        block = Block(OpCode.DRAW, color=color, **last)
        self._blocks.append(block._replace(first_op=len(self._ops) - 1, end_op=len(self._ops)))


def _join_taps(node: Conv, channels: int) -> list[list[tuple[int, int, int]]]:
    """The taps, those together whose inputs lie side by side in a buffer of so many ``channels``."""
    runs: list[list[tuple[int, int, int]]] = []
    for tap, dy, dx in node.taps:
        _, last_dy, last_dx = runs[-1][-1] if runs else (0, 0, 0)
        if runs and node.src.channels == channels and (dy, dx) == (last_dy, last_dx + 1):
            runs[-1].append((tap, dy, dx))
        else:
            runs.append([(tap, dy, dx)])
    return runs
