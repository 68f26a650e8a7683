"""What the AOT report reads from TTGIR and machine code, on texts small enough to count by hand."""

import pytest

from fastvae.kernels._control_flow import Instruction, access_bytes, count_loops
from fastvae.kernels._layouts import measure_request
from fastvae.kernels._multiprocessors import count_programs, count_waves
from fastvae.kernels._ttgir import read_accesses

TTGIR = """
{aliases}
module attributes {{"ttg.num-warps" = 1 : i32}} {{
  tt.func public @kernel(%x_ptr: !tt.ptr<{dtype}> {{tt.divisibility = 16 : i32}} loc("x_ptr"(#loc)), %n: i32) {{
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %stride = arith.constant dense<{stride}> : tensor<{rows}x1xi32, #b>
    %0 = tt.make_range {{end = {rows} : i32, start = 0 : i32}} : tensor<{rows}xi32, {of_rows}>
    %1 = tt.expand_dims %0 {{axis = 1 : i32}} : tensor<{rows}xi32, {of_rows}> -> tensor<{rows}x1xi32, #b>
    %2 = arith.muli %1, %stride : tensor<{rows}x1xi32, #b>
    %3 = tt.make_range {{end = {columns} : i32, start = 0 : i32}} : tensor<{columns}xi32, {of_columns}>
    %4 = tt.expand_dims %3 {{axis = 0 : i32}} : tensor<{columns}xi32, {of_columns}> -> tensor<1x{columns}xi32, #b>
    %5 = tt.broadcast %2 : tensor<{rows}x1xi32, #b> -> tensor<{rows}x{columns}xi32, #b>
    %6 = tt.broadcast %4 : tensor<1x{columns}xi32, #b> -> tensor<{rows}x{columns}xi32, #b>
    %7 = arith.addi %5, %6 : tensor<{rows}x{columns}xi32, #b>
    %8 = tt.splat %x_ptr : !tt.ptr<{dtype}> -> tensor<{rows}x{columns}x!tt.ptr<{dtype}>, #b>
    %9 = tt.splat %n : i32 -> tensor<{rows}x{columns}xi32, #b>
    %10 = arith.cmpi slt, %6, %9 : tensor<{rows}x{columns}xi32, #b>
    %11 = scf.for %i = %c0 to %n step %c1 iter_args(%at = %7) -> (tensor<{rows}x{columns}xi32, #b>) : i32 {{
      %12 = tt.addptr %8, %at : tensor<{rows}x{columns}x!tt.ptr<{dtype}>, #b>, tensor<{rows}x{columns}xi32, #b>
      %13 = tt.load %12, %10 : tensor<{rows}x{columns}x!tt.ptr<{dtype}>, #b>
      scf.yield %at : tensor<{rows}x{columns}xi32, #b>
    }}
    tt.return
  }}
}}
"""


def request_of(blocked: str, dtype: str, rows: int, columns: int, stride: int, n: int | None = None):
    text = TTGIR.format(
        aliases=f"#b = #ttg.blocked<{{{blocked}}}>", dtype=dtype, rows=rows, columns=columns, stride=stride,
        of_rows="#ttg.slice<{dim = 1, parent = #b}>", of_columns="#ttg.slice<{dim = 0, parent = #b}>",
    )  # fmt: skip
    (access,) = read_accesses(text, [None, columns if n is None else n])
    return access, measure_request(access)


BY_ROW = "sizePerThread = [{high}, {wide}], threadsPerWarp = [1, 32], warpsPerCTA = [1, 1], order = [1, 0]"
BY_COLUMN = "sizePerThread = [1, 1], threadsPerWarp = [8, 4], warpsPerCTA = [1, 1], order = [0, 1]"


@pytest.mark.parametrize(
    ("layout", "dtype", "stride", "expected"),
    [
        (BY_ROW.format(high=1, wide=4), "f32", 128, (16, 16, 16)),
        (BY_ROW.format(high=2, wide=4), "f32", 128, (16, 16, 16)),
        (BY_ROW.format(high=1, wide=8), "bf16", 256, (16, 16, 16)),
        (BY_ROW.format(high=1, wide=1), "f32", 128, (4, 4, 4)),
        (BY_ROW.format(high=1, wide=1), "bf16", 128, (2, 2, 2)),
        # Eight rows of four neighbours each: a sector for every row, where four would hold the bytes.
        (BY_COLUMN, "f32", 128, (4, 8, 4)),
    ],
)
def test_requests(layout, dtype, stride, expected):
    access, request = request_of(layout, dtype, 8, 256, stride)
    assert (access.kind, access.argument, access.item) == ("load", 0, 4 if dtype == "f32" else 2)
    assert request == expected


def test_elements_that_are_not_aligned_take_an_access_each():
    _, request = request_of(BY_ROW.format(high=1, wide=4), "f32", 8, 256, 129)
    assert request.bytes == 4
    assert request.sectors >= 4 * request.least


def test_threads_that_are_masked_read_nothing():
    _, request = request_of(BY_ROW.format(high=1, wide=4), "f32", 8, 128, 128, n=16)
    assert request == (16, 2, 2)


def test_layout_by_bases():
    lanes = "[[0, 4], [0, 8], [0, 16], [1, 0], [2, 0]]"
    layout = f"#ttg.linear<{{register = [[0, 1], [0, 2]], lane = {lanes}, warp = [], block = []}}>"
    access, _ = request_of(BY_ROW.format(high=1, wide=4), "f32", 4, 32, 128)
    assert measure_request(access._replace(layout=layout)) == (16, 16, 16)


def test_layout_of_products_is_left_out():
    access, _ = request_of(BY_ROW.format(high=1, wide=4), "f32", 8, 128, 128)
    assert measure_request(access._replace(layout="#ttg.nvidia_mma<{versionMajor = 3}>")) is None


LOOPS = """
LDG.E R0, desc[UR4][R2.64]
BAR.SYNC.DEFER_BLOCKING 0x0
@P0 BRA 0x90
LDG.E.128 R4, desc[UR4][R2.64]
CALL.REL.NOINC 0xb0
@!P1 BRA 0x30
STG.E.U16 desc[UR4][R2.64], R4
@P2 BRA 0x10
BAR.SYNC.DEFER_BLOCKING 0x0
EXIT
BRA 0xa0
I2F.U64.RP R8, R8
RET.REL.NODEC R2 0x0
"""


def code_of(text: str) -> list[Instruction]:
    return [Instruction(16 * number, line) for number, line in enumerate(text.strip().splitlines())]


def test_loops():
    """The inner loop loads and divides, the outer one waits and stores."""
    counts = count_loops(code_of(LOOPS))
    assert counts == {
        "loop": 3, "per_16_bytes": 3.0, "bytes": 7.3, "calls": 1, "barriers": 1, "divisions": 1,
    }  # fmt: skip


def test_code_without_loops():
    counts = count_loops(code_of("LDG.E R0, desc[UR4][R2.64]\nSTG.E [R2], R0\nEXIT\nBRA 0x30"))
    assert (counts["loop"], counts["per_16_bytes"]) == (0, 8.0)


def test_bytes_of_accesses():
    text = "LDG.E.LTC128B.64 R0\n@P0 LDGSTS.E.BYPASS.LTC128B.128 [R1]\nSTG.E.U8 [R2]\nLDS.128 R4\nLDG.E R1"
    assert access_bytes(code_of(text)) == [8, 16, 1, 4]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [
        (32, 0, 1, 32),  # the most programs
        (32, 0, 4, 16),  # the most warps
        (128, 0, 8, 2),
        (129, 0, 8, 1),
        (255, 0, 4, 2),
        (32, 113 << 10, 4, 2),
        (32, 114 << 10, 4, 1),
    ],
)
def test_programs_of_a_multiprocessor(registers, shared, warps, expected):
    assert count_programs("sm_90", registers, shared, warps) == expected


def test_waves():
    assert count_waves("sm_90", 396, 2) == 1.5
    assert count_programs("gfx942", 32, 0, 4) is None
    assert count_waves("gfx942", 396, None) is None
