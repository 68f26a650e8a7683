"""The command ``fastvae demo``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import check_folder
from ..uses.demo import DemoSettings, run_demo
from .run_options import DEVICE, Accelerator, check_impl, quieten
from .settings import parse

__all__ = ["DemoOptions", "demo"]


@dataclass(frozen=True)
class DemoOptions:
    """The demonstration.

    Args:
        out: folder where everything is written.
        accelerator: device.
        progress: whether to show progress bars.
    """

    out: Path = field(default=Path("demo-out"), metadata={"metavar": "DIR"})
    accelerator: Accelerator = field(default="auto", metadata=DEVICE)
    progress: bool = True
    settings: DemoSettings = field(default_factory=DemoSettings)


def demo(words: Sequence[str]) -> None:
    """Trains, measures and draws a VAE with each posterior."""
    options = parse(
        DemoOptions,
        words,
        prog="fastvae demo",
        description="Train a VAE with a diagonal and one with a full-covariance Gaussian posterior on MNIST; print "
        "test ELBO, log p(x) and speed; write samples, reconstructions, a 2-D manifold and learning curves.",
        without=("posterior",),
    )
    quieten()
    check_impl(options.settings.model.impl, options.accelerator)
    check_folder(options.out)
    run_demo(options.out, options.settings, accelerator=options.accelerator, progress=options.progress)
