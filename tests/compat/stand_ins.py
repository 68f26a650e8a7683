"""Libraries in place of CUDA's, so that a PyTorch built for GPUs imports on a machine that has none of them.

``python stand_ins.py FOLDER`` looks at PyTorch's folder of libraries, and adds each library that is missing there and
on this machine. Their functions have the names and versions that PyTorch asks for. Each of them answers that there is
no device.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

# The number of cudaErrorNoDevice and of CUDA_ERROR_NO_DEVICE.
NO_DEVICE = 100


class Library(NamedTuple):
    """What the dynamic section of a library says; versions are (name, library that has it)."""

    needed: set[str]
    wanted: set[str]
    defined: set[str]
    versions: dict[str, str]


def read_library(path: Path) -> Library:
    """Reads a library with binutils' readelf. A wanted symbol is ``name`` or ``name@version``."""
    arguments = ["readelf", "--wide", "--dynamic", "--dyn-syms", "--version-info", str(path)]
    text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+?)\]", text))
    wanted, defined = set(), set()
    # Number: value size type binding visibility section name, and a version's number in brackets.
    for binding, section, name in re.findall(r"^ +\d+: +\w+ +\w+ +\w+ +(\w+) +\w+ +(\w+) +(\S+)", text, re.MULTILINE):
        if section != "UND":
            defined.add(name.split("@")[0])
        elif binding == "GLOBAL":
            wanted.add(name)
    versions = {}
    for part in re.split(r"(?=Version: 1  File: )", text)[1:]:
        file = part.split()[3]
        versions |= dict.fromkeys(re.findall(r"Name: (\S+)  Flags", part), file)
    return Library(needed, wanted, defined, versions)


def is_installed(name: str) -> bool:
    """Whether the loader finds the library on this machine."""
    command = f"import ctypes; ctypes.CDLL({name!r})"
    return subprocess.run([sys.executable, "-c", command], capture_output=True).returncode == 0


def write_stand_in(folder: Path, name: str, symbols: dict[str, set[str]]) -> None:
    """Compiles one library; ``symbols`` are those of each version, and those of the version '' have none."""
    lines = []
    for symbol in sorted(set().union(*symbols.values())):
        is_text = symbol.endswith(("String", "Name"))
        answer = (
            'const char* {}(void) {{ return "no device"; }}'
            if is_text
            else f"long {{}}(void) {{{{ return {NO_DEVICE}; }}}}"
        )
        lines.append(answer.format(symbol))
    source = folder / f"{name}.c"
    script = folder / f"{name}.map"
    source.write_text("\n".join(lines) + "\n")
    named = {version: found for version, found in symbols.items() if version}
    script.write_text(
        "".join(f"{version} {{ global: {'; '.join(sorted(found))}; }};\n" for version, found in named.items())
    )
    arguments = [
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-nostdlib",
        f"-Wl,-soname,{name}",
        "-o",
        str(folder / name),
        str(source),
    ]
    subprocess.run(arguments + ([f"-Wl,--version-script={script}"] if named else []), check=True)
    source.unlink()
    script.unlink()


def add_stand_ins(folder: Path) -> list[str]:
    """Adds what is missing in ``folder``; returns the names of the libraries that it adds."""
    ours = {path.name: read_library(path) for path in folder.glob("*.so*")}
    missing = {name for found in ours.values() for name in found.needed if name not in ours and not is_installed(name)}
    if not missing:
        return []
    symbols: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in missing}
    defined = set().union(*(found.defined for found in ours.values()))
    loose = set()
    for found in ours.values():
        for wanted in found.wanted:
            name, _, version = wanted.partition("@")
            version = version.strip("@")
            if not version:
                loose.add(name)
            elif (owner := found.versions.get(version)) in missing:
                # A version that is named after its library is what the linker makes of a library without versions.
                symbols[owner][version].add(name)
    # The loader looks for symbols without a version in all libraries.
    first = min(missing)
    symbols[first][""] |= loose - defined - set().union(*(s for v in symbols.values() for s in v.values()))
    # Those of Python are the interpreter's.
    symbols[first][""] -= {name for name in symbols[first][""] if re.match("_?Py[A-Z_]", name)}
    for name, found in symbols.items():
        write_stand_in(folder, name, found)
    return sorted(missing)


if __name__ == "__main__":
    print("stand-ins:", *add_stand_ins(Path(sys.argv[1])))
