"""Configurations out of TOML and JSON files."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import RecipeError

__all__ = ["read_config_file"]


def read_config_file(path: Path, recipe: str, configs: Sequence[type]) -> dict[str, Any]:
    """The values that a file sets, by field of the dataclasses ``configs``.

    Its keys are names of fields, at the top or in tables, whatever those are called; a key ``recipe`` must name the
    recipe. The ``config.json`` that a run writes is such a file.

    Args:
        path: ends in ``.toml`` or ``.json``.
        recipe: name of the recipe.
        configs: dataclasses whose fields have defaults and differ in name.

    Raises:
        RecipeError: the file cannot be read, is for another recipe, sets what is no field or sets it twice, or a
            value is of another type than the field's default.
    """
    defaults = {field.name: field.default for config in configs for field in fields(config)}
    values: dict[str, Any] = {}
    for name, value in _settings(_parse(path)):
        if name == "recipe":
            if value != recipe:
                raise RecipeError(f"{path} is for the recipe {value!r}, not for {recipe!r}")
            continue
        if name not in defaults:
            raise RecipeError(f"{path}: there is no {name!r}; it must be one of {', '.join(sorted(defaults))}")
        if name in values:
            raise RecipeError(f"{path} sets {name!r} twice")
        values[name] = _of_type(value, defaults[name], f"{path}: {name}")
    return values


def _parse(path: Path) -> dict[str, Any]:
    parse: Any = json.loads
    if path.suffix == ".toml":
        try:
            parse = importlib.import_module("tomllib").loads
        except ModuleNotFoundError:
            raise RecipeError(f"{path}: TOML needs Python 3.11 or later; write the configuration as JSON") from None
    elif path.suffix != ".json":
        raise RecipeError(f"the configuration file must end in .toml or .json, got {path}")
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a table of names and values, got {type(content).__name__}")
    return content


def _settings(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _settings(value)
        else:
            yield name, value


def _of_type(value: Any, default: Any, what: str) -> Any:
    if isinstance(default, tuple):
        if not isinstance(value, list) or not all(type(entry) is type(default[0]) for entry in value):
            raise RecipeError(f"{what} must be a list of {type(default[0]).__name__}, got {value!r}")
        return tuple(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        raise RecipeError(f"{what} must be of type {type(default).__name__}, got {value!r}")
    if isinstance(value, float) and math.isnan(value):
        raise RecipeError(f"{what} must be a number, got {value!r}")
    return value
