"""Runs commands under time limits, one after the other or in the background, and keeps all that they say."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment

_KEPT_LINES, _KEPT_CHARACTERS = 40, 300


@dataclass(frozen=True)
class Step:
    """A command with its time limit.

    A step in the ``background`` runs beside the next ones. A step ``alone`` begins when those in the background have
    ended.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    folder: Path
    background: bool = False
    alone: bool = False


class Running:
    """A step that has begun. ``finish`` ends it, with everything that it started."""

    def __init__(self, step: Step, variables: Mapping[str, str], log: Path) -> None:
        self.step, self._log = step, log
        self._start = time.monotonic()
        with log.open("w") as file:
            self._process = subprocess.Popen(
                step.command,
                cwd=step.folder,
                env=dict(variables),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def finish(self, limit_s: float) -> dict[str, Any]:
        """Waits until the step has run ``limit_s`` seconds at most; its record says how it ended and what it said last.

        When the limit is over, the command and everything that it started is killed.
        """
        try:
            code = self._process.wait(max(limit_s - self.seconds, 0.0))
            outcome = "ok" if code == 0 else f"failed (exit status {code})"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after its {limit_s:.0f} s"
        finally:
            self.kill()
        return {
            "name": self.step.name,
            "outcome": outcome,
            "seconds": round(self.seconds, 1),
            "output": self._read_last_lines(),
        }

    def kill(self) -> None:
        """Kills what is left of the process and its children; the command leads a group of its own."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def read_log(self) -> str:
        """All that the step has said, without places on this machine."""
        return environment.cut_paths(self._log.read_text(errors="replace"))

    def _read_last_lines(self) -> list[str]:
        lines = [line for line in map(str.rstrip, self.read_log().splitlines()) if line]
        return [line[:_KEPT_CHARACTERS] for line in lines[-_KEPT_LINES:]]


def start_step(step: Step, variables: Mapping[str, str], folder: Path) -> Running:
    """Begins ``step``; what it says goes into a file of ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return Running(step, variables, folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', step.name)}.log")
