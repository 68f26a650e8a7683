"""``python -m bench --tune``: the kernels with other tiles than their rules choose, in turns with the rules'.

An alternative sets constants of kernel modules while a call launches. Results go to the rows of the run as providers of
their own, named after what they set; one that does not compile, or gives a wrong result, leaves a row that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from . import report, results
from .registry import Case, Function, Peer, Task

# Rows, columns, inner size, warps, stages.
_HALF = (
    (128, 128, 32, 8, 3), (128, 128, 32, 8, 4), (128, 128, 32, 8, 5), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3),
    (128, 256, 32, 8, 3), (128, 256, 64, 8, 3), (256, 128, 32, 8, 3), (128, 64, 64, 4, 4), (64, 128, 64, 4, 4),
    (64, 64, 64, 4, 4),
)  # fmt: skip
_SINGLE = (
    (128, 128, 16, 8, 4), (128, 128, 32, 8, 3), (128, 64, 32, 4, 4), (128, 64, 32, 8, 4), (64, 128, 32, 4, 4),
    (64, 64, 32, 4, 4),
)  # fmt: skip


@dataclass(frozen=True)
class Alternative:
    """Values for constants, or functions, of modules of ``fastvae.kernels``: ``{(module, name): value}``."""

    name: str
    values: Mapping[tuple[str, str], Any]

    @contextmanager
    def applied(self) -> Iterator[None]:
        places = [(importlib.import_module(f"fastvae.kernels.{module}"), name) for module, name in self.values]
        before = [getattr(module, name) for module, name in places]
        for (module, name), value in zip(places, self.values.values(), strict=True):
            setattr(module, name, value)
        try:
            yield
        finally:
            for (module, name), value in zip(places, before, strict=True):
                setattr(module, name, value)


def _matrix_tiles(case: Case) -> list[Alternative]:
    half = case.itemsize == 2
    table = "_HALF_TILES" if half else "_FLOAT_TILES"
    found = []
    for shape in _HALF if half else _SINGLE:
        values = {("_matrix", table): (shape,), ("_matrix", "_TF32_TILES"): (shape,)}
        found.append(Alternative("tile " + "x".join(map(str, shape)), values))
    return found


def _conv_tiles(case: Case) -> list[Alternative]:
    from fastvae.kernels._matrix import MatrixTile
    from fastvae.kernels._tiles import next_power_of_2

    def fixed(shape: tuple[int, ...]) -> Callable[..., MatrixTile]:
        def tile(rows: int, columns: int, inner: int, *_: Any) -> MatrixTile:
            made = MatrixTile(*shape)
            return made._replace(
                columns=min(made.columns, max(next_power_of_2(columns), 16)),
                inner=min(made.inner, max(next_power_of_2(inner), 16)),
            )

        return tile

    return [
        Alternative(
            "tile " + "x".join(map(str, shape)),
            {(module, "conv_tile"): fixed(shape) for module in ("masked_conv2d", "masked_conv2d_gradients")},
        )
        for shape in (_HALF if case.itemsize == 2 else _SINGLE)
    ]


def _row_tiles(case: Case) -> list[Alternative]:
    return [Alternative(f"warps {w}", {("_tiles", "_WARPS"): w}) for w in (1, 2, 8)] + [
        Alternative(f"busy {b}", {("_tiles", "_BUSY"): b}) for b in (256, 4096)
    ]


def _constants(module: str, *names: str, values: Sequence[tuple[int, ...]]) -> Callable[[Case], list[Alternative]]:
    def alternatives(case: Case) -> list[Alternative]:
        return [
            Alternative(
                " ".join(f"{name.strip('_').lower()} {number}" for name, number in zip(names, chosen, strict=True)),
                {(module, name): number for name, number in zip(names, chosen, strict=True)},
            )
            for chosen in values
        ]

    return alternatives


ALTERNATIVES: dict[str, Callable[[Case], list[Alternative]]] = {
    "diag_gaussian": _row_tiles,
    "tril_gaussian": _row_tiles,
    "affine_flow": _row_tiles,
    "gated_activation": _row_tiles,
    "masked_linear": _matrix_tiles,
    "autoregressive_flow": _matrix_tiles,
    "training_step": _matrix_tiles,
    "masked_conv2d": _conv_tiles,
    "gated_stack": _conv_tiles,
    "autoregressive_inverse": _constants(
        "autoregressive_inverse", "_BUSY", "_PRODUCTS", "_WARPS",
        values=((132, 4096, 4), (528, 4096, 4), (264, 2048, 4), (264, 8192, 4), (264, 8192, 8), (264, 2048, 2)),
    ),
    "logistic_mixture": _constants("logistic_mixture", "_BLOCK", values=((32,), (64,), (256,), (512,))),
    "causal_sampler": _constants(
        "causal_sampler", "_BLOCK_O", "_BLOCK_K", "_WARPS",
        values=((32, 64, 4), (64, 32, 4), (64, 64, 4), (64, 64, 8), (128, 32, 8), (128, 64, 8)),
    ),
}  # fmt: skip


def with_alternatives(task: Task, case: Case) -> Task:
    """The task with an alternative's provider for each of its op's."""

    def triton(case: Case, impl: str = "triton") -> Function:
        return task.fastvae(case, "triton")

    peers = {other.name: Peer(triton, around=other.applied) for other in ALTERNATIVES[task.op](case)}
    return replace(task, fastvae=triton, peers=peers)


def table(rows: Sequence[results.Row]) -> str:
    """Of each case the rule's time, and how many times faster the alternatives are."""
    lines = ["| case | rule | alternatives, from the fastest |", "| --- | ---: | --- |"]
    for group in results.by_case({**row, "kind": "row"} for row in rows):
        rule = group.pop("fastvae", None)
        if rule is None:
            continue
        timed = sorted((row for row in group.values()), key=lambda row: row["p50_us"])
        others = "; ".join(f"{row['provider']}: {rule['p50_us'] / row['p50_us']:.3f} x" for row in timed)
        name = " ".join(str(rule[key]) for key in ("op", "entry", "variant", "mode", "shape", "dtype", "timer"))
        lines.append(f"| {name} | {report.duration(rule['p50_us'])} | {others} |")
    return "\n".join(lines)
