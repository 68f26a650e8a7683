"""The commands ``fastvae evaluate | sample | reconstruct CHECKPOINT``, for checkpoints of any system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import RecipeError
from ..evaluation.job import Job, join_processes
from ..files import check_target, to_finite, write_json
from ..settings import Implementation, check_whole, option
from ..system import System
from ..systems.loading import load_checkpoint
from ..training.trainer import device_of
from .run_options import DEVICE, Accelerator, check_impl
from .settings import parse

__all__ = ["EvaluateOptions", "ReconstructOptions", "SampleOptions", "evaluate", "reconstruct", "sample"]

PICTURE = {"aliases": ("-o",), "metavar": "FILE"}


@dataclass(frozen=True)
class EvaluateOptions:
    """The evaluation.

    Args:
        checkpoint: what fastvae train or demo wrote.
        json: file that the figures are written to, too.
        work: file that keeps what is done until all is: the same command goes on from it, and removes it at the end.
        accelerator: device.
        impl: implementation instead of the checkpoint's own.
        seed: of binarisation and noise.
        samples: importance samples K for log p(x), instead of the system's own number.
        log_p_images: test images for log p(x), instead of the system's own number.
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.
        progress: whether to show progress bars.
    """

    checkpoint: Path = field(metadata={"positional": True, "metavar": "CHECKPOINT"})
    json: Path | None = field(default=None, metadata={"metavar": "FILE"})
    work: Path | None = field(default=None, metadata={"metavar": "FILE"})
    accelerator: Accelerator = field(default="auto", metadata=DEVICE)
    impl: Implementation | None = None
    seed: int = 0
    samples: int | None = None
    log_p_images: int | None = option("images", None)
    image_chunk: int | None = None
    sample_chunk: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_whole(self, seed=0)
        if self.work is not None and self.work == self.json:
            raise ValueError(f"--work and --json must name two files, got {self.work} twice")
        for name in ("samples", "log_p_images", "image_chunk", "sample_chunk"):
            if getattr(self, name) is not None:
                check_whole(self, **{name: 1})


@dataclass(frozen=True)
class DrawOptions:
    """The picture.

    Args:
        checkpoint: what fastvae train or demo wrote.
        out: the PNG file.
        count: how many images.
        seed: of the noise.
        impl: implementation of the ops.
    """

    checkpoint: Path = field(metadata={"positional": True, "metavar": "CHECKPOINT"})
    out: Path = field(default=Path("samples.png"), metadata=PICTURE)
    count: int = 64
    seed: int = 0
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_whole(self, count=1, seed=0)


@dataclass(frozen=True)
class SampleOptions(DrawOptions):
    """The picture.

    Args:
        labels: classes to draw images of, where the model has classes: one for each image.
    """

    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReconstructOptions(DrawOptions):
    """The picture."""

    out: Path = field(default=Path("reconstructions.png"), metadata=PICTURE)
    count: int = 10


def evaluate(words: Sequence[str]) -> None:
    """Prints the figures of a checkpoint."""
    options = parse(
        EvaluateOptions,
        words,
        prog="fastvae evaluate",
        description="Figures of a checkpoint: test ELBO and importance-sampled log p(x), or what its system has, on "
        "test images under one fixed binarisation. On several processes: torchrun --nproc-per-node N -m fastvae "
        "evaluate.",
    )
    for path in (options.json, options.work):
        if path:
            check_target(path)
    device = device_of(options.accelerator)
    system, model, settings = load_checkpoint(options.checkpoint, impl=options.impl)
    check_impl(settings.model.impl, options.accelerator)
    config = change_evaluation(system.name, getattr(settings, "evaluation", None), options)
    with join_processes() as processes:
        progress, job = options.progress and processes.leads, Job(processes, options.work)
        images = processes.load(lambda: system.load_images(getattr(settings, "training", None), progress=progress))
        model = model.to(processes.choose_device(device))
        figures = system.evaluate(model, images, config, seed=options.seed, progress=progress, job=job)
        if processes.leads:
            report(system, figures, options)
        job.close()


def report(system: System, figures: Any, options: EvaluateOptions) -> None:
    """Prints and writes the figures of a checkpoint.

    Raises:
        RecipeError: one is not finite, or they cannot be written.
    """
    print(*system.describe(figures), sep="\n")
    plain = asdict(figures)
    if options.json:
        write_json(options.json, plain)
    if to_finite(plain) != to_finite_lists(plain):
        raise RecipeError(f"the figures of {options.checkpoint} are not finite: its training diverged")


def to_finite_lists(value: Any) -> Any:
    """Plain data with lists in place of tuples."""
    if isinstance(value, dict):
        return {name: to_finite_lists(item) for name, item in value.items()}
    return [to_finite_lists(item) for item in value] if isinstance(value, list | tuple) else value


def change_evaluation(name: str, config: Any, options: EvaluateOptions) -> Any:
    """The evaluation of a system, with what the options change.

    Raises:
        RecipeError: the system has no such number.
    """
    names = ("samples", "log_p_images", "image_chunk", "sample_chunk")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    known = set() if config is None else {part.name for part in fields(config)}
    if foreign := changes.keys() - known:
        raise RecipeError(f"the evaluation of {name} has no {', '.join(sorted(foreign))}: leave the option out")
    return replace(config, **changes) if changes else config


def sample(words: Sequence[str]) -> None:
    """Draws new images."""
    options = parse(
        SampleOptions, words, prog="fastvae sample", description="Draw new images of a checkpoint of any system."
    )
    check_target(options.out)
    check_impl(options.impl, "cpu")
    system, model, _ = load_checkpoint(options.checkpoint, impl=options.impl)
    labels = torch.tensor(options.labels) if options.labels else None
    system.draw_samples(model, options.out, count=options.count, labels=labels, seed=options.seed)
    print(options.out)


def reconstruct(words: Sequence[str]) -> None:
    """Draws test images beside what they become."""
    options = parse(
        ReconstructOptions,
        words,
        prog="fastvae reconstruct",
        description="Draw test images, and below them what they become through the latents of a checkpoint.",
    )
    check_target(options.out)
    check_impl(options.impl, "cpu")
    system, model, settings = load_checkpoint(options.checkpoint, impl=options.impl)
    system.draw_reconstructions(model, settings, options.out, count=options.count, seed=options.seed)
    print(options.out)
