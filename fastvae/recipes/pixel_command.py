"""What the commands ``fastvae train pixelcnn`` and ``fastvae train pixelvae`` share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..backend import IMPLEMENTATIONS
from .config import PRECISIONS
from .config_file import read_config_file
from .options import add_accelerator, add_folder, built, given, natural, option_adder, positive, seed
from .pixel_config import NETWORKS
from .static_data import DATA_KINDS

__all__ = ["add_common", "add_network", "add_training", "run_options", "say_end", "say_progress", "settled"]


def add_common(command: argparse.ArgumentParser, folder: str) -> None:
    add_folder(command, folder)
    command.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML or JSON with any of the settings below by their names in config.json; options win over it",
    )
    command.add_argument(
        "--resume", type=Path, metavar="CHECKPOINT", help="continue an interrupted run, configured as it was"
    )
    command.add_argument(
        "--limit-epochs", type=positive, metavar="N", help="stop after N epochs of this call; --resume goes on"
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_accelerator(command)


def add_network(add: Callable[..., None]) -> None:
    add("--network", "network", "kind of PixelCNN over the image", choices=NETWORKS)
    add("--layers", "layers", "its layers", type=positive, metavar="L")
    add("--filter", "filter_size", "kernel of its layers", type=positive, metavar="K")
    add("--first-filter", "first_filter_size", "kernel of its first layer", type=positive, metavar="K")
    add("--maps", "maps", "feature maps of its layers", type=positive, metavar="M")
    add("--head-maps", "head_maps", "between its last two layers; 0: as its layers", type=natural, metavar="M")
    add("--impl", "impl", "implementation", choices=IMPLEMENTATIONS)


def add_training(parser: argparse.ArgumentParser, config: type) -> Callable[..., None]:
    add = option_adder(parser, "training", config)
    on_or_off: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    add("--data", "data", "static binarised MNIST, or MNIST binarised for every batch", choices=DATA_KINDS)
    add("--add-validation", "add_validation", "train on the validation images, too", **on_or_off)
    add("--epochs", "epochs", "passes over the training images", type=positive, metavar="N")
    add("--batch-size", "batch_size", "images in a step, of all processes", type=positive, metavar="N")
    add("--learning-rate", "learning_rate", "of Adam", type=float, metavar="R")
    add("--final-learning-rate", "final_learning_rate", "at the end of the decay", type=float, metavar="R")
    add("--decay-from", "decay_from", "share of the steps before the decay", type=float, metavar="P")
    add("--average-decay", "average_decay", "of the moving average of the weights", type=float, metavar="A")
    add("--seed", "seed", "of weights, order, binarisation and noise", type=seed, metavar="N")
    add("--precision", "precision", "Lightning's name of it", choices=PRECISIONS)
    add("--check-every", "check_every", "epochs from one test and checkpoint to the next", type=positive, metavar="N")
    return add


def settled(
    options: argparse.Namespace, recipe: str, configs: Sequence[type], load: Callable[[Path], tuple[Any, Any]]
) -> list[Any]:
    """The configurations of model, training and whatever follows, from checkpoint, file and options.

    Args:
        options: what was parsed.
        recipe: its name.
        configs: their classes; the first two are those that a checkpoint keeps.
        load: reads a checkpoint.
    """
    chosen = {} if options.config is None else read_config_file(options.config, recipe, configs)
    for kind in configs:
        chosen |= given(options, kind)
    if options.resume is None:
        return [built(options, kind, chosen) for kind in configs]
    model, config = load(options.resume)
    ours = vars(model.config) | vars(config)
    for name in sorted(ours.keys() & chosen.keys()):
        if chosen[name] != ours[name]:
            options.parser.error(
                f"--resume continues a run with {name} = {ours[name]!r}; it cannot become {chosen[name]!r}"
            )
    return [model.config, config, *(built(options, kind, chosen) for kind in configs[2:])]


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a training that are no configuration."""
    return {
        "resume": options.resume,
        "limit_epochs": options.limit_epochs,
        "accelerator": options.accelerator,
        "progress": not options.no_progress,
    }


def say_progress(options: argparse.Namespace, recipe: str, run: Any, epochs: int) -> None:
    print(f"{run.epochs} of {epochs} epochs, {run.images_per_second:.0f} images/s")
    if run.epochs < epochs:
        print(f"next: fastvae train {recipe} --resume {run.checkpoint} --out {options.out}")


def say_end(options: argparse.Namespace, figures: Any) -> None:
    speed = figures.sampled_images_per_second
    print(f"sampling   {speed:.1f} images/s, in batches of 64")
    print(f"config.json, metrics.csv, result.json, pictures and the checkpoint are in {options.out}")
