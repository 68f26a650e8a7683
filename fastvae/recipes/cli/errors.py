"""Errors in one line, for the person at the command line."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from ..errors import RecipeError

__all__ = ["TRACEBACK", "explain", "fail", "refuse"]

TRACEBACK = "FASTVAE_TRACEBACK"


def refuse(prog: str, message: str) -> NoReturn:
    """Ends the program: the arguments do not fit."""
    print(f"{prog}: error: {to_line(message)}; {prog} --help says more", file=sys.stderr)
    raise SystemExit(2)


def explain(error: Exception) -> str:
    """What the person at the command line reads of an error."""
    said = str(error)
    if isinstance(error, RecipeError):
        return said
    if isinstance(error, MemoryError) or "allocate memory" in said:
        return f"there is not enough memory: choose smaller sizes or batches ({said or 'MemoryError'})"
    if isinstance(error, BrokenPipeError):
        # Python would try to write the rest at its end, and complain.
        sys.stdout = open(os.devnull, "w")
        return "the output was closed before all of it was written"
    if isinstance(error, OSError):
        said = error.strerror or said
        return f"{error.filename}: {said}" if error.filename is not None else f"reading or writing failed: {said}"
    # Values that do not fit, and implementations that cannot run, explain themselves.
    if type(error) in (RuntimeError, TypeError, ValueError) and said:
        return said
    return f"unexpected {type(error).__name__}: {said}; {TRACEBACK}=1 shows where: please report it"


def fail(message: str) -> int:
    print(f"fastvae: error: {to_line(message)}", file=sys.stderr)
    return 1


def to_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())
