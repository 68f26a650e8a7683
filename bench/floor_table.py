"""``python -m bench floors``: of each floor and op its bound, counts, prediction on an H100, and time, if measured."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from . import floors, gpu_figures, registry, roofline
from .floors import Floor
from .gpu_figures import H100
from .rows import Row, read_rows
from .task import Case, Work
from .wording import format_duration

# Ops that no floor holds: op, entry, variant, shape of the largest benchmark on a GPU.
_OTHERS = (
    ("affine_flow", "forward", "", "65536x1024"),
    ("gaussian_merge", "rsample", "", "65536x1024"),
    ("bernoulli", "sample", "", "65536x1024"),
    ("class_linear", "layer", "784", "4096x512"),
    ("gated_activation", "gate", "768_channels_last", "48x64"),
    ("logistic_mixture", "likelihood", "", "256x32"),
    ("linear_bernoulli", "log_prob", "", "128x512x400"),
    ("mlp_bernoulli", "log_prob", "", "128x512x400"),
    ("latent_gradient", "gradient", "", "4096x400"),
    ("linear_tril_gaussian", "rsample_with_kl", "", "4096x400x128"),
    ("attention_window", "read", "", "4096x28"),
    ("attention_window", "write", "", "4096x28"),
)


def list_others() -> Iterator[Case]:
    """The cases of ops that no floor holds."""
    for op, entry, variant, shape in _OTHERS:
        for mode in ("fwd", "fwdbwd"):
            case = floors.make_case(op, entry, variant, shape, "float32", mode)
            if mode in registry.find_task(case).modes:
                yield case


def find_work(case: Case) -> Work:
    """The least work of a case. It is the same on every device."""
    return registry.find_task(case).work(replace(case, device="cpu"))


def find_limits(case: Case) -> roofline.Limits:
    """The limits of an H100 by estimate, for products in the type of a case."""
    return roofline.Limits(H100.copy, H100.half if case.itemsize == 2 else H100.single)


def build_table(rows: Iterable[Row] = ()) -> str:
    """The floors as Markdown, then ops without one; times come from the last row of each."""
    measured = [row for row in rows if row.get("kind") == "row" and "p50_us" in row]
    lines = [
        "| work | shape | dtype | mode | MB | GFLOP | bound | at least, H100 | counts | floor "
        "| predicted, H100 | measured |",
        "| --- | --- | --- | --- | ---: | ---: | --- | ---: | --- | --- | ---: | ---: |",
    ]
    for case in dict.fromkeys(floor.case for floor in floors.FLOORS):
        lines.append(_build_line([floor for floor in floors.FLOORS if floor.case == case], measured))
    lines += [_build_line([Floor(case, ())], measured) for case in list_others()]
    return "\n".join(lines) + "\n"


def _build_line(chosen: Sequence[Floor], rows: Sequence[Row]) -> str:
    case = chosen[0].case
    work, limits = find_work(case), find_limits(case)
    figure = gpu_figures.FIGURES.get(gpu_figures.name_case(case))
    cells = [
        f"`{case.task}`", f"[{str(case.shape).replace('x', ', ')}]", case.dtype, case.mode,
        f"{work.bytes * 1e-6:.4g}", f"{work.flops * 1e-9:.3g}", limits.bound(work),
        format_duration(limits.seconds(work) * 1e6), figure.counts if figure else "",
        "; ".join(bar.describe() for floor in chosen for bar in floor.bars),
        _format_prediction(figure), _format_time(chosen[0], rows),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _format_prediction(figure: gpu_figures.Figure | None) -> str:
    if figure is None or not figure.high:
        return ""
    return f"{format_duration(figure.low)} to {format_duration(figure.high)}"


def _format_time(floor: Floor, rows: Sequence[Row]) -> str:
    for row in reversed(rows):
        if floors.is_of(floor.case, row) and (row["provider"], row["timer"]) == (floor.ours, floor.timer):
            return format_duration(row["p50_us"])
    return ""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench floors", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="rows of python -m bench.gpu_check")
    print(build_table(read_rows(parser.parse_args(arguments).files)), end="")
    return 0
