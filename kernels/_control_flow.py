"""The loops of machine code for NVIDIA, and what is in them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"0x([0-9a-f]+)")
_GLOBAL_ACCESS = re.compile(r"\b(?:LDG|STG|LDGSTS)\b(\S*)")
# Only a division of 64-bit integers converts them to floats.
_WIDE_DIVISION = re.compile(r"\bI2F\.U64")
_BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


class Instruction(NamedTuple):
    """Where an instruction is, in bytes from the start of what was disassembled, and what it says."""

    address: int
    text: str


def count_loops(code: Sequence[Instruction]) -> dict[str, float]:
    """What the loops hold, and the figures of the hottest one.

    That is the largest innermost loop with global accesses; without one it is the whole kernel, and `loop` is 0.
    """
    blocks, edges = _blocks_of(code)
    outer = list(_find_loops(set(blocks), edges))
    within = [i for loop in outer for block in loop.blocks for i in blocks[block]]
    innermost = [[i for block in loop.blocks for i in blocks[block]] for top in outer for loop in top.innermost()]
    with_accesses = [loop for loop in innermost if access_bytes(loop)]
    hottest = max(with_accesses, key=len, default=[])
    moved = access_bytes(hottest or code)
    calls = [i for i in within if re.search(r"\bCALL\b", i.text)]
    divisions = [i for i in within if _WIDE_DIVISION.search(i.text)]
    divisions += [call for call in calls if any(_WIDE_DIVISION.search(i.text) for i in _callee(code, call))]
    everywhere = access_bytes(code)
    return {
        "loop": len(hottest),
        "per_16_bytes": round(16 * len(hottest or code) / sum(moved), 1) if moved else 0,
        "bytes": round(sum(everywhere) / len(everywhere), 1) if everywhere else 0,
        "calls": len(calls),
        "barriers": sum(re.search(r"\bBAR\b", i.text) is not None for i in within),
        "divisions": len(divisions),
    }


def access_bytes(code: Sequence[Instruction]) -> list[int]:
    """Bytes of a thread in each access to global memory."""
    found = (_GLOBAL_ACCESS.search(instruction.text) for instruction in code)
    return [
        next((_BYTES[part] for part in reversed(access[1].split(".")) if part in _BYTES), 4)
        for access in found
        if access
    ]


def _target(text: str) -> int | None:
    """Where an instruction may jump, None if it does not."""
    if re.match(r"BRA\b", _PREDICATE.sub("", text)):
        return int(_TARGET.findall(text)[-1], 16)
    return None


def _falls_through(text: str) -> bool:
    """Whether the next instruction may follow."""
    return not re.match(r"(?:BRA 0x|EXIT|RET|BRX|JMX)", text)


def _callee(code: Sequence[Instruction], call: Instruction) -> Iterator[Instruction]:
    """The instructions of the function that a call names, up to its return."""
    targets = _TARGET.findall(call.text)
    start = int(targets[-1], 16) if targets else code[-1].address
    for instruction in code:
        if instruction.address >= start:
            yield instruction
            if re.search(r"\bRET\b", instruction.text):
                return


def _blocks_of(code: Sequence[Instruction]) -> tuple[dict[int, list[Instruction]], dict[int, list[int]]]:
    """The basic blocks by their addresses, and which block may follow which."""
    starts = {code[0].address} if code else set()
    for instruction, after in itertools.pairwise(code):
        target = _target(instruction.text)
        if target is not None:
            starts.add(target)
        if target is not None or not _falls_through(instruction.text):
            starts.add(after.address)
    blocks: dict[int, list[Instruction]] = {}
    for instruction in code:
        if instruction.address in starts:
            here = instruction.address
            blocks[here] = []
        blocks[here].append(instruction)
    order = list(blocks)
    edges: dict[int, list[int]] = {}
    for block, after in zip(order, [*order[1:], None], strict=True):
        last = blocks[block][-1]
        targets = [_target(last.text)]
        # The last block of a kernel jumps to itself, to stop.
        if targets == [last.address]:
            targets = []
        if _falls_through(last.text):
            targets.append(after)
        edges[block] = [target for target in targets if target in blocks]
    return blocks, edges


class _Loop(NamedTuple):
    blocks: Collection[int]
    inner: list[_Loop]

    def innermost(self) -> Iterator[_Loop]:
        for loop in self.inner:
            yield from loop.innermost()
        if not self.inner:
            yield self


def _find_loops(blocks: Collection[int], edges: Mapping[int, Sequence[int]]) -> Iterator[_Loop]:
    """The outermost loops among the blocks, with those inside of them."""
    for part in _components(blocks, edges):
        if len(part) == 1 and not any(block in edges[block] for block in part):
            continue
        entries = {to for block in blocks if block not in part for to in edges[block] if to in part} or {min(part)}
        inner = {block: [to for to in edges[block] if to in part and to not in entries] for block in part}
        yield _Loop(part, list(_find_loops(part, inner)))


def _components(blocks: Collection[int], edges: Mapping[int, Sequence[int]]) -> list[set[int]]:
    """The sets of blocks that all reach one another."""
    ended: list[int] = []
    seen: set[int] = set()
    for block in sorted(blocks):
        _visit(block, edges, blocks, seen, ended)
    into: dict[int, list[int]] = {block: [] for block in blocks}
    for block in blocks:
        for to in edges[block]:
            if to in into:
                into[to].append(block)
    seen = set()
    parts = []
    for block in reversed(ended):
        part: list[int] = []
        _visit(block, into, blocks, seen, part)
        if part:
            parts.append(set(part))
    return parts


def _visit(
    first: int, edges: Mapping[int, Sequence[int]], blocks: Collection[int], seen: set[int], ended: list[int]
) -> None:
    """Appends the blocks reachable from the first that were not seen, each behind those that it leads to."""
    if first in seen:
        return
    seen.add(first)
    path = [(first, iter(edges[first]))]
    while path:
        block, following = path[-1]
        for to in following:
            if to in blocks and to not in seen:
                seen.add(to)
                path.append((to, iter(edges[to])))
                break
        else:
            ended.append(block)
            path.pop()
