"""Stages of a sampler: nodes of a plan that go on with a value at the same channels, without a way through memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from ..structure.sampling_plan import Constant, Conv, Node, Plan, Span

# A buffer and one of its channels.
Place = tuple[int, int]


def places_of(span: Span, channels: Iterable[int]) -> list[Place]:
    return [(span.buffer, span.first + c) for c in channels]


class Follower(NamedTuple):
    """A node that takes a value, and the places of its second operand, if it has one."""

    node: Node
    channels: list[int]
    other: list[Place]

    @property
    def results(self) -> list[Place]:
        return places_of(self.node.dst, self.channels)


@dataclass
class Stage:
    """A value of several channels, and the nodes that follow: each takes the value and makes the next one.

    Args:
        source: makes the value; without one it is loaded.
        channels: of the source's destination.
        start: the places of the value, to which the source's result goes.
        followers: a gate is the last one, since it makes one number of two.
    """

    source: Conv | Constant | None
    channels: list[int]
    start: list[Place]
    followers: list[Follower] = field(default_factory=list)

    @property
    def is_gated(self) -> bool:
        return bool(self.followers) and self.followers[-1].node.op == "gate"

    def can_go_on(self, value: list[Place]) -> bool:
        """Whether a node that takes ``value`` may follow."""
        return not self.is_gated and value == (self.followers[-1].results if self.followers else self.start)

    @property
    def columns(self) -> list[int]:
        """The order in which the value's numbers are kept: the two that a gate takes follow each other."""
        count = len(self.start)
        if not self.is_gated:
            return [*range(count)]
        return [*chain.from_iterable(zip(range(count // 2), range(count // 2, count), strict=True))]

    @property
    def results(self) -> list[Place]:
        """The places that the stage may write."""
        own = [] if self.source is None else self.start
        return [*own, *(place for follower in self.followers for place in follower.results)]

    @property
    def operands(self) -> list[Place]:
        """What is read at the pixel itself, beside what a convolution reads."""
        own = self.start if self.source is None else []
        return [*own, *(place for follower in self.followers for place in follower.other)]


def _find_operands(node: Node, channels: list[int]) -> tuple[list[Place], list[Place]]:
    """The places of the first operand, and of the second."""
    if node.op == "add" or node.op == "sub" or node.op == "mul":
        return places_of(node.a, channels), places_of(node.b, channels)
    assert node.op != "conv"
    assert node.op != "constant"
    if node.op == "gate":
        halves = [*channels, *(node.dst.channels + c for c in channels)]
        return places_of(node.src, halves), [] if node.condition is None else places_of(node.condition, halves)
    return places_of(node.src, channels), []


def form_stages(plan: Plan, current: int) -> list[Stage]:
    """The stages that compute the channels of one pass, in the order of their execution."""
    stages: list[Stage] = []
    written: dict[Place, int] = {}
    for node in plan.nodes:
        passes = plan.buffers[node.dst.buffer].passes_of(node.dst)
        channels = [c for c, own in enumerate(passes) if own == current]
        results = places_of(node.dst, channels)
        if not channels:
            continue
        if node.op == "conv" or node.op == "constant":
            stages.append(Stage(node, channels, results))
            index = len(stages) - 1
        else:
            index = _follow(stages, written, node, channels)
        written.update(dict.fromkeys(results, index))
    return stages


def _follow(stages: list[Stage], written: dict[Place, int], node: Node, channels: list[int]) -> int:
    """Lets a node follow the stage whose value it takes, or a new one that loads it; returns the stage's index."""
    first, second = _find_operands(node, channels)
    ways = [(first, second), (second, first)] if node.op == "add" or node.op == "mul" else [(first, second)]
    for value, other in ways:
        for index, stage in enumerate(stages):
            # The other operand must be known before the stage begins.
            if stage.can_go_on(value) and all(written.get(place, -1) < index for place in other):
                stage.followers.append(Follower(node, channels, other))
                return index
    stages.append(Stage(None, [], first, [Follower(node, channels, second)]))
    return len(stages) - 1


def find_read(plan: Plan, stages: Iterable[Stage]) -> set[Place]:
    """The places that are read from memory; values at other places never go there."""
    read = {*places_of(plan.whole(len(plan.buffers) - 1), range(plan.parameter_channels))}
    for stage in stages:
        read.update(stage.operands)
        if stage.source is not None and stage.source.op == "conv":
            read.update(places_of(stage.source.src, range(stage.source.src.channels)))
    return read


def group_rows(stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages of a row in groups: those of a group read none of the group's results at other pixels."""
    groups: list[list[Stage]] = []
    group_of: dict[Place, int] = {}
    for stage in stages:
        waits = [group_of[place] for place in stage.operands if place in group_of]
        source = stage.source
        if source is not None and source.op == "conv":
            steps = [dx for _, dy, dx in source.taps if dy == 0]
            near = places_of(source.src, range(source.src.channels)) if steps else []
            waits += [group_of[place] + any(steps) for place in near if place in group_of]
        group = max(waits, default=0)
        groups += [[] for _ in range(group + 1 - len(groups))]
        groups[group].append(stage)
        group_of.update(dict.fromkeys(stage.results, group))
    return groups
