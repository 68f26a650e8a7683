"""README's speed table quotes rows of ``bench/results``, rounded: all ratios of a line are those of one row."""

from __future__ import annotations

import json
import math
import re

import pytest

from tests.docs.pages import ROOT

# Each line of the table, by its work and shape: op, entry, variant, mode and shape of the rows.
LINES = {
    ("diagonal sample, forward + backward", "[1024, 64]"): ("diag_gaussian", "rsample", "", "fwdbwd", "1024x64"),
    ("diagonal sample, forward + backward", "[4096, 1024]"): ("diag_gaussian", "rsample", "", "fwdbwd", "4096x1024"),
    ("full-covariance sample, forward + backward", "[512, 64]"): (
        "tril_gaussian", "rsample", "packed", "fwdbwd", "512x64",
    ),
    ("masked linear 1920, forward + backward", "[1024, 1920]"): ("masked_linear", "linear", "", "fwdbwd", "1024x1920"),
    ("IAF step 320 + 320, forward + backward", "[128, 32]"): (
        "autoregressive_flow", "flow", "320-320", "fwdbwd", "128x32",
    ),
    ("IAF-VAE, training step", "[128, 32]"): ("training_step", "step", "iaf-4x1920", "step", "128x32"),
    ("inverse of a flow step", "[1024, 64]"): ("autoregressive_inverse", "inverse", "512-512", "fwd", "1024x64"),
    ("inverse of a flow step", "[256, 784]"): ("autoregressive_inverse", "inverse", "1024-1024", "fwd", "256x784"),
    ("masked convolution, kernel 3, forward + backward", "[32, 64, 28, 28]"): (
        "masked_conv2d", "convolution", "3x3-B-64-64", "fwdbwd", "32x28",
    ),
    ("mixture of logistics, forward + backward", "[16, 3, 32, 32]"): (
        "logistic_mixture", "likelihood", "", "fwdbwd", "16x32",
    ),
    ("gate of a gated PixelCNN, forward + backward", "[100, 128, 28, 28]"): (
        "gated_activation", "gate", "64", "fwdbwd", "100x28",
    ),
    ("sampling one image of MNIST", "[1, 784]"): ("causal_sampler", "sample", "gated-7x64", "fwd", "1x784"),
}  # fmt: skip
PEERS = {"torch.distributions": "vs_distributions", "Pyro": "vs_pyro"}


def read_table() -> dict[tuple[str, str], list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Speed\n")[2].partition("\n## ")[0]
    lines = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines() if line.startswith("|")]
    return {(cells[0], cells[1]): [*cells[2:], "", "", ""][:3] for cells in lines[2:]}


def read_rows(key: tuple[str, ...]) -> list[dict[str, float]]:
    names = ("op", "entry", "variant", "mode", "shape")
    rows = map(json.loads, (ROOT / "bench/results/cpu/rows.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row.get("provider") == "fastvae" and tuple(row[name] for name in names) == key]


def is_rounded(quoted: str, exact: float) -> bool:
    """Whether ``quoted`` is ``exact`` rounded to the digits that it shows."""
    digits = len(quoted.partition(".")[2])
    return math.isclose(float(quoted), round(exact, digits), abs_tol=1e-9)


def test_table_has_these_lines():
    assert read_table().keys() == LINES.keys()


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_ratios_are_measured(line):
    eager, compiled, peer = read_table()[line]
    ratio, _, name = peer.partition(", ")
    quoted = {"vs_reference": eager, "vs_compile": compiled, PEERS.get(name, ""): ratio}
    given = {column: figure for column, figure in quoted.items() if figure}
    rows = read_rows(LINES[line])
    assert any(all(is_rounded(figure, row[column]) for column, figure in given.items()) for row in rows)
