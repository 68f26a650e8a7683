"""How rows are put into words: names of providers, machines, work, times and sizes."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row

TITLES = {
    "fastvae": "fastvae",
    "fastvae_compile": "fastvae + compile",
    "cpp": "C++",
    "triton": "Triton",
    "fastvae_channels_last": "fastvae, channels last",
    "reference": "eager",
    "channels_last": "eager, channels last",
    "compile": "compile",
    "distributions": "torch.distributions",
    "zuko": "zuko",
    "zuko_compile": "zuko + compile",
    "nflows": "nflows",
    "nflows_compile": "nflows + compile",
    "pyro": "Pyro",
    "naive": "whole passes",
    "repeated": "repeated inputs",
    "repeated_compile": "repeated inputs + compile",
    "forward": "own forward",
    "dense": "whole product",
}


def name_machine(row: Row) -> str:
    """The machine and torch's version of a row, and how a GPU's calls were issued."""
    environment = row["environment"]
    machine = environment["cpu"] + f", {environment['threads']} threads"
    if environment.get("isa"):
        machine += f", {environment['isa']}"
    if row["device"] == "cuda":
        timer = "CUDA graph replays" if row["timer"] == "graph" else "calls from Python"
        machine = f"{environment['gpu']['name']}, CUDA {environment['gpu']['cuda']}, {timer}"
    return f"{machine}; torch {environment['versions']['torch']}"


def name_commit(row: Row) -> str:
    return f"commit {row['environment']['commit'] or 'unknown'}"


def name_work(row: Row) -> str:
    return " ".join(part for part in (f"`{row['op']}`", row["entry"], row["variant"]) if part)


def name_shape(row: Row) -> str:
    return f"[{row['shape'].replace('x', ', ')}]"


def format_duration(microseconds: float) -> str:
    value, unit = (microseconds, "µs") if microseconds < 1000 else (microseconds / 1000, "ms")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def format_size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.{3 if count < 1000 * scale else 4}g} {unit}"
    return f"{count} B"


def format_range(values: Sequence[float]) -> str:
    low, high = (f"{value:.4g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
