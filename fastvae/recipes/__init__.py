"""Whole systems, trained end to end: the data, the model, the training and the pictures.

These modules need the extra packages of ``pip install "fastvae-kernels[train]"``; nothing else in the library
does.
"""

__all__ = ["RecipeError"]


class RecipeError(RuntimeError):
    """An error that the person at the command line can mend, with a message that says how."""
