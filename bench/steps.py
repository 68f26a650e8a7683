"""Runs commands one after the other under time limits, and keeps what each said last."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment

_KEPT_LINES, _KEPT_CHARACTERS = 40, 300


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    limit_s: float
    folder: Path


def run_step(step: Step, limit_s: float, variables: Mapping[str, str]) -> dict[str, Any]:
    """Runs ``step``; its record says how it ended, how long it took and what its last lines were.

    When the limit is over, the command and everything that it started is killed.
    """
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            step.command,
            cwd=step.folder,
            env=dict(variables),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            outcome = "ok" if code == 0 else f"failed (exit status {code})"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after its {limit_s:.0f} s"
        finally:
            _end(process)
        log.seek(0)
        lines = [line for line in map(str.rstrip, log.readlines()) if line]
    said = [environment.cut_paths(line)[:_KEPT_CHARACTERS] for line in lines[-_KEPT_LINES:]]
    return {
        "name": step.name,
        "outcome": outcome,
        "seconds": round(time.monotonic() - start, 1),
        "output": said,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the process and its children; the command leads a group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
