"""``python -m bench readme``: the speed tables of README.md out of measured rows."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import Group, Row, find_timed, group_by_case, read_rows
from .wording import TITLES

_OURS = ("fastvae", "fastvae_compile")
_ROOT = Path(__file__).resolve().parent.parent
README, ROWS = _ROOT / "README.md", _ROOT / "bench/results/cpu/rows.jsonl"
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


@dataclass(frozen=True)
class Line:
    """A line of a table: its words, and the case that it quotes, with the fastest of other libraries."""

    work: str
    shape: str
    task: str
    mode: str
    case: str
    peers: tuple[str, ...] = ()


JOBS = (
    Line("VAE, diagonal posterior, training step", "[128, 32]", "training_step.step.diagonal", "step", "128x32"),
    Line("VAE, diagonal posterior, training step", "[512, 64]", "training_step.step.diagonal", "step", "512x64"),
    Line("VAE, full covariance, training step", "[128, 32]", "training_step.step.triangular", "step", "128x32"),
    Line("VAE, full covariance, training step", "[256, 128]", "training_step.step.triangular", "step", "256x128"),
    Line("ResNet VAE, IAF 2 × 320, training step", "[128, 32]", "training_step.step.iaf-2x320", "step", "128x32"),
    Line("ResNet VAE, IAF 4 × 1920, training step", "[128, 32]", "training_step.step.iaf-4x1920", "step", "128x32"),
    Line("IWAE, K = 50, training step", "[100, 50]", "training_step.step.iwae-k50", "step", "100x50"),
    Line("HVI, four leapfrog steps, training step", "[128, 32]", "leapfrog_step.step.hvi-dense", "step", "128x32"),
    Line("M2, ten classes of unlabelled images, training step", "[100, 50]", "class_step.step.m2", "step", "100x50",
         ("pyro",)),
    Line("ADGM, ten classes of unlabelled images, training step", "[100, 100]", "auxiliary_step.step.adgm", "step",
         "100x100"),
    Line("PixelVAE, training step", "[64, 16]", "training_step.step.pixelvae", "step", "64x16"),
    Line("MAF of 5 steps, training step", "[512, 64]", "density_step.step.maf-5x512", "step", "512x64",
         ("zuko", "zuko_compile", "nflows", "nflows_compile")),
    Line("VAE, log p(x) of 1000 images, K = 128", "[128, 1000, 32]", "evaluation.evaluate", "fwd", "128x1000x32"),
    Line("VAE, log p(x) of 100 images, K = 5000", "[5000, 100, 32]", "evaluation.evaluate", "fwd", "5000x100x32"),
    Line("PixelVAE, 64 new images", "[64, 16]", "model_sample.sample.pixelvae", "fwd", "64x16"),
)  # fmt: skip
KERNELS = (
    Line("diagonal sample, forward + backward", "[1024, 64]", "diag_gaussian.rsample", "fwdbwd", "1024x64",
         ("distributions",)),
    Line("diagonal sample, forward + backward", "[4096, 1024]", "diag_gaussian.rsample", "fwdbwd", "4096x1024",
         ("distributions",)),
    Line("full-covariance sample, forward + backward", "[512, 64]", "tril_gaussian.rsample.packed", "fwdbwd", "512x64",
         ("distributions",)),
    Line("linear layer to a full-covariance sample, forward + backward", "[256, 400] to 128",
         "linear_tril_gaussian.rsample_with_kl", "fwdbwd", "256x400x128"),
    Line("two Gaussians merged, a level of a ladder, forward + backward", "[4096, 1024]", "gaussian_merge.rsample",
         "fwdbwd", "4096x1024"),
    Line("Bernoulli units, forward + backward", "[1000, 200]", "bernoulli.sample", "fwdbwd", "1000x200",
         ("distributions",)),
    Line("masked linear 1920, forward + backward", "[1024, 1920]", "masked_linear.linear", "fwdbwd", "1024x1920"),
    Line("IAF step 320 + 320, forward + backward", "[128, 32]", "autoregressive_flow.flow.320-320", "fwdbwd", "128x32"),
    Line("inverse of a flow step", "[1024, 64]", "autoregressive_inverse.inverse.512-512", "fwd", "1024x64",
         ("zuko", "nflows", "pyro")),
    Line("last layer with its likelihood, forward", "[128, 100, 400]", "linear_bernoulli.log_prob", "fwd",
         "128x100x400"),
    Line("whole decoder with its likelihood, forward", "[128, 100, 400]", "mlp_bernoulli.log_prob", "fwd",
         "128x100x400"),
    Line("whole decoder with its likelihood, forward + backward", "[128, 400]", "mlp_bernoulli.log_prob", "fwdbwd",
         "128x400"),
    Line("masked convolution, kernel 3, forward + backward", "[32, 64, 28, 28]",
         "masked_conv2d.convolution.3x3-B-64-64", "fwdbwd", "32x28"),
    Line("mixture of logistics, forward + backward", "[16, 3, 32, 32]", "logistic_mixture.likelihood", "fwdbwd",
         "16x32"),
    Line("gate of a gated PixelCNN, forward + backward", "[100, 128, 28, 28]", "gated_activation.gate.64", "fwdbwd",
         "100x28"),
    Line("DRAW's window, read of two images, forward + backward", "[100, 28, 28]", "attention_window.read", "fwdbwd",
         "100x28"),
    Line("sampling one image of MNIST", "[1, 784]", "causal_sampler.sample.gated-7x64", "fwd", "1x784"),
)  # fmt: skip


def write_tables(text: str, records: Iterable[Row]) -> str:
    """README's text with both tables, whole jobs and kernels, from the newest rows of the machine that ran last.

    Raises:
        ValueError: a case was not measured there, or the text has other tables in its section.
    """
    groups = find_last_machine(group_by_case(records))
    before, heading, rest = text.partition("\n## Speed\n")
    section, end, after = rest.partition("\n## ")
    if len(_TABLE.findall(section)) != 2:
        raise ValueError("the section Speed must have two tables")
    tables = iter([build_table(JOBS, groups), build_table(KERNELS, groups)])
    return before + heading + _TABLE.sub(lambda _: next(tables), section) + end + after


def find_last_machine(groups: Sequence[Group]) -> list[Group]:
    """The groups of the processor with the newest run."""

    def processor(group: Group) -> str:
        return str(find_timed(group)["environment"]["cpu"])

    newest = max(groups, key=lambda group: str(find_timed(group)["run"]))
    return [group for group in groups if processor(group) == processor(newest)]


def build_table(lines: Iterable[Line], groups: Sequence[Group]) -> str:
    cells = [["work", "shape", "× eager PyTorch", "× `torch.compile`", "× other library"], ["---"] * 2 + ["---:"] * 3]
    for line in lines:
        group = find_group(line, groups)
        best = min(group[name]["p50_us"] for name in _OURS if name in group and "p50_us" in group[name])
        ratios = [format_ratio(group, name, best) for name in ("reference", "compile")]
        times = {name: group[name]["p50_us"] for name in line.peers if "p50_us" in group.get(name, {})}
        fastest = min(times, key=lambda name: times[name]) if times else None
        peer = f"{format_ratio(group, fastest, best)}, {TITLES[fastest]}" if fastest else ""
        cells.append([line.work, line.shape, *ratios, peer])
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def find_group(line: Line, groups: Sequence[Group]) -> Group:
    for group in groups:
        row = find_timed(group)
        task = ".".join(part for part in (row["op"], row["entry"], row["variant"]) if part)
        if (task, row["mode"], row["shape"], row["dtype"]) == (line.task, line.mode, line.case, "float32"):
            return group
    raise ValueError(f"no row of {line.task} {line.mode} {line.case}")


def format_ratio(group: Group, name: str, best: float) -> str:
    """How many times longer a provider takes than the better of ours; empty where it was not measured."""
    if "p50_us" not in group.get(name, {}):
        return ""
    ratio = group[name]["p50_us"] / best
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


def main(arguments: Sequence[str]) -> int:
    argparse.ArgumentParser(prog="python -m bench readme", description=__doc__).parse_args(arguments)
    README.write_text(write_tables(README.read_text(encoding="utf-8"), read_rows([ROWS])), encoding="utf-8")
    return 0
