"""Whole systems, trained end to end: the data, the model, the training and the pictures.

These modules need the extra packages of ``pip install "fastvae-kernels[train]"``; nothing else in the library
does. ``README.md`` beside this file lists the systems and says how to add one.
"""

from .errors import RecipeError

__all__ = ["RecipeError"]
