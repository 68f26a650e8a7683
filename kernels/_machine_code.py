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

from ._control_flow import Instruction, access_bytes, count_loops

_SASS = {
    "matrix": r"\b(?:HMMA|IMMA|DMMA|QGMMA|HGMMA|UTC\w*MMA)\b",
    "warp_group": r"\bHGMMA\b",
}
_ALLOCATED_CODE, _PROGRAM_BITS = 4, 1
# What the assembler says where it makes each product of a warp group wait for the one before.
_SERIALISED = "C7515"


class Code(NamedTuple):
    """Instructions of one kernel, and the architecture that they are for, such as ``"90a"``."""

    architecture: str
    instructions: bytes


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text, re.MULTILINE))


def read_nvidia(compiled: Any) -> tuple[dict[str, Any], Code]:
    """Registers and bytes of shared and local memory, and the code whose instructions remain to be counted."""
    from triton import knobs

    cubin, ptx = compiled.asm["cubin"], compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}
    architecture = re.search(r"^\.target sm_(\w+)", ptx, re.MULTILINE)[1]
    usage = {
        "registers": used["REG"],
        "shared": max(used["SHARED"], compiled.metadata.shared),
        "local": used["STACK"] + used["LOCAL"],
        "serialised": _is_serialised(ptx, architecture),
    }
    return usage, Code(architecture, _extract_instructions(cubin))


def _is_serialised(ptx: str, architecture: str) -> bool:
    """Whether products of a warp group wait for one another: Triton drops what the assembler says of it."""
    from triton import knobs

    if "wgmma.mma_async" not in ptx:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [knobs.nvidia.ptxas.path, f"--gpu-name=sm_{architecture}", file.name, "-o", "/dev/null"]
        return _SERIALISED in subprocess.run(command, check=True, capture_output=True, text=True).stderr


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


def count_instructions(codes: Sequence[Code]) -> list[dict[str, Any]]:
    """The counts of each code. One process disassembles all codes of an architecture, since its start takes longest."""
    counts: list[dict[str, Any]] = [{} for _ in codes]
    for architecture in dict.fromkeys(code.architecture for code in codes):
        places = [i for i, code in enumerate(codes) if code.architecture == architecture]
        disassembled = _disassemble(architecture, [codes[i].instructions for i in places])
        for i, instructions in zip(places, disassembled, strict=True):
            counts[i] = _count_one(instructions)
    return counts


def _count_one(code: Sequence[Instruction]) -> dict[str, Any]:
    text = "\n".join(instruction.text for instruction in code)
    loads = [i for i in code if re.search(r"\bLDG(STS)?\b", i.text)]
    stores = [i for i in code if re.search(r"\bSTG\b", i.text)]
    return {
        "instructions": sum(not instruction.text.startswith("NOP") for instruction in code),
        "loads_128": access_bytes(loads).count(16),
        "stores_128": access_bytes(stores).count(16),
        **{name: _count(pattern, text) for name, pattern in _SASS.items()},
        **count_loops(code),
    }


def _disassemble(architecture: str, parts: Sequence[bytes]) -> list[list[Instruction]]:
    """The instructions of each part. Addresses, also those in jumps, count from the start of the first part."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(b"".join(parts))
        file.flush()
        # The disassembler would look in vain for control flow from one kernel into the next.
        command = [knobs.nvidia.nvdisasm.path, "--no-dataflow", "--binary", f"SM{architecture}", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    ends = list(itertools.accumulate(map(len, parts)))
    codes: list[list[Instruction]] = [[] for _ in parts]
    for written, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(\S.*)$", said, re.MULTILINE):
        address = int(written, 16)
        codes[bisect.bisect_right(ends, address)].append(Instruction(address, text))
    return codes


def read_amd(compiled: Any) -> dict[str, Any]:
    """What the report says of a kernel; AMD's compiler writes it into the assembly."""
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
