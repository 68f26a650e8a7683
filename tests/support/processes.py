"""Runs modules of this folder in processes of their own: ``python -m tests.support.<module>``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start_module(module: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts the module where it finds every package that this process finds; ``environment`` adds variables."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | (environment or {})
    command = [sys.executable, "-m", f"tests.support.{module}", *map(str, arguments)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=variables, **options)


def run_module(
    module: str, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the module to its end, whatever its exit status is."""
    process = start_module(module, *arguments, environment=environment)
    said, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)
