"""Configuration files: what they may say, and what is said of those that do not."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastvae.recipes import RecipeError
from fastvae.recipes.cli.settings_file import read_settings_file


@dataclass(frozen=True)
class Sizes:
    depth: int = 2
    maps: tuple[int, ...] = (16, 32)


@dataclass(frozen=True)
class Rates:
    rate: float = 0.1
    kind: str = "a"
    fast: bool = False


def read(path):
    return read_settings_file(path, "mine", [Sizes, Rates])


def write(folder, content):
    path = folder / "settings.json"
    path.write_text(json.dumps(content))
    return path


def test_tables_and_plain_keys(tmp_path):
    path = write(tmp_path, {"recipe": "mine", "depth": 3, "b": {"rate": 1, "maps": [8]}, "c": {"fast": True}})
    assert read(path) == {"depth": 3, "rate": 1.0, "maps": (8,), "fast": True}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_toml(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('kind = "b"\n[sizes]\nmaps = [1, 2]\n')
    assert read(path) == {"kind": "b", "maps": (1, 2)}


def test_toml_without_a_reader(tmp_path, monkeypatch):
    def refuse_import(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", refuse_import)
    with pytest.raises(RecipeError, match=r"settings.toml: TOML needs Python 3.11 or later"):
        read(tmp_path / "settings.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"depht": 1}, "there is no 'depht'; it must be one of depth, fast, kind, maps, rate"),
        ({"depth": "8"}, "depth must be of type int, got '8'"),
        ({"depth": True}, "depth must be of type int, got True"),
        ({"depth": 1.5}, "depth must be of type int, got 1.5"),
        ({"maps": 3}, "maps must be a list of int, got 3"),
        ({"maps": [1, "x"]}, r"maps must be a list of int, got \[1, 'x'\]"),
        ({"rate": None}, "rate must be of type float, got None"),
        ({"rate": float("nan")}, "rate must be a number, got nan"),
        ({"fast": 1}, "fast must be of type bool, got 1"),
        ({"recipe": "other"}, "is for the recipe 'other', not for 'mine'"),
        ({"depth": 1, "a": {"depth": 1}}, "sets 'depth' twice"),
        ([1], "must hold a table of names and values, got list"),
    ],
)
def test_bad_content(content, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        read(write(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(RecipeError, match=r"must end in .toml or .json, got settings.yaml"):
        read(Path("settings.yaml"))
    with pytest.raises(RecipeError, match=r"absent.json cannot be read as JSON"):
        read(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RecipeError, match=r"broken.json cannot be read as JSON"):
        read(tmp_path / "broken.json")
