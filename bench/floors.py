"""The floors: what the library must reach on an H100 or H200, and the rows that show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .rows import Row
from .task import Case, Shape
from .wording import format_duration

# Peers are other packages; a row whose package is absent is left out by name.
PEERS = ("zuko", "nflows", "pyro")
_COMPILE = "compile"


class Share(NamedTuple):
    """At least ``least`` of the bandwidth of a copy, for the bytes that must move."""

    least: float

    def describe(self) -> str:
        return f"{100 * self.least:.0f} % of copy"

    def measure(self, row: Row) -> float | None:
        return row["gbps"] / row["copy_gbps"]

    def holds(self, value: float) -> bool:
        return value >= self.least

    def format(self, value: float) -> str:
        return f"{100 * value:.0f} %"


class Gain(NamedTuple):
    """At least ``least`` times as fast as ``provider`` in the same run."""

    provider: str
    least: float

    def describe(self) -> str:
        return f"{self.least:g} x {self.provider}"

    def measure(self, row: Row) -> float | None:
        return row.get(f"vs_{self.provider}")

    def holds(self, value: float) -> bool:
        return value >= self.least

    def format(self, value: float) -> str:
        return f"{value:.2f} x"


class Within(NamedTuple):
    """At most ``microseconds``."""

    microseconds: float

    def describe(self) -> str:
        return format_duration(self.microseconds)

    def measure(self, row: Row) -> float | None:
        return row["p50_us"]

    def holds(self, value: float) -> bool:
        return value <= self.microseconds

    def format(self, value: float) -> str:
        return format_duration(value)


Bar = Share | Gain | Within


@dataclass(frozen=True)
class Floor:
    """One case with its bars, all of ``timer``.

    ``beside`` are measured in turns with ``ours``; ``torch.compile`` is measured later, in a run of its own. Without
    ``graphs`` no CUDA graph is captured. ``most_sets`` bounds the sets of inputs that calls take in turns.
    """

    case: Case
    bars: tuple[Bar, ...]
    ours: str = "fastvae"
    beside: tuple[str, ...] = ("reference",)
    timer: str = "events"
    graphs: bool = True
    most_sets: int = 64

    @property
    def compiles(self) -> bool:
        """Whether a bar is against ``torch.compile``."""
        return any(isinstance(bar, Gain) and bar.provider == _COMPILE for bar in self.bars)

    def providers(self, baselines: bool) -> tuple[str, ...]:
        """Who is measured: beside ``torch.compile``, or beside all others."""
        return (self.ours, _COMPILE) if baselines else (self.ours, *self.beside)

    def __str__(self) -> str:
        return f"{self.case}, {', '.join(bar.describe() for bar in self.bars)}"


def make_case(op: str, entry: str, variant: str, shape: str, dtype: str, mode: str) -> Case:
    """A case on a GPU."""
    return Case(op, entry, variant, mode, Shape.parse(shape), dtype, "cuda")


_BOTH = ("fwd", "fwdbwd")
_WIDE = "1920-1920"


def _list_gaussians() -> Iterator[Floor]:
    diagonal = ("diag_gaussian", "rsample", "")
    for dtype in ("float32", "bfloat16"):
        for mode in _BOTH:
            yield Floor(make_case(*diagonal, "65536x1024", dtype, mode), (Share(0.85), Gain(_COMPILE, 1.2)))
    small = {"bars": (Gain(_COMPILE, 1.0),), "timer": "graph"}
    for shape in ("128x32", "50x100x50"):
        yield Floor(make_case(*diagonal, shape, "float32", "fwdbwd"), **small)
    for shape in ("4096x256", "65536x64"):
        for mode in _BOTH:
            case = make_case("tril_gaussian", "rsample", "dense", shape, "float32", mode)
            yield Floor(case, (Share(0.8), Gain(_COMPILE, 1.6)))
    yield Floor(make_case("tril_gaussian", "rsample", "dense", "512x64", "float32", "fwdbwd"), **small)


def _list_networks() -> Iterator[Floor]:
    for mode in _BOTH:
        case = make_case("masked_linear", "linear", "", "16384x1920", "bfloat16", mode)
        yield Floor(case, (Gain("dense", 1.5),), beside=("dense",))
    flow = ("autoregressive_flow", "flow")
    for mode in _BOTH:
        yield Floor(make_case(*flow, _WIDE, "16384x64", "bfloat16", mode), (Gain(_COMPILE, 1.3),))
    yield Floor(make_case(*flow, "320-320", "128x32", "float32", "fwdbwd"), (Gain(_COMPILE, 1.0),), timer="graph")
    inverse = make_case("autoregressive_inverse", "inverse", "512-512", "1024x64", "float32", "fwd")
    # 1.5 µs a feature.
    yield Floor(inverse, (Within(96.0),), beside=("forward",))
    # A graph of a peer would hold one pass of its network for each feature and each set of inputs.
    yield Floor(inverse, tuple(Gain(peer, 30.0) for peer in PEERS), beside=PEERS, graphs=False)


def _list_images() -> Iterator[Floor]:
    for kernel, gain in ((7, 1.4), (3, 1.2)):
        for mode in _BOTH:
            variant = f"{kernel}x{kernel}-B-128-128"
            case = make_case("masked_conv2d", "convolution", variant, "128x32", "bfloat16", mode)
            yield Floor(case, (Gain("channels_last", gain),), "fastvae_channels_last", ("channels_last",))
    sampler = make_case("causal_sampler", "sample", "gated-7x64", "64x784", "float32", "fwd")
    yield Floor(sampler, (Within(40_000.0),), beside=("forward",), most_sets=2)
    yield Floor(sampler, (Gain("naive", 20.0),), beside=("naive",), graphs=False, most_sets=2)


def _list_jobs() -> Iterator[Floor]:
    case = make_case("training_step", "step", "iaf-8x1920", "512x32", "float32", "step")
    # The weights of a step are more than a cache holds.
    yield Floor(case, (Gain(_COMPILE, 1.3),), most_sets=2)


FLOORS = (*_list_gaussians(), *_list_networks(), *_list_images(), *_list_jobs())
# Cases that are measured with other constants than the rules of their kernels choose.
TUNED = (
    make_case("masked_linear", "linear", "", "16384x1920", "bfloat16", "fwdbwd"),
    make_case("autoregressive_inverse", "inverse", "512-512", "1024x64", "float32", "fwd"),
    make_case("tril_gaussian", "rsample", "dense", "4096x256", "float32", "fwdbwd"),
    make_case("masked_conv2d", "convolution", "7x7-B-128-128", "128x32", "bfloat16", "fwdbwd"),
)
_PROFILED = (
    "tril_gaussian",
    "masked_linear",
    "autoregressive_flow",
    "autoregressive_inverse",
    "masked_conv2d",
    "causal_sampler",
)


def list_ops(*, compiled: bool = False) -> list[str]:
    """Ops in the order of the floors; with ``compiled`` those that a bar holds against ``torch.compile``."""
    return list(dict.fromkeys(floor.case.op for floor in FLOORS if floor.compiles or not compiled))


def select(op: str, *, compiled: bool = False) -> list[Floor]:
    """The floors of an op; with ``compiled`` those with a bar against ``torch.compile``."""
    return [floor for floor in FLOORS if floor.case.op == op and (floor.compiles or not compiled)]


def list_profiled() -> list[Floor]:
    """One floor of each op of which a profiler reads counters."""
    return [next(floor for floor in FLOORS if floor.case.op == op and floor.timer == "events") for op in _PROFILED]


class Verdict(NamedTuple):
    """A bar of a floor with the row that shows it, and what that row says; None where nothing was measured."""

    floor: Floor
    bar: Bar
    row: Row | None
    value: float | None

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "holds" if self.bar.holds(self.value) else "missed"


def judge(rows: Iterable[Row]) -> list[Verdict]:
    """Every bar against the last row that tells of it."""
    known = [row for row in rows if row.get("kind") == "row" and "p50_us" in row]
    return [_judge_bar(floor, bar, known) for floor in FLOORS for bar in floor.bars]


def _judge_bar(floor: Floor, bar: Bar, rows: list[Row]) -> Verdict:
    for row in reversed(rows):
        if is_of(floor.case, row) and (row["provider"], row["timer"]) == (floor.ours, floor.timer):
            value = bar.measure(row)
            if value is not None:
                return Verdict(floor, bar, row, value)
    return Verdict(floor, bar, None, None)


def is_of(case: Case, row: Row) -> bool:
    """Whether ``row`` was measured for ``case``."""
    names = ("op", "entry", "variant", "mode", "dtype", "device")
    return row["shape"] == str(case.shape) and all(row[name] == getattr(case, name) for name in names)
