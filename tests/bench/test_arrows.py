"""Modules of ``bench`` import only what this order has below them."""

import ast
import importlib.util
from pathlib import Path

# From the floor up: a module imports modules of earlier lines only.
FLOORS = (
    ("environment", "gpu_figures", "memory", "rows", "task", "timing", "whole_run"),
    ("decoder", "gaussian", "roofline", "steps", "wording"),
    ("floors", "gpu_plan", "jobs", "networks", "plots", "readme"),
    ("peers", "report", "usual_steps"),
    ("ops",),
    ("registry", "tuning"),
    ("floor_table", "gpu_page", "runner"),
    ("gpu_warm", "gpu_work", "profile"),
    ("gpu_rehearsal",),
    ("__main__", "gpu_check", "test_bench"),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FOLDER = Path(importlib.util.find_spec("bench").origin).parent


def find_imports(path):
    """The modules of ``bench`` that a file imports, inside functions too."""
    package = ("bench", *path.relative_to(FOLDER).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = [part for part in base if part]
            yield from [base[1]] if len(base) > 1 else [alias.name for alias in node.names]


def test_every_module_has_its_floor():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} | {"ops"} == set(FLOOR_OF)


def test_no_module_imports_upward():
    upward = [
        f"{path.relative_to(FOLDER)} imports {name}"
        for path in FOLDER.rglob("*.py")
        for name in find_imports(path)
        if FLOOR_OF[name] >= FLOOR_OF["ops" if path.parent.name == "ops" else path.stem]
    ]
    assert not upward
