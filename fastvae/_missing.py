"""Why a part that an installation may lack is missing, and what to do about it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from importlib.abc import InspectLoader
from pathlib import Path

# Earlier compilers refuse some of the kernels: a constant in place of a tensor's index, a return inside a loop.
OLDEST_TRITON = (3, 4)


def why_no_extension(error: ImportError) -> str:
    """Why the C++ extension cannot be imported, and the way out."""
    folder = Path(__file__).parent
    # The folder of the source hides what is installed from a Python that is started there.
    install = "run `pip install .` in the source of fastvae and start Python in another folder, or `pip install -e .`"
    spec = importlib.util.find_spec(f"{__package__}._C")
    if spec is not None:
        return f"the C++ extension {spec.origin} cannot be loaded ({error}): to build it again, {install}"
    ours = [f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    foreign = [path.name for path in folder.glob("_C.*") if path.suffix in (".so", ".pyd") and path.name not in ours]
    if foreign:
        return f"the C++ extension in {folder} is for another Python, {foreign[0]}, not {ours[0]}: {install}"
    return f"the C++ extension is not built in {folder}: {install}"


def why_no_triton() -> str | None:
    """Why the installed Triton does not compile the kernels, by its source: importing it would take half a second."""
    spec = importlib.util.find_spec("triton")
    if spec is None:
        return "triton is not installed"
    source = spec.loader.get_source("triton") if isinstance(spec.loader, InspectLoader) else None
    found = re.search(r"^__version__ = ['\"]((\d+)\.(\d+)[^'\"]*)", source or "", re.MULTILINE)
    if found and (int(found[2]), int(found[3])) < OLDEST_TRITON:
        return f"triton {found[1]} is installed, and the kernels need {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} or newer"
    return None
