"""Pictures of measured rows: speed beside eager PyTorch, and distance from the machine's limits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .rows import Group, find_timed
from .wording import name_commit, name_machine, name_shape

# The palette of Okabe and Ito, which readers with any colour vision tell apart.
_STYLES = {
    "fastvae": ("#0072B2", "o", "fastvae"),
    "fastvae_compile": ("#332288", "p", "fastvae + torch.compile"),
    "cpp": ("#009E73", "D", "fastvae, C++"),
    "triton": ("#56B4E9", "v", "fastvae, Triton"),
    "compile": ("#E69F00", "s", "torch.compile(reference)"),
    "distributions": ("#CC79A7", "^", "torch.distributions"),
    "zuko": ("#D55E00", "<", "zuko"),
    "zuko_compile": ("#882255", "1", "zuko + torch.compile"),
    "nflows": ("#F0E442", ">", "nflows"),
    "nflows_compile": ("#AA9900", "2", "nflows + torch.compile"),
    "pyro": ("#8C6D31", "P", "Pyro"),
    "forward": ("#000000", "*", "own forward"),
    "fastvae_channels_last": ("#004C7A", "H", "fastvae, channels last"),
    "channels_last": ("#999999", "+", "eager, channels last"),
    "naive": ("#A0522D", "X", "whole passes"),
    "repeated": ("#AA4499", "3", "repeated inputs"),
    "repeated_compile": ("#DDCC77", "4", "repeated inputs + torch.compile"),
    "reference": ("#555555", "x", "eager reference"),
}
_BAR = 0.17  # inches


def draw_all(groups: Sequence[Group], folder: Path) -> list[Path]:
    """For every machine and way of timing an overview, a picture per op, and a roofline."""
    paths: list[Path] = []
    machines = list(dict.fromkeys(map(_find_machine, groups)))
    for machine in machines:
        members = [group for group in groups if _find_machine(group) == machine]
        suffix = _find_suffix(machine, machines[0])
        overview = [
            group for group in members if find_timed(group)["mode"] in ("fwdbwd", "step") and _is_headline(group)
        ]
        if overview:
            paths.append(_draw_speeds(overview, folder / f"speed-overview{suffix}.png"))
        for op in dict.fromkeys(find_timed(group)["op"] for group in members):
            own = [group for group in members if find_timed(group)["op"] == op]
            paths.append(_draw_speeds(own, folder / f"speed-{op}{suffix}.png"))
        paths.append(_draw_roofline(members, folder / f"roofline{suffix}.png"))
    return paths


def _find_machine(group: Group) -> str:
    return name_machine(find_timed(group))


def _name_origin(groups: Sequence[Group]) -> str:
    """The machine, and the commits whose rows are shown."""
    commits = dict.fromkeys(name_commit(find_timed(group)) for group in groups)
    return f"{_find_machine(groups[0])}\n{', '.join(commits)}"


def _find_suffix(machine: str, first: str) -> str:
    """The end of a picture's name: empty for the first machine; for others the words that the first does not have."""
    if machine == first:
        return ""
    known = re.split("[,;] ", first)
    others = [part for part in re.split("[,;] ", machine) if part not in known]
    return "-" + re.sub(r"[^a-z0-9]+", "-", " ".join(others or [machine]).lower()).strip("-")


def _is_headline(group: Group) -> bool:
    return find_timed(group)["entry"] in ("rsample", "step", "linear", "flow", "inverse")


def _draw_speeds(groups: Sequence[Group], path: Path) -> Path:
    """Bars of eager time over each provider's time; a panel per op, entry point and layout."""
    panels: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: find_timed(group)["op"] == "training_step"):
        row = find_timed(group)
        title = " ".join(filter(None, (row["op"], row["entry"], row["variant"])))
        panels.setdefault(title, []).append(group)
    providers = _find_present(groups)
    columns = min(2, len(panels))
    lines = [list(panels.items())[start : start + columns] for start in range(0, len(panels), columns)]
    # Bars and gaps of a line's longest panel: the same for all of them, so that bars are equally thick.
    longest = [max(len(members) * (len(_find_present(members)) + 1) for _, members in line) for line in lines]
    heights = [count * _BAR + 0.8 for count in longest]
    figure, grid = plt.subplots(
        len(lines),
        columns,
        figsize=(6.2 * columns, sum(heights) + 0.9),
        height_ratios=heights,
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for line, axes, count in zip(lines, grid, longest, strict=True):
        for (title, members), axis in zip(line, axes, strict=False):
            _draw_bars(axis, members)
            axis.set_ylim(count, 0)
            axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        for axis in axes[len(line) :]:
            axis.set_axis_off()
    _scale_speeds(grid[0][0], [_find_speed(group, name) for group in groups for name in providers])
    handles = [Patch(color=_STYLES[name][0], label=_STYLES[name][2]) for name in providers]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False, fontsize=9)
    figure.suptitle(
        f"Speed relative to eager PyTorch (longer to the right is faster)\n{_name_origin(groups)}", fontsize=10
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _find_present(groups: Sequence[Group]) -> list[str]:
    return [name for name in _STYLES if name != "reference" and any(name in group for group in groups)]


def _draw_bars(axis: Axes, groups: Sequence[Group]) -> None:
    """A unit of height for every bar, and half a one above and below each group."""
    providers = _find_present(groups)
    tops = np.arange(len(groups)) * (len(providers) + 1) + 0.5
    for index, name in enumerate(providers):
        colour = _STYLES[name][0]
        speeds = [_find_speed(group, name) for group in groups]
        offsets = tops + index + 0.5
        # Bars start at 1, the speed of eager, so that what is slower points to the left.
        axis.barh(offsets, [speed - 1 for speed in speeds], 0.92, left=1, color=colour)
        for offset, speed in zip(offsets, speeds, strict=True):
            if np.isfinite(speed):
                text = f"{speed:.2g}x" if speed < 10 else f"{speed:.0f}x"
                place: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
                axis.annotate(text, (max(speed, 1), offset), **place)
    axis.axvline(1, color="#222222", linewidth=0.8)
    axis.set_yticks(tops + len(providers) / 2, [_name_case(group) for group in groups], fontsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=True, labelsize=8)


def _scale_speeds(axis: Axes, speeds: Sequence[float]) -> None:
    """A logarithmic axis, shared by all panels, with a tick at 1, 2 and 5 times every power of ten."""
    finite = [1.0, *(speed for speed in speeds if np.isfinite(speed))]
    low, high = min(finite) * 0.8, max(finite) * 1.6
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    ticks = [scale * 10.0**power for power in range(-4, 5) for scale in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8)
    axis.minorticks_off()


def _find_speed(group: Group, name: str) -> float:
    if name not in group or "vs_reference" not in group[name]:
        return float("nan")
    return float(group[name]["vs_reference"])


def _name_case(group: Group) -> str:
    row = find_timed(group)
    return f"{row['mode']}  {name_shape(row)}" + ("" if row["dtype"] == "float32" else f"  {row['dtype']}")


def _draw_roofline(groups: Sequence[Group], path: Path) -> Path:
    """Achieved rate over arithmetic intensity of samples and steps, under the roof measured in their runs."""
    shown = [group for group in groups if _is_headline(group)] or list(groups)
    rows = [row for group in shown for row in group.values() if "gflops" in row]
    rows = [row for row in rows if row["dtype"] == "float32"] or rows
    figure, axis = plt.subplots(figsize=(9.5, 5.4), layout="constrained")
    intensities = [row["flops"] / row["bytes"] for row in rows]
    copy = float(np.median([row["copy_gbps"] for row in rows]))
    product = float(np.median([row["matmul_gflops"] for row in rows]))
    x = np.geomspace(min(intensities) / 2, max(*intensities, product / copy) * 2, 200)
    axis.plot(x, np.minimum(copy * x, product), color="#222222", linewidth=1.4)
    slope = f"copy {copy:.3g} GB/s"
    axis.annotate(slope, (x[40], copy * x[40]), xytext=(8, -12), textcoords="offset points", fontsize=8)
    axis.annotate(
        f"matrix product {product:.3g} GFLOP/s",
        (x[-1], product),
        xytext=(0, 5),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    present = [name for name in _STYLES if any(row["provider"] == name for row in rows)]
    for name in present:
        colour, marker, _ = _STYLES[name]
        for row in rows:
            if row["provider"] == name:
                face = "none" if row["in_cache"] else colour
                axis.plot(
                    row["flops"] / row["bytes"],
                    row["gflops"],
                    marker,
                    color=colour,
                    markerfacecolor=face,
                    ms=6,
                )
    handles = [
        Line2D([], [], linestyle="", marker=_STYLES[n][1], color=_STYLES[n][0], label=_STYLES[n][2]) for n in present
    ]
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("floating-point operations per byte that must move")
    axis.set_ylabel("GFLOP/s of the least work")
    axis.grid(color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(
        handles=handles,
        fontsize=8,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        title="hollow: fits the last cache",
        title_fontsize=8,
    )
    axis.set_title(f"Distance from the measured limits\n{_name_origin(shown)}", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
