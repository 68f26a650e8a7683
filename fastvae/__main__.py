"""The command line, also as ``python -m fastvae``."""

from __future__ import annotations

import sys

from ._interrupts import end_command

try:
    from .recipes.cli.main import main
except KeyboardInterrupt as interrupt:
    raise end_command(interrupt) from None

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
