"""The global accesses of a kernel, from its TTGIR: which addresses each of them has in the first program.

An evaluation of the integers and pointers of the first program, and of the first turn of each loop. Numbers that come
from memory count as 0, and floats as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

# Bases of the arguments: far enough from one another for every offset, and as aligned as torch's allocations.
_ARGUMENT_BITS = 44
_BITS = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64}

_LOCATION = re.compile(r"\s*loc\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
_NAME = r"%[\w$.-]+(?:#\d+)?"
_OPERATION = re.compile(r'(?:(%[\w$.-]+)(?::(\d+))? = )?"?([a-z_]+\.[\w.]+)"?(.*)')
_ALIAS = re.compile(r"^(#\w+) = (#.*)$", re.MULTILINE)


class Access(NamedTuple):
    """One load or store: the number of its argument, bytes of an element, layout, and address and mask of each."""

    kind: str
    argument: int
    item: int
    layout: str
    addresses: np.ndarray
    mask: np.ndarray

    def distinct(self) -> int:
        """How many distinct elements it accesses."""
        return len(np.unique(self.addresses))


class _Operation(NamedTuple):
    result: str | None
    results: int
    name: str
    text: str
    regions: list[list[_Operation]]


def _parse_block(lines: Iterator[str]) -> tuple[list[_Operation], str]:
    """The operations up to the line that closes their block, and that line."""
    operations = []
    for line in lines:
        if line.startswith("}"):
            return operations, line
        found = _OPERATION.match(line)
        # Also a module, and the names of a region's arguments, which stand in a line of their own.
        result, results, name, text = found.groups() if found else (None, 0, line.partition(" ")[0], line)
        regions, opener = [], line
        while opener.endswith("{"):
            block, opener = _parse_block(lines)
            regions.append(block)
        operations.append(_Operation(result, int(results or 1), name, text, regions))
    return operations, ""


def _types_of(text: str) -> list[str]:
    """The types that end an operation's text, one for each side of its arrow."""
    return re.split(r" -> | : ", text.strip())


def _shape_of(kind: str) -> tuple[int, ...]:
    sizes = re.search(r"tensor<((?:\d+x)+)", kind)
    return tuple(map(int, sizes[1].split("x")[:-1])) if sizes else ()


def _element_of(kind: str) -> str:
    return re.sub(r"^tensor<(?:\d+x)*", "", kind)


def _layout_of(kind: str) -> str:
    return kind.partition(", ")[2].removesuffix(">")


def _item_size(kind: str) -> int:
    """Bytes of what a pointer points to."""
    (pointee,) = re.search(r"!tt\.ptr<(\w+)", kind).groups()
    return max(_BITS.get(pointee) or int(pointee.removeprefix("i")), 8) // 8


def _is_integer(kind: str) -> bool:
    return re.match(r"(?:i\d+|index)\b", _element_of(kind)) is not None


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": np.floor_divide,
    "arith.divui": np.floor_divide,
    "arith.remsi": np.remainder,
    "arith.remui": np.remainder,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shli": lambda a, b: np.left_shift(a, np.minimum(b, 63)),
    "arith.shrsi": lambda a, b: np.right_shift(a, np.minimum(b, 63)),
    "arith.shrui": lambda a, b: np.right_shift(a, np.minimum(b, 63)),
    "arith.minsi": np.minimum,
    "arith.minui": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.maxui": np.maximum,
    "arith.select": np.where,
}
_COMPARISONS = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater}
_COMPARISONS["ge"] = np.greater_equal
_SAME = {
    "arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "arith.index_castui", "ttg.convert_layout",
    "tt.unsplat",
}  # fmt: skip


class _Program:
    """The first program of a kernel. `values` has what is known of the names."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.accesses: list[Access] = []

    def evaluate(self, block: list[_Operation]) -> list[Any]:
        """What the block yields."""
        yielded: list[Any] = []
        for operation in block:
            if operation.name in ("scf.yield", "scf.condition"):
                yielded = self._operands(operation.text)
            elif operation.regions:
                self._bind(operation, self._evaluate_regions(operation))
            else:
                self._bind(operation, [self._evaluate_one(operation)])
        return yielded

    def _bind(self, operation: _Operation, results: list[Any]) -> None:
        if operation.result is None:
            return
        self.values[operation.result] = results[0] if results else None
        self.values |= {f"{operation.result}#{place}": value for place, value in enumerate(results)}

    def _operands(self, text: str) -> list[Any]:
        return [self.values.get(name) for name in re.findall(_NAME, text)]

    def _evaluate_regions(self, operation: _Operation) -> list[Any]:
        name, text, regions = operation.name, operation.text, operation.regions
        if name == "scf.for":
            number, first = re.search(rf"({_NAME}) = ({_NAME}) to", text).groups()
            self.values[number] = self.values.get(first)
            self._enter(text.partition("iter_args(")[2].partition(") ->")[0])
            return self.evaluate(regions[0])
        if name == "scf.while":
            self._enter(text)
            passed = self.evaluate(regions[0])[1:]
            inner = re.findall(rf"({_NAME}):", regions[1][0].text)
            self.values |= dict(zip(inner, passed, strict=False))
            self.evaluate(regions[1])
            return passed
        if name == "scf.if":
            condition = self.values.get(re.search(_NAME, text)[0])
            outcomes = [self.evaluate(region) for region in regions]
            return outcomes[-1] if condition is not None and not np.any(condition) else outcomes[0]
        if name in ("tt.reduce", "tt.scan"):
            return [None] * operation.results
        return [self.evaluate(region) for region in regions][-1]

    def _enter(self, carried: str) -> None:
        """Gives the names that a loop carries their values before it."""
        pairs = re.findall(rf"({_NAME}) = ({_NAME})", carried)
        self.values |= {inner: self.values.get(outer) for inner, outer in pairs}

    def _evaluate_one(self, operation: _Operation) -> Any:
        name, text = operation.name, operation.text
        kind = _types_of(text)[-1]
        if name in ("tt.load", "tt.store", "ttg.async_copy_global_to_local"):
            self._record(name, text)
            kind = re.sub(r"!tt\.ptr<(\w+)>", r"\1", kind)
        if operation.result is None:
            return None
        value = self._compute(name, text, kind)
        return np.zeros(_shape_of(kind), np.int64) if value is None and _is_integer(kind) else value

    def _compute(self, name: str, text: str, kind: str) -> Any:
        """The result, None where it is unknown."""
        if name == "arith.constant":
            return _constant(text, kind)
        if name == "tt.make_range":
            first, last = (int(re.search(rf"{word} = (\d+)", text)[1]) for word in ("start", "end"))
            return np.arange(first, last)
        if name == "tt.get_program_id":
            return np.int64(0)
        values = self._operands(text)
        if not values or any(value is None for value in values):
            return None
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](*values)
        if name == "arith.cmpi":
            return _COMPARISONS[re.match(r"\s*[su]?(eq|ne|lt|le|gt|ge)", text)[1]](*values)
        if name == "tt.addptr":
            return values[0] + values[1] * _item_size(kind)
        if name in _SAME:
            return values[0]
        if name in ("tt.splat", "tt.broadcast"):
            return np.broadcast_to(values[0], _shape_of(kind))
        if name in ("tt.expand_dims", "tt.reshape"):
            return np.reshape(values[0], _shape_of(kind))
        if name == "tt.trans":
            order = re.search(r"order = array<i32: ([\d, ]+)>", text)[1]
            return np.transpose(values[0], [int(axis) for axis in order.split(",")])
        return None

    def _record(self, name: str, text: str) -> None:
        operands, copies = self._operands(text), name == "ttg.async_copy_global_to_local"
        kind = _types_of(text)[-2 if copies else -1]
        if not operands or operands[0] is None or not _shape_of(kind):
            return
        # Behind the pointers: a mask and what replaces the masked elements; in a store what is stored comes first.
        place = 1 if name == "tt.load" else 2
        mask = operands[place] if len(operands) > place else None
        addresses = np.broadcast_to(operands[0], _shape_of(kind))
        mask = np.broadcast_to(True if mask is None else mask, addresses.shape).astype(bool)
        argument = int(addresses.flat[0]) >> _ARGUMENT_BITS
        stores = "store" if name == "tt.store" else "load"
        self.accesses.append(Access(stores, argument, _item_size(kind), _layout_of(kind), addresses, mask))


def _constant(text: str, kind: str) -> Any:
    if kind in ("true", "false"):
        return np.bool_(kind == "true")
    if not _is_integer(kind):
        return None
    number = re.search(r"dense<([^>]*)>|(-?\d+) :", text)
    written = number[1] or number[2]
    if written.startswith("["):
        return np.array([int(part) for part in written.strip("[]").split(",")])
    return np.full(_shape_of(kind), int(written) if written.lstrip("-").isdigit() else written == "true")


def read_accesses(ttgir: str, arguments: Sequence[int | None]) -> list[Access]:
    """The accesses in the order of the text. `arguments` are the kernel's, None for pointers and what is no integer."""
    aliases = dict(_ALIAS.findall(ttgir))
    lines = (_LOCATION.sub("", line).strip() for line in ttgir.splitlines())
    header, body = _find_function(_parse_block(lines)[0])
    program = _Program()
    names = re.findall(rf"({_NAME}): (\S+)", header)
    for number, ((name, kind), value) in enumerate(zip(names, arguments, strict=True)):
        is_pointer = kind.startswith("!tt.ptr")
        program.values[name] = np.int64(number << _ARGUMENT_BITS) if is_pointer else value
    with np.errstate(all="ignore"):
        program.evaluate(body)
    return [access._replace(layout=_resolve(access.layout, aliases)) for access in program.accesses]


def _find_function(operations: list[_Operation]) -> tuple[str, list[_Operation]]:
    """The header and the body of the first function."""
    for operation in operations:
        if operation.name == "tt.func":
            return operation.text, operation.regions[0]
        for region in operation.regions:
            return _find_function(region)
    raise ValueError("ttgir must have a function")


def _resolve(layout: str, aliases: dict[str, str]) -> str:
    return re.sub(r"#\w+(?![\w.])", lambda found: aliases.get(found[0], found[0]), layout)
