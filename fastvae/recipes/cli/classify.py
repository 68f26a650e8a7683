"""The command ``fastvae classify CHECKPOINT``."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch

from ..data.labelled import LabelledParts
from ..errors import RecipeError
from ..files import check_folder, write_json
from ..pictures.features import draw_features
from ..settings import to_plain
from ..systems.loading import load_checkpoint
from ..training.history import describe_machine
from ..uses.classify import ClassifySettings, classify, extract
from .settings import parse

__all__ = ["ClassifyOptions", "classify_checkpoint"]


@dataclass(frozen=True)
class ClassifyOptions:
    """The files.

    Args:
        checkpoint: what fastvae train m1 or fastvae import m1 wrote.
        out: folder that gets result.json and features.png.
    """

    checkpoint: Path = field(metadata={"positional": True, "metavar": "CHECKPOINT"})
    out: Path = field(default=Path("classify-out"), metadata={"metavar": "DIR"})
    settings: ClassifySettings = field(default_factory=ClassifySettings)


def classify_checkpoint(words: Sequence[str]) -> None:
    """Prints, writes and draws how well a classifier does on the latents of a checkpoint."""
    options = parse(
        ClassifyOptions,
        words,
        prog="fastvae classify",
        description="Train a classifier with few labels on the latents of a checkpoint, for several choices of the "
        "labels; print the mean error on the test images and its standard deviation, and draw the latents.",
    )
    settings = options.settings
    if find_spec("sklearn") is None:
        raise RecipeError('classify needs scikit-learn: pip install "fastvae-kernels[train]"')
    system, model, trained = load_checkpoint(options.checkpoint)
    parts = system.load_images(trained.training, progress=True)
    if not isinstance(parts, LabelledParts) or not hasattr(model, "encode"):
        raise RecipeError(
            f"{options.checkpoint} must be of a system with latents and labelled images, such as m1; "
            f"it is of {system.name}"
        )
    check_folder(options.out)
    began = time.perf_counter()
    data = extract(model, parts, settings.input)

    def report(seed: int, error: float, seconds: float) -> None:
        print(f"labels {seed:<4} error {error:.2f} %, {seconds:.0f} s", flush=True)

    figures = classify(data, settings, report=report)
    result = asdict(figures) | {
        "recipe": system.name,
        **to_plain(settings),
        "data": trained.training.data,
        "source": parts.source,
        "checkpoint": str(options.checkpoint),
        "seconds": time.perf_counter() - began,
        "command": shlex.join(sys.argv),
    }
    write_json(options.out / "result.json", result | describe_machine("auto", torch.device("cpu")))
    title = f"{system.name}: {settings.input} of test images"
    draw_features(data.test, data.y_test, options.out / "features.png", title=title)
    spread = "" if figures.deviation is None else f" ± {figures.deviation:.2f}"
    print(
        f"test error {figures.error:.2f}{spread} % ({settings.classifier} on {figures.features} {settings.input}, "
        f"{settings.labels} labels, {settings.draws} choices of them, {figures.test_images} images)"
    )
    print(f"result.json and features.png are in {options.out}")
