"""Files that a person puts into a folder, as nothing can be fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import RecipeError
from .mnist import cache_folder

__all__ = ["find_file"]


def find_file(name: str, what: str, page: str, *, endings: Sequence[str] = ("",)) -> Path:
    """A file in the folder ``$FASTVAE_DATA`` or in the user's cache.

    Args:
        name: of the file.
        what: names the data in errors.
        page: where a person finds the file.
        endings: what may follow the name, in this order.

    Raises:
        RecipeError: there is none; it says where the file belongs.
    """
    given, cache = os.environ.get("FASTVAE_DATA"), cache_folder()
    if given and not Path(given).is_dir():
        raise RecipeError(f"FASTVAE_DATA must name a folder; {given!r} is none")
    for folder in [Path(given), cache] if given else [cache]:
        for ending in endings:
            if (path := folder / (name + ending)).exists():
                return path
    where = f"and none in $FASTVAE_DATA, {given}" if given else "and $FASTVAE_DATA is not set"
    raise RecipeError(
        f"{what} was not found: there is no {name} in {cache} {where}. What to do: download it from {page} and put it "
        f"into {given or cache}"
    )
