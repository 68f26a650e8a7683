"""What the scripts in wheels/ say of a library for macOS, of the oldest tools and of the size of a wheel."""

import os
import re
import struct
from pathlib import Path

import pytest

from wheels import macho
from wheels.__main__ import MOST_BYTES, deliver
from wheels.minimums import oldest_tools

ROOT = Path(__file__).parents[1]
OPENMP, SYSTEM = macho.OPENMP, "/usr/lib/libSystem.B.dylib"
# Symbols that others have, with the number of the library.
WANTED = {"_malloc": 1, "_omp_get_max_threads": 2, "_PyList_New": macho.DYNAMIC_LOOKUP}


def text_command(command, text):
    data = text.encode() + b"\0"
    data += b"\0" * (-len(data) % 8)
    # The text's place, and for a library its date and versions.
    rest = struct.pack("<4I", 24, 0, 0, 0) if command == macho.LC_LOAD_DYLIB else struct.pack("<I", 12)
    return struct.pack("<2I", command, 8 + len(rest) + len(data)) + rest + data


def make_library(
    processor=macho.ARM64, platform=1, oldest=12 << 16, libraries=(SYSTEM, OPENMP), rpath=macho.RPATH, signed=True,
    wanted=WANTED,
):  # fmt: skip
    """The bytes of a library that defines ``_PyInit__C``."""
    commands = [text_command(macho.LC_LOAD_DYLIB, name) for name in libraries]
    commands += [text_command(macho.LC_RPATH, rpath)]
    commands += [struct.pack("<6I", macho.LC_BUILD_VERSION, 24, platform, oldest, 0, 0)]
    commands += [struct.pack("<4I", macho.LC_CODE_SIGNATURE, 16, 0, 0)] if signed else []
    names, table = b"\0", b""
    # 0xE is a symbol of a section, 0x24 one for a debugger.
    for name, kind, library in [
        ("_PyInit__C", 0xF, 0),
        ("_local", 0xE, 0),
        ("_line", 0x24, 0),
        *((name, 0x1, library) for name, library in wanted.items()),
    ]:
        table += struct.pack("<IBBHQ", len(names), kind, 0, library << 8, 0)
        names += name.encode() + b"\0"
    start = 32 + sum(map(len, commands)) + 24
    commands += [struct.pack("<6I", macho.LC_SYMTAB, 24, start, len(table) // 16, start + len(table), len(names))]
    header = struct.pack("<8I", macho.MAGIC_64, processor, 0, 6, len(commands), 0, 0, 0)
    return header + b"".join(commands) + table + names


def test_reads_a_library_for_macos():
    found = macho.read_library(make_library())
    assert found.libraries == [SYSTEM, OPENMP]
    assert found.rpaths == [macho.RPATH]
    assert found.oldest == (12, 0)
    assert found.wanted == {"_malloc": SYSTEM, "_omp_get_max_threads": OPENMP, "_PyList_New": None}
    assert found.defined == {"_PyInit__C"}
    assert macho.find_faults(found) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"processor": 0x01000007}, "must be for arm64"),
        ({"platform": 2}, "must be for macOS"),
        ({"oldest": 12 << 16 | 1 << 8}, "must be for macOS"),
        ({"signed": False}, "must be signed"),
        ({"rpath": "@loader_path"}, "must take @rpath/libomp.dylib from"),
        ({"libraries": (SYSTEM, "/opt/homebrew/lib/libomp.dylib")}, "must take nothing from .*homebrew"),
        ({"wanted": {"_mystery": macho.DYNAMIC_LOOKUP}}, "no library has _mystery"),
        ({"wanted": {"___kmpc_fork_call": 1}}, "___kmpc_fork_call must come from @rpath"),
    ],
)
def test_names_what_keeps_a_library_from_loading(change, fault):
    faults = macho.find_faults(macho.read_library(make_library(**change)))
    assert any(re.search(fault, found) for found in faults)


def test_another_file_is_refused():
    with pytest.raises(ValueError, match="must be a 64-bit Mach-O file"):
        macho.read_library(b"\x7fELF" + bytes(60))


def test_stand_in_for_openmp_has_what_the_kernels_call():
    sources = "".join(path.read_text() for path in (ROOT / "csrc").rglob("*.[ch]*"))
    called = set(re.findall(r"\bomp_\w+(?=\()", sources))
    folder = ROOT / "wheels" / "macos"
    assert called == set(re.findall(r"\bomp_\w+(?=\()", (folder / "omp.h").read_text()))
    assert {f"_{name}" for name in called} <= set(re.findall(r"\w+", (folder / "libomp.tbd").read_text()))


def test_oldest_tools():
    project = '[build-system]\nrequires = ["cmake>=3.20", "ninja"]\n'
    assert oldest_tools(project) == ["cmake==3.20.*", "ninja"]
    with pytest.raises(SystemExit, match="no line of build requirements"):
        oldest_tools("")


def test_large_wheel_is_refused(tmp_path):
    wheel, out = tmp_path / "some.whl", tmp_path / "out"
    out.mkdir()
    wheel.touch()
    os.truncate(wheel, MOST_BYTES)
    assert deliver(wheel, out).stat().st_size == MOST_BYTES
    (out / "some.whl").unlink()
    os.truncate(wheel, MOST_BYTES + 1)
    with pytest.raises(SystemExit, match="has 4000001 bytes, and at most 4000000"):
        deliver(wheel, out)
    assert not list(out.iterdir())
