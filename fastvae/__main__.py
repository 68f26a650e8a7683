"""The command line, also as ``python -m fastvae``."""

from __future__ import annotations

import sys

from .recipes.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
