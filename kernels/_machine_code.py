"""What compiled kernels use: registers and memory by their headers, instructions by their disassembly."""

from __future__ import annotations

import bisect
import itertools
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

COLUMNS = ("registers", "shared", "local", "instructions", "loads_128", "stores_128", "matrix", "warp_group")

_SASS = {
    "instructions": r"^(?!NOP)\S",
    "loads_128": r"\bLDG\S*\.128\b",
    "stores_128": r"\bSTG\S*\.128\b",
    "matrix": r"\b(?:HMMA|IMMA|DMMA|QGMMA|HGMMA|UTC\w*MMA)\b",
    "warp_group": r"\bHGMMA\b",
}
_ALLOCATED_CODE, _PROGRAM_BITS = 4, 1


class Code(NamedTuple):
    """Instructions of one kernel, and the architecture that they are for, such as ``"90a"``."""

    architecture: str
    instructions: bytes


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.MULTILINE))


def read_nvidia(compiled: Any) -> tuple[dict[str, int], Code]:
    """Registers and bytes of shared and local memory, and the code whose instructions remain to be counted."""
    from triton import knobs

    cubin = compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    usage = {
        "registers": used["REG"],
        "shared": max(used["SHARED"], compiled.metadata.shared),
        "local": used["STACK"] + used["LOCAL"],
    }
    architecture = re.search(r"^\.target sm_(\w+)", compiled.asm["ptx"], re.MULTILINE)[1]
    return usage, Code(architecture, _extract_instructions(cubin))


def _extract_instructions(cubin: bytes) -> bytes:
    """The sections of a 64-bit ELF file that hold instructions."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry_size, entries, _ = struct.unpack_from("<HHH", cubin, 58)
    sections = (struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(entries))
    return b"".join(
        cubin[start : start + size]
        for _, kind, flags, _, start, size in sections
        if kind == _PROGRAM_BITS and flags & _ALLOCATED_CODE
    )


def count_instructions(codes: Sequence[Code]) -> list[dict[str, int]]:
    """The counts of each code. One process disassembles all codes of an architecture, since its start takes longest."""
    counts: list[dict[str, int]] = [{} for _ in codes]
    for architecture in dict.fromkeys(code.architecture for code in codes):
        places = [i for i, code in enumerate(codes) if code.architecture == architecture]
        texts = _disassemble(architecture, [codes[i].instructions for i in places])
        for i, text in zip(places, texts, strict=True):
            counts[i] = {name: _count(pattern, text) for name, pattern in _SASS.items()}
    return counts


def _disassemble(architecture: str, parts: Sequence[bytes]) -> list[str]:
    """The instructions of each part, one a line, without their addresses."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(parts))
        file.flush()
        # The disassembler would look in vain for control flow from one kernel into the next.
        command = [knobs.nvidia.nvdisasm.path, "--no-dataflow", "--binary", f"SM{architecture}", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ends = list(itertools.accumulate(map(len, parts)))
    lines: list[list[str]] = [[] for _ in parts]
    for address, instruction in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*)$", said, re.MULTILINE):
        lines[bisect.bisect_right(ends, int(address, 16))].append(instruction)
    return ["\n".join(part) for part in lines]


def read_amd(compiled: Any) -> dict[str, int]:
    """All that the report says of a kernel; AMD's compiler writes it into the assembly."""
    assembly = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly).group(1))

    return {
        "registers": field("vgpr_count"),
        "shared": field("group_segment_fixed_size"),
        "local": field("private_segment_fixed_size"),
        "instructions": _count(r"^\t(?:v|s|ds|global|buffer|flat|scratch)_", assembly),
        "loads_128": _count(r"\b(?:global|buffer)_load_dwordx4\b", assembly),
        "stores_128": _count(r"\b(?:global|buffer)_store_dwordx4\b", assembly),
        "matrix": _count(r"\bv_mfma_", assembly),
        "warp_group": 0,
    }
