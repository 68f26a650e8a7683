"""What a library for macOS asks of the system: its load commands and symbols, read without a Mac.

``python -m wheels.macho FILE [LIBOMP]`` checks the extension of a wheel, or the wheel itself. LIBOMP is PyTorch's
libomp.dylib, or PyTorch's wheel: it must have the functions that the extension takes from it.
"""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

MAGIC_64, ARM64 = 0xFEEDFACF, 0x0100000C
LC_SYMTAB, LC_LOAD_DYLIB, LC_RPATH, LC_CODE_SIGNATURE, LC_BUILD_VERSION = 0x2, 0xC, 0x8000001C, 0x1D, 0x32
N_STAB, N_TYPE, N_EXT, N_UNDEFINED = 0xE0, 0x0E, 0x01, 0x0
# In place of a library's number: any library may have the symbol.
DYNAMIC_LOOKUP = 254
PLATFORM_MACOS = 1
OPENMP = "@rpath/libomp.dylib"
SYSTEM = {"/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib"}
RPATH = "@loader_path/../torch/lib"
OLDEST = (12, 0)


class Library(NamedTuple):
    """A library's processor, system, and what it takes from others; a wanted symbol has the name of its library."""

    processor: int
    platform: int
    oldest: tuple[int, int]
    signed: bool
    libraries: list[str]
    rpaths: list[str]
    wanted: dict[str, str | None]
    defined: set[str]


def read_text(data: bytes, start: int) -> str:
    """The text from ``start`` to the next zero."""
    return data[start : data.index(b"\0", start)].decode()


def read_library(data: bytes) -> Library:
    """Reads a library of one 64-bit processor."""
    magic, processor, _, _, commands, _, _, _ = struct.unpack_from("<8I", data)
    if magic != MAGIC_64:
        raise ValueError(f"the file must be a 64-bit Mach-O file of one processor, its first word is {magic:#x}")
    platform, oldest, signed, symbols = 0, (0, 0), False, (0, 0, 0)
    libraries, rpaths = [], []
    at = struct.calcsize("<8I")
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == LC_LOAD_DYLIB:
            libraries.append(read_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif command == LC_RPATH:
            rpaths.append(read_text(data, at + struct.unpack_from("<I", data, at + 8)[0]))
        elif command == LC_BUILD_VERSION:
            platform, version = struct.unpack_from("<2I", data, at + 8)
            oldest = (version >> 16, version >> 8 & 0xFF)
        elif command == LC_SYMTAB:
            symbols = struct.unpack_from("<3I", data, at + 8)
        signed = signed or command == LC_CODE_SIGNATURE
        at += size
    wanted: dict[str, str | None] = {}
    defined = set()
    table, count, names = symbols
    for i in range(count):
        name_at, kind, _, description, _ = struct.unpack_from("<IBBHQ", data, table + 16 * i)
        if kind & N_STAB or not kind & N_EXT:
            continue
        name, owner = read_text(data, names + name_at), description >> 8
        if kind & N_TYPE != N_UNDEFINED:
            defined.add(name)
        else:
            wanted[name] = libraries[owner - 1] if 0 < owner <= len(libraries) else None
    return Library(processor, platform, oldest, signed, libraries, rpaths, wanted, defined)


def find_faults(found: Library) -> list[str]:
    """What keeps an extension from loading beside PyTorch, from macOS 12 on."""
    faults = []
    if found.processor != ARM64:
        faults.append(f"it must be for arm64, its processor is {found.processor:#x}")
    if found.platform != PLATFORM_MACOS or found.oldest > OLDEST:
        faults.append(f"it must be for macOS {OLDEST} or older, got platform {found.platform}, {found.oldest}")
    if not found.signed:
        faults.append("it must be signed, or macOS ends a process that loads it")
    if OPENMP not in found.libraries or RPATH not in found.rpaths:
        faults.append(f"it must take {OPENMP} from {RPATH}, got {found.libraries}, {found.rpaths}")
    if others := set(found.libraries) - SYSTEM - {OPENMP}:
        faults.append(f"it must take nothing from {sorted(others)}")
    for name, library in found.wanted.items():
        if library is None and not name.startswith(("_Py", "__Py")):
            faults.append(f"no library has {name}")
        if name.startswith(("_omp_", "___kmpc_")) and library != OPENMP:
            faults.append(f"{name} must come from {OPENMP}, got {library}")
    return faults


def read_from(path: Path, name: str) -> bytes:
    """The file, or the member ``name`` of a wheel."""
    if path.suffix != ".whl":
        return path.read_bytes()
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(name)


def check(path: Path, libomp: Path | None = None) -> None:
    """Ends the program where the extension would not load."""
    found = read_library(read_from(path, "fastvae/_C.abi3.so"))
    faults = find_faults(found)
    if libomp:
        had = read_library(read_from(libomp, "torch/lib/libomp.dylib")).defined
        faults += [
            f"PyTorch's OpenMP lacks {name}" for name, of in found.wanted.items() if of == OPENMP and name not in had
        ]
    if faults:
        raise SystemExit("\n".join([f"{path}:", *faults]))
    print(f"{path.name}: arm64, macOS {found.oldest[0]}.{found.oldest[1]}, {', '.join(found.libraries)}")


if __name__ == "__main__":
    check(*map(Path, sys.argv[1:]))
