"""Imports between the rooms of the package point one way, wherever they are written, and modules form no circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fastvae": ROOT / "fastvae", "fastvae.kernels": ROOT / "kernels"}

# What each room may import, besides itself. A room is a folder or a module at the top of the package.
ARROWS = {
    "_version": "",
    "_interrupts": "",
    "_missing": "",
    "_openmp": "",
    "structure": "",
    "precision": "",
    "reference": "structure precision",
    "rng": "backend reference",
    "graphs": "",
    "kernels": "structure",
    "backend": "_C _missing _openmp _version",
    "ops": "kernels backend rng reference precision structure",
    "likelihoods": "ops rng reference precision structure",
    "functional": "likelihoods ops",
    "sampling": "likelihoods ops backend rng reference precision structure",
    "objectives": "ops rng reference precision",
    "distributions": "functional ops reference precision structure",
    "nn": "distributions sampling likelihoods ops rng reference precision structure",
    "interop": "nn distributions reference",
    "recipes": (
        "_interrupts _version backend distributions functional likelihoods nn objectives ops precision reference rng"
        " sampling"
    ),
    "__main__": "_interrupts _version backend recipes",
    "__init__": "_interrupts _version backend distributions functional graphs likelihoods nn objectives rng sampling",
}
# Which imports of the package's own modules may stand in a function, and why.
IN_FUNCTIONS = {
    ("ops", "kernels"): "who computes on a CPU loads no Triton",
    ("interop", "interop"): "classes that derive from an optional library's are made when it is there",
    ("recipes", "recipes"): "a command loads what it runs, and optional libraries with it",
    ("__main__", "recipes"): "the same",
}


class Import(NamedTuple):
    module: str
    imported: str
    in_function: bool


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "fastvae" and parts[0] == "kernels":
                continue
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()


def imports_of(module: str, path: Path) -> Iterator[Import]:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, in_function) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            source = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*source, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield Import(module, inner if inner in MODULES or inner == "fastvae._C" else source, in_function)
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    for found in visit(ast.parse(path.read_text()), False):
        if found.imported.split(".")[0] == "fastvae":
            yield found


IMPORTS = [found for module, path in MODULES.items() for found in imports_of(module, path)]


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_its_arrows():
    assert {room_of(module) for module in MODULES} == set(ARROWS)


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_rooms_below_it(room):
    allowed = {room, *ARROWS[room].split()}
    wrong = [found for found in IMPORTS if room_of(found.module) == room and room_of(found.imported) not in allowed]
    assert wrong == []


def test_arrows_between_rooms_form_no_circle():
    assert list(TopologicalSorter({room: below.split() for room, below in ARROWS.items()}).static_order())


def test_modules_form_no_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in IMPORTS:
        graph[found.module].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_in_a_function_hides_an_arrow():
    pairs = {(room_of(found.module), room_of(found.imported)) for found in IMPORTS if found.in_function}
    assert pairs <= set(IN_FUNCTIONS)
