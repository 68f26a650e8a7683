"""Names of cases, and what runs them: ``KIND.TARGET.NUMBER``, of which the number is the seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType

from . import files, operators, surface

KINDS: dict[str, tuple[ModuleType, list[str]]] = {
    "surface": (surface, list(surface.TARGETS)),
    "operator": (operators, sorted(operators.SOURCES)),
    "file": (files, list(files.TARGETS)),
}
# How often the kinds take turns.
TURNS = ("surface", "operator", "operator", "surface", "operator", "surface", "file", "operator", "surface", "operator")


def run(case: str) -> None:
    """Runs one case.

    Raises:
        FuzzError: it does not do what is promised.
        ValueError: there is no such case.
    """
    kind, target, number = parse(case)
    module, _ = KINDS[kind]
    module.run(target, f"{target}/{number}")


def parse(case: str) -> tuple[str, str, int]:
    kind, _, rest = case.partition(".")
    target, _, number = rest.rpartition(".")
    if kind not in KINDS or target not in KINDS[kind][1] or not number.isdecimal():
        kinds = ", ".join(KINDS)
        raise ValueError(
            f"a case is KIND.TARGET.NUMBER, such as surface.affine_flow.7, KIND one of {kinds}; got {case!r}"
        )
    return kind, target, int(number)


def number_cases(seed: int, only: str = "") -> Iterator[str]:
    """Cases without end, in turns of all targets; ``only`` those that begin so."""
    turns = {kind: itertools.cycle(targets) for kind, (_, targets) in KINDS.items()}
    counts: dict[str, int] = {}
    all_names = [f"{kind}.{target}." for kind, (_, targets) in KINDS.items() for target in targets]
    if not any(name.startswith(only) for name in all_names):
        raise ValueError(f"no case begins with {only!r}")
    for kind in itertools.cycle(TURNS):
        name = f"{kind}.{next(turns[kind])}"
        counts[name] = counts.get(name, -1) + 1
        if f"{name}.".startswith(only):
            yield f"{name}.{seed + counts[name]}"
