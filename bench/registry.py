"""The registered tasks, and the choice among them.

Every file in :mod:`bench.ops` holds the tasks of one op in ``TASKS``; adding a file adds an op.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from . import ops as op_files
from .task import DTYPES, MODES, Case, Shape, Task


def list_stems() -> list[str]:
    """The names of all ops that can be measured."""
    return sorted(module.name for module in pkgutil.iter_modules(op_files.__path__))


def load_tasks(stem: str) -> tuple[Task, ...]:
    if stem not in list_stems():
        raise ValueError(f"unknown op {stem!r}; known are {', '.join(list_stems())}")
    return tuple(importlib.import_module(f"{op_files.__name__}.{stem}").TASKS)


def find_task(case: Case) -> Task:
    for task in load_tasks(case.op):
        if (task.entry, task.variant) == (case.entry, case.variant):
            return task
    raise ValueError(f"unknown task {case.task!r}")


def select_cases(
    device: str,
    *,
    ops: Sequence[str] | None = None,
    entries: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    shapes: Sequence[Shape] | None = None,
) -> list[Case]:
    """The registered cases that the filters leave; ``shapes`` and ``dtypes`` may name unregistered ones.

    Raises:
        ValueError: a filter names something that does not exist, or nothing is left.
    """
    chosen = [task for stem in (ops or list_stems()) for task in load_tasks(stem)]
    _check_known("entry", entries, {task.entry for task in chosen})
    _check_known("variant", variants, {task.variant for task in chosen})
    _check_known("mode", modes, MODES)
    _check_known("dtype", dtypes, DTYPES)
    found = [
        Case(task.op, task.entry, task.variant, mode, shape, dtype, device)
        for task in chosen
        if (not entries or task.entry in entries) and (not variants or task.variant in variants)
        for dtype in (dtypes or task.dtypes[device])
        for shape in (shapes or task.shapes[device])
        if shape.samples is None or task.sampled
        for mode in task.modes
        if not modes or mode in modes
    ]
    if not found:
        raise ValueError("nothing to measure: no task has all of the chosen op, entry, variant, mode and shape")
    return found


def _check_known(what: str, names: Sequence[str] | None, known: Any) -> None:
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; known are {', '.join(sorted(map(repr, known)))}")
