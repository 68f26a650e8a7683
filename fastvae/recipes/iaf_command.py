"""The command ``fastvae train iaf_vae``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..backend import IMPLEMENTATIONS
from ..reference.affine_flow import KINDS
from .config import PRECISIONS
from .config_file import read_config_file
from .iaf_config import IAF_BASES, IAF_POSTERIORS, EvaluationConfig, IAFTrainConfig, IAFVAEConfig
from .options import add_accelerator, add_folder, built, check_impl, given, option_adder, positive, quieten, seed

__all__ = ["add_to"]

CONFIGS = (IAFVAEConfig, IAFTrainConfig, EvaluationConfig)


def add_to(recipes: Any) -> None:
    """Adds the command to what ``add_subparsers`` returned."""
    command = recipes.add_parser(
        "iaf_vae",
        help="a convolutional VAE whose posterior is an inverse autoregressive flow, on MNIST",
        description="Train a convolutional ResNet VAE with a diagonal, a full-covariance or an inverse "
        "autoregressive flow posterior on dynamically binarised MNIST (60 000 training images); then print test ELBO "
        "and importance-sampled log p(x), and draw. On N processes: torchrun --nproc-per-node N -m fastvae train "
        "iaf_vae.",
    )
    command.set_defaults(command=train_iaf, parser=command)
    add_folder(command, "iaf-out")
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
    add_model(command)
    add_training(command)
    add_evaluation(command)


def add_model(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "model", IAFVAEConfig)
    add("--posterior", "posterior", "q(z | x)", choices=IAF_POSTERIORS)
    add("--depth", "depth", "flow steps", type=positive, metavar="T")
    add("--width", "width", "width of the two hidden layers of each step", type=positive, metavar="W")
    add("--base", "base", "the Gaussian that the flow starts from", choices=IAF_BASES)
    add("--kind", "kind", "the flow's affine step", choices=KINDS)
    add("--latent", "latent_features", "dimensions of z", type=positive, metavar="D")
    add("--maps", "feature_maps", "feature maps of the encoder's stages", type=positive, nargs="+", metavar="M")
    add("--dense", "dense_features", "width of the dense layer, and of the context", type=positive, metavar="H")
    add("--tril-scale", "tril_scale", "factor on the entries below the diagonal", type=float, metavar="S")
    add("--impl", "impl", "implementation of the posterior", choices=IMPLEMENTATIONS)


def add_training(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "training", IAFTrainConfig)
    add("--epochs", "epochs", "passes over the training images", type=positive, metavar="N")
    add("--batch-size", "batch_size", "images in a step, of all processes", type=positive, metavar="N")
    add("--learning-rate", "learning_rate", "of Adamax", type=float, metavar="R")
    add("--final-learning-rate", "final_learning_rate", "at the end of the decay", type=float, metavar="R")
    add("--decay-from", "decay_from", "share of the steps before the decay", type=float, metavar="P")
    add("--free-bits", "free_bits", "free nats in every latent dimension", type=float, metavar="L")
    add("--average-decay", "average_decay", "of the moving average of the weights", type=float, metavar="A")
    add("--seed", "seed", "of weights, order, binarisation and noise", type=seed, metavar="N")
    add("--precision", "precision", "Lightning's name of it", choices=PRECISIONS)
    add("--compile", "compile", "torch.compile encoder and decoder", action=argparse.BooleanOptionalAction)
    add("--check-every", "check_every", "epochs from one test and checkpoint to the next", type=positive, metavar="N")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "evaluation", EvaluationConfig)
    add("--samples", "samples", "importance samples K for log p(x)", type=positive, metavar="K")
    add("--images", "log_p_images", "test images for log p(x)", type=positive, metavar="N")
    add("--image-chunk", "image_chunk", "images at a time", type=positive, metavar="N")
    add("--sample-chunk", "sample_chunk", "samples of each image at a time", type=positive, metavar="K")


def train_iaf(options: argparse.Namespace) -> None:
    from .iaf_training import load_averaged, train_iaf_vae

    # After the import, which sets the level itself.
    quieten()
    chosen = {} if options.config is None else read_config_file(options.config, "iaf_vae", CONFIGS)
    for kind in CONFIGS:
        chosen |= given(options, kind)
    if options.resume is not None:
        model, config = load_averaged(options.resume)
        model_config = model.config
        ours = vars(model_config) | vars(config)
        for name in sorted(ours.keys() & chosen.keys()):
            if chosen[name] != ours[name]:
                options.parser.error(
                    f"--resume continues a run with {name} = {ours[name]!r}; it cannot become {chosen[name]!r}"
                )
    else:
        model_config, config = built(options, IAFVAEConfig, chosen), built(options, IAFTrainConfig, chosen)
    evaluation = built(options, EvaluationConfig, chosen)
    check_impl(model_config.impl, options.accelerator)
    run = train_iaf_vae(
        model_config,
        config,
        options.out,
        evaluation=evaluation,
        resume=options.resume,
        limit_epochs=options.limit_epochs,
        accelerator=options.accelerator,
        progress=not options.no_progress,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"{run.epochs} of {config.epochs} epochs, {run.images_per_second:.0f} images/s")
    if run.epochs < config.epochs:
        print(f"next: fastvae train iaf_vae --resume {run.checkpoint} --out {options.out}")
    elif (figures := run.evaluation) is not None:
        print(f"test ELBO  {figures.elbo:.2f} nats, of which KL {figures.kl:.2f} ({figures.elbo_images} images)")
        print(
            f"log p(x)   {figures.log_p:.2f} nats (K = {figures.samples}, {figures.log_p_images} images; "
            f"{figures.effective_samples:.1f} effective samples)"
        )
        print(f"config.json, metrics.csv, result.json, pictures and the checkpoint are in {options.out}")
