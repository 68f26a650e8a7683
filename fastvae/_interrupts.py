"""An interrupt while the modules of the command line load ends it with one line, as one later does."""

from __future__ import annotations

import os
import sys

__all__ = ["STOPPED", "end_command"]

# The exit status of what SIGINT ended.
STOPPED = 130


def end_command(interrupt: KeyboardInterrupt) -> BaseException:
    """What to raise in place of an interrupt: the end of the command line, or in other programs the interrupt."""
    is_module = sys.argv[0] == "-m" and "fastvae" in sys.orig_argv
    if not is_module and os.path.basename(sys.argv[0]) != "fastvae":
        return interrupt
    print("fastvae: error: stopped by SIGINT", file=sys.stderr, flush=True)
    return SystemExit(STOPPED)
