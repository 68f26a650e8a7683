"""How many programs of a kernel a multiprocessor runs at once, and in how many waves a device runs them all."""

from __future__ import annotations

from typing import NamedTuple

_WARP, _SECTIONS, _SECTION_REGISTERS = 32, 4, 16384
# Registers are given to warps, and shared memory to programs, in units; a program's own system memory comes on top.
_REGISTER_UNIT, _SHARED_UNIT, _SHARED_SYSTEM = 256, 128, 1024
_MOST_WARPS, _MOST_PROGRAMS = 64, 32


class Device(NamedTuple):
    """Multiprocessors of a device, and bytes of shared memory of each."""

    multiprocessors: int
    shared: int


# A100, H100 and B200.
DEVICES = {"sm_80": Device(108, 164 << 10), "sm_90": Device(132, 228 << 10), "sm_100": Device(148, 228 << 10)}


def count_programs(target: str, registers: int, shared: int, warps: int) -> int | None:
    """Programs of a multiprocessor at once; None for a target without figures."""
    if target not in DEVICES:
        return None
    per_warp = _round_up(registers * _WARP, _REGISTER_UNIT)
    by_registers = _SECTIONS * (_SECTION_REGISTERS // per_warp) // warps
    by_shared = DEVICES[target].shared // _round_up(shared + _SHARED_SYSTEM, _SHARED_UNIT)
    return min(by_registers, by_shared, _MOST_WARPS // warps, _MOST_PROGRAMS)


def count_waves(target: str, programs: int, at_once: int | None) -> float | None:
    """How often the device is filled with programs; None where it is unknown how many run at once."""
    return round(programs / (DEVICES[target].multiprocessors * at_once), 2) if at_once else None


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
