"""Settings out of TOML and JSON files."""

from __future__ import annotations

import difflib
import importlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..files import read_bounded

__all__ = ["read_settings_file"]

MOST_BYTES = 1 << 20


def read_settings_file(path: Path, name: str, settings: Sequence[type]) -> dict[str, Any]:
    """The values that a file sets, by field of the dataclasses ``settings``.

    Its keys are names of fields, at the top or in tables, whatever those are called; a key ``recipe`` must name the
    system. The ``config.json`` that a run writes is such a file.

    Args:
        path: ends in ``.toml`` or ``.json``.
        name: of the system.
        settings: dataclasses whose fields have defaults and differ in name.

    Raises:
        RecipeError: the file cannot be read, is for another system, sets what is no field or sets it twice, or a
            value is of another type than the field's default or not finite.
    """
    defaults = {field.name: field.default for part in settings for field in fields(part)}
    values: dict[str, Any] = {}
    for key, value in _list_settings(_parse(path)):
        if key == "recipe":
            if value != name:
                raise RecipeError(f"{path} is for the recipe {value!r}, not for {name!r}")
            continue
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, 1)
            raise RecipeError(
                f"{path}: there is no {key!r}; it must be one of {', '.join(sorted(defaults))}"
                + (f"; the nearest is {near[0]!r}" if near else "")
            )
        if key in values:
            raise RecipeError(f"{path} sets {key!r} twice")
        values[key] = _to_type(value, defaults[key], f"{path}: {key}")
    return values


def _parse(path: Path) -> dict[str, Any]:
    parse: Any = _parse_json
    if path.suffix == ".toml":
        try:
            parse = importlib.import_module("tomllib").loads
        except ModuleNotFoundError:
            raise RecipeError(f"{path}: TOML needs Python 3.11 or later; write the configuration as JSON") from None
    elif path.suffix != ".json":
        raise RecipeError(f"the configuration file must end in .toml or .json, got {path}")
    kind = path.suffix[1:].upper()
    try:
        content = parse(read_bounded(path, MOST_BYTES, kind).decode())
    except ValueError as error:
        raise RecipeError(f"{path} cannot be read as {kind}: {error}") from None
    except RecursionError:
        raise RecipeError(f"{path} cannot be read as {kind}: it nests too many tables or lists") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a table of names and values, got {type(content).__name__}")
    return content


def _parse_json(text: str) -> Any:
    """As ``json.loads``, which takes the last value of a key that comes twice."""
    return json.loads(text, object_pairs_hook=_make_table)


def _make_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it sets {twice!r} twice in one table")
    return table


def _list_settings(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _list_settings(value)
        else:
            yield name, value


def _to_type(value: Any, default: Any, what: str) -> Any:
    if isinstance(default, tuple):
        # An empty one is of sizes.
        kind = type(default[0]) if default else int
        if not isinstance(value, list) or not all(type(entry) is kind for entry in value):
            raise RecipeError(f"{what} must be a list of {kind.__name__}, got {value!r}")
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise RecipeError(f"{what} must be of type {type(default).__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{what} must be a {'' if math.isnan(value) else 'finite '}number, got {value!r}")
    return value
