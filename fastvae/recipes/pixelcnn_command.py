"""The command ``fastvae train pixelcnn``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .options import check_impl, option_adder, quieten
from .pixel_command import add_common, add_network, add_training, run_options, say_end, say_progress, settled
from .pixel_config import PixelCNNConfig, PixelTrainConfig

__all__ = ["add_to"]

RECIPE = "pixelcnn"


def add_to(recipes: Any) -> None:
    """Adds the command to what ``add_subparsers`` returned."""
    command = recipes.add_parser(
        RECIPE,
        help="a PixelCNN or gated PixelCNN, on static binarised MNIST",
        description="Train a PixelCNN or a gated PixelCNN on static binarised MNIST (50 000 training images, "
        "binarized_mnist.npz in $FASTVAE_DATA or the user's cache); then print negative log-likelihoods of validation "
        "and test images and the speed of sampling, and draw samples and completed images. On N processes: torchrun "
        "--nproc-per-node N -m fastvae train pixelcnn.",
    )
    command.set_defaults(command=train, parser=command)
    add_common(command, "pixelcnn-out")
    add_network(option_adder(command, "model", PixelCNNConfig))
    add_training(command, PixelTrainConfig)


def train(options: argparse.Namespace) -> None:
    from .pixelcnn_training import load_pixelcnn, train_pixelcnn

    # After the import, which sets the level itself.
    quieten()
    model_config, config = settled(options, RECIPE, (PixelCNNConfig, PixelTrainConfig), load_pixelcnn)
    check_impl(model_config.impl, options.accelerator)
    run = train_pixelcnn(model_config, config, options.out, **run_options(options))
    if os.environ.get("RANK", "0") != "0":
        return
    say_progress(options, RECIPE, run, config.epochs)
    if (figures := run.figures) is not None:
        print(f"NLL        {figures.valid_nll:.2f} nats, validation ({figures.valid_images} images)")
        print(f"NLL        {figures.test_nll:.2f} nats, test ({figures.test_images} images)")
        say_end(options, figures)
