"""The error that a person at the command line can mend."""

from __future__ import annotations

__all__ = ["RecipeError"]


class RecipeError(RuntimeError):
    """An error that the person at the command line can mend, with a message that says how."""
