"""``python -m bench --tune``: the kernels with other tiles than their rules choose, in turns with the rules'.

An alternative sets constants of kernel modules while a call launches. Each is a provider of its own, named after what
it sets, beside the provider ``rule``, which sets nothing; one that does not compile, or gives a wrong output, leaves a
row that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .rows import Row, group_by_case
from .task import Case, Function, Peer, Task
from .wording import format_duration

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
_REGISTERS = (96, 128, 168, 255)


@dataclass(frozen=True)
class Alternative:
    """Values for constants, or functions, of modules of ``fastvae.kernels``: ``{(module, name): value}``."""

    name: str
    values: Mapping[tuple[str, str], Any]

    @cached_property
    def _settings(self) -> list[tuple[dict[str, Any], str, Any]]:
        return [
            (vars(importlib.import_module(f"fastvae.kernels.{module}")), name, value)
            for (module, name), value in self.values.items()
        ]

    @cached_property
    def _caches(self) -> list[Callable[[], None]]:
        """What forgets the choices that the modules made before."""
        modules = {id(names): names for names, _, _ in self._settings}.values()
        values = [value for names in modules for value in names.values()]
        forget_rules = importlib.import_module("fastvae.kernels._launch").forget_rules
        return [forget_rules, *(value.cache_clear for value in values if hasattr(value, "cache_clear"))]

    @contextmanager
    def apply(self) -> Iterator[None]:
        before = [names[name] for names, name, _ in self._settings]
        for names, name, value in self._settings:
            names[name] = value
        self._forget()
        try:
            yield
        finally:
            for (names, name, _), value in zip(self._settings, before, strict=True):
                names[name] = value
            self._forget()

    def _forget(self) -> None:
        for forget in self._caches:
            forget()


def _vary_matrix_tiles(case: Case) -> list[Alternative]:
    from fastvae.kernels import _matrix

    half = case.itemsize == 2
    tables = ("_HALF_TILES",) if half else ("_FLOAT_TILES", "_TF32_TILES")
    return [
        Alternative(
            "tile " + "x".join(map(str, shape)),
            # Where a tile does not fit, the rule's own tiles stay.
            {("_matrix", table): (shape, *getattr(_matrix, table)) for table in tables},
        )
        for shape in (_HALF if half else _SINGLE)
    ]


def _vary_layers(case: Case) -> list[Alternative]:
    """Tiles, and how many registers a thread of the kernels of masked layers may have."""
    modules = ("masked_linear", "masked_linear_gradients")
    return _vary_matrix_tiles(case) + [_limit_registers(modules, count) for count in _REGISTERS]


def _limit_registers(modules: Sequence[str], count: int) -> Alternative:
    """Fewer registers make room for more programs on a multiprocessor, until they spill."""

    def limit(choose: Callable[..., dict[str, int]]) -> Callable[..., dict[str, int]]:
        return lambda *args, **named: choose(*args, **named) | {"maxnreg": count}

    values = {
        (module, name): limit(choose)
        for module in modules
        for name, choose in vars(importlib.import_module(f"fastvae.kernels.{module}")).items()
        if name in ("launch_options", "product_options")
    }
    return Alternative(f"registers {count}", values)


def _vary_conv_tiles(case: Case) -> list[Alternative]:
    from fastvae.kernels._matrix import MatrixTile
    from fastvae.kernels._tiles import next_power_of_2

    def fix(shape: tuple[int, ...]) -> Callable[..., MatrixTile]:
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
            {(module, "conv_tile"): fix(shape) for module in ("masked_conv2d", "masked_conv2d_gradients")},
        )
        for shape in (_HALF if case.itemsize == 2 else _SINGLE)
    ]


def _vary_row_tiles(case: Case) -> list[Alternative]:
    return [Alternative(f"warps {w}", {("_tiles", "_WARPS"): w}) for w in (1, 2, 8)] + [
        Alternative(f"busy {b}", {("_tiles", "_BUSY"): b}) for b in (256, 4096)
    ]


def _vary_constants(module: str, *names: str, values: Sequence[tuple[int, ...]]) -> Callable[[Case], list[Alternative]]:
    def alternatives(case: Case) -> list[Alternative]:
        return [
            Alternative(
                " ".join(f"{name.strip('_').lower()} {number}" for name, number in zip(names, chosen, strict=True)),
                {(module, name): number for name, number in zip(names, chosen, strict=True)},
            )
            for chosen in values
        ]

    return alternatives


_vary_last_layer = _vary_constants(
    "linear_bernoulli", "_CHUNK", "_BLOCK",
    values=((1 << 20, 1024), (1 << 24, 1024), (1 << 22, 256), (1 << 22, 512)),
)  # fmt: skip
_vary_factor = _vary_constants("tril_gaussian", "_HEIGHT", values=((4,), (16,)))
ALTERNATIVES: dict[str, Callable[[Case], list[Alternative]]] = {
    "attention_window": _vary_constants(
        "attention_window", "_FILTERS", "_WARP",
        values=((512, 256), (1024, 128), (1024, 256)),
    ),
    "bernoulli": _vary_row_tiles,
    "diag_gaussian": _vary_row_tiles,
    "tril_gaussian": _vary_factor,
    "affine_flow": _vary_row_tiles,
    "class_linear": _vary_row_tiles,
    "gated_activation": _vary_row_tiles,
    "gaussian_merge": _vary_row_tiles,
    "masked_linear": _vary_layers,
    "autoregressive_flow": _vary_matrix_tiles,
    "training_step": _vary_matrix_tiles,
    "density_step": _vary_matrix_tiles,
    "class_step": _vary_row_tiles,
    "auxiliary_step": _vary_row_tiles,
    "leapfrog_step": _vary_row_tiles,
    "evaluation": _vary_row_tiles,
    "demo": _vary_row_tiles,
    "model_sample": _vary_conv_tiles,
    "masked_conv2d": _vary_conv_tiles,
    "gated_stack": _vary_conv_tiles,
    "autoregressive_inverse": _vary_constants(
        "autoregressive_inverse", "_BUSY", "_PRODUCTS", "_WARPS",
        values=((132, 4096, 4), (528, 4096, 4), (264, 2048, 4), (264, 8192, 4), (264, 8192, 8), (264, 2048, 2)),
    ),
    "latent_gradient": _vary_constants(
        "latent_gradient", "_CHUNK", "_BLOCK",
        values=((1 << 20, 1024), (1 << 24, 1024), (1 << 22, 256), (1 << 22, 512)),
    ),
    "linear_bernoulli": _vary_last_layer,
    "linear_tril_gaussian": _vary_factor,
    "mlp_bernoulli": _vary_last_layer,
    "logistic_mixture": _vary_constants("logistic_mixture", "_BLOCK", values=((32,), (64,), (256,), (512,))),
    "causal_sampler": _vary_constants(
        "causal_sampler", "_BLOCK_O", "_BLOCK_K", "_WARPS",
        values=((128, 32, 8), (128, 64, 8), (128, 16, 4), (64, 64, 4), (64, 32, 4), (64, 64, 8)),
    ),
}  # fmt: skip


def add_alternatives(task: Task, case: Case) -> Task:
    """The task with the providers ``rule`` and those of its op's alternatives."""

    def triton(case: Case, impl: str = "triton") -> Function:
        return task.fastvae(case, "triton")

    tried = [Alternative("rule", {}), *ALTERNATIVES[task.op](case)]
    # Convolutions are tuned for the layout that is faster.
    adapt = task.peers["fastvae_channels_last"].adapt if "fastvae_channels_last" in task.peers else Peer(triton).adapt
    return replace(task, peers={each.name: Peer(triton, adapt, around=each.apply) for each in tried})


def build_table(rows: Sequence[Row]) -> str:
    """For each case the rule's time, and how many times faster the alternatives are."""
    lines = ["| case | rule | alternatives, from the fastest |", "| --- | ---: | --- |"]
    for group in group_by_case({**row, "kind": "row"} for row in rows):
        timed = sorted((row for row in group.values() if "error" not in row), key=lambda row: row["p50_us"])
        said = [f"{row['provider']}: {row['error']}" for row in group.values() if "error" in row]
        rule = next((row for row in timed if row["provider"] == "rule"), None)
        if rule is not None:
            ratios = ((row["provider"], rule["p50_us"] / row["p50_us"]) for row in timed if row is not rule)
            said = [f"{name}: {ratio:.3f} x" for name, ratio in ratios] + said
        row = next(iter(group.values()))
        name = " ".join(str(row.get(key, "")) for key in ("op", "entry", "variant", "mode", "shape", "dtype", "timer"))
        time = "failed" if rule is None else format_duration(rule["p50_us"])
        lines.append(f"| {name} | {time} | {'; '.join(said)} |")
    return "\n".join(lines)
