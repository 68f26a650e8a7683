"""The commands ``fastvae analogies | manifold CHECKPOINT``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..class_models.system import draw_transfer
from ..evaluation.bounds import spread
from ..files import check_target, write_json
from ..pictures.latents import draw_plane, draw_scatter
from ..settings import Implementation, check_whole
from ..systems.loading import load_checkpoint
from ..uses.analogies import check_analogies, measure_analogies
from ..uses.manifold import check_plane, find_means, make_decoder
from .run_options import check_impl
from .settings import parse
from .trained import PICTURE

__all__ = ["AnalogyOptions", "ManifoldOptions", "analogies", "manifold"]


@dataclass(frozen=True)
class AnalogyOptions:
    """The picture and the figures.

    Args:
        checkpoint: of a model with classes, which fastvae train wrote.
        out: the PNG file.
        count: test images in the picture.
        images: test images that the figures are measured on; 0 for no figures.
        known: training images that the classifier by three nearest neighbours knows.
        json: file that the figures are written to, too.
        impl: implementation of the ops.
    """

    checkpoint: Path = field(metadata={"positional": True, "metavar": "CHECKPOINT"})
    out: Path = field(default=Path("analogies.png"), metadata=PICTURE)
    count: int = 10
    images: int = 300
    known: int = 60_000
    json: Path | None = field(default=None, metadata={"metavar": "FILE"})
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_whole(self, count=1, images=0, known=1)
        if self.images == 1:
            raise ValueError("images must be 0, or at least 2 for a correlation, got 1")
        if self.json is not None and not self.images:
            raise ValueError("images must be >= 2 for figures in a file, got 0")


@dataclass(frozen=True)
class ManifoldOptions:
    """The pictures.

    Args:
        checkpoint: of a model with two latent dimensions, which fastvae train wrote.
        out: the PNG file of decoded means over the plane.
        scatter: the PNG file of encoded test images.
        size: images along an axis of the plane.
        count: test images in the scatter.
        label: the class to decode, where the model has classes.
        impl: implementation of the ops.
    """

    checkpoint: Path = field(metadata={"positional": True, "metavar": "CHECKPOINT"})
    out: Path = field(default=Path("manifold.png"), metadata=PICTURE)
    scatter: Path = field(default=Path("scatter.png"), metadata={"metavar": "FILE"})
    size: int = 20
    count: int = 10_000
    label: int | None = None
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_whole(self, size=1, count=1)
        if self.out == self.scatter:
            raise ValueError(f"--out and --scatter must name two files, got {self.out} twice")


def analogies(words: Sequence[str]) -> None:
    """Draws and measures analogies."""
    options = parse(
        AnalogyOptions,
        words,
        prog="fastvae analogies",
        description="Take the style z of test images under their labels, and decode it with every class; measure how "
        "often a classifier finds the class asked for, and how far slant and ink are those of the source.",
    )
    for path in (options.out, options.json):
        if path:
            check_target(path)
    check_impl(options.impl, "cpu")
    system, model, settings = load_checkpoint(options.checkpoint, impl=options.impl)
    check_analogies(system.name, model)
    images: Any = system.load_images(settings.training, progress=True)
    x, labels = find_test_images(system, images)
    draw_transfer(model, spread(x, options.count), spread(labels, options.count), options.out)
    print(options.out)
    if not options.images:
        return
    known = torch.from_numpy(images.x_train).flatten(1) / 255.0, torch.from_numpy(images.y_train).long()
    figures = measure_analogies(
        model, *(spread(part, options.images) for part in (x, labels)), *(spread(part, options.known) for part in known)
    )
    print(
        f"asked class {figures.asked_label:.1f} % ({figures.images} images under every class; the classifier's own "
        f"error {figures.classifier_error:.1f} %)",
        f"correlation {figures.slant:.2f} of the slants, {figures.ink:.2f} of the ink",
        sep="\n",
    )
    if options.json:
        write_json(options.json, asdict(figures))


def manifold(words: Sequence[str]) -> None:
    """Draws a latent plane."""
    options = parse(
        ManifoldOptions,
        words,
        prog="fastvae manifold",
        description="Draw the means of p(x | z) over the latent plane, at quantiles of the prior, and the means of "
        "q(z | x) of test images, by class.",
    )
    for path in (options.out, options.scatter):
        check_target(path)
    check_impl(options.impl, "cpu")
    system, model, settings = load_checkpoint(options.checkpoint, impl=options.impl)
    check_plane(system.name, model)
    decode = make_decoder(model, options.label)
    images = system.load_images(settings.training, progress=True)
    draw_plane(decode, options.out, size=options.size)
    print(options.out)
    x, labels = find_test_images(system, images)
    means = find_means(model, spread(x, options.count), spread(labels, options.count))
    draw_scatter(means, spread(labels, options.count), options.scatter)
    print(options.scatter)


def find_test_images(system: Any, images: Any) -> tuple[Tensor, Tensor]:
    """The test images as the system takes them, and their labels; 0 where the images have none."""
    x: Tensor = system.test_images(images)
    labels = getattr(images, "y_test", None)
    return x, torch.zeros(len(x), dtype=torch.int64) if labels is None else torch.from_numpy(labels).long()
