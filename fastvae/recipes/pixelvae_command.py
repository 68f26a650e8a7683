"""The command ``fastvae train pixelvae``."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .iaf_config import EvaluationConfig
from .options import check_impl, natural, option_adder, positive, quieten
from .pixel_command import add_common, add_network, add_training, run_options, say_end, say_progress, settled
from .pixel_config import DECODERS, LATENTS, PRIORS, PixelVAEConfig, PixelVAETrainConfig

__all__ = ["add_to"]

RECIPE = "pixelvae"
CONFIGS = (PixelVAEConfig, PixelVAETrainConfig, EvaluationConfig)


def add_to(recipes: Any) -> None:
    """Adds the command to what ``add_subparsers`` returned."""
    command = recipes.add_parser(
        RECIPE,
        help="a VAE with a PixelCNN as decoder, on static binarised MNIST",
        description="Train a PixelVAE on static binarised MNIST (50 000 training images, binarized_mnist.npz in "
        "$FASTVAE_DATA or the user's cache): a VAE whose decoder, and with a map of latents whose prior, is a "
        "PixelCNN; --levels 2 is the hierarchical one. Then print test bound and importance-sampled log p(x), and "
        "draw samples, reconstructions and interpolations. On N processes: torchrun --nproc-per-node N -m fastvae "
        "train pixelvae.",
    )
    command.set_defaults(command=train, parser=command)
    add_common(command, "pixelvae-out")
    add_model(command)
    add = add_training(command, PixelVAETrainConfig)
    add("--kl-warmup", "kl_warmup", "steps until the KL terms have weight 1", type=natural, metavar="N")
    text = "free nats of each KL term, a sum over its latent's dimensions"
    add("--free-bits", "free_bits", text, type=float, metavar="L")
    add_evaluation(command)


def add_model(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "model", PixelVAEConfig)
    add("--levels", "levels", "levels of latents", type=positive, choices=(1, 2))
    add("--latent", "latent", "z is a vector or a map of 7 x 7; auto: map with two levels", choices=("auto", *LATENTS))
    add("--latent-features", "latent_features", "dimensions of the vector", type=positive, metavar="D")
    add("--latent-maps", "latent_maps", "channels of the map", type=positive, metavar="C")
    add("--prior", "prior", "of the map; auto: pixelcnn with two levels", choices=("auto", *PRIORS))
    add("--prior-layers", "prior_layers", "layers of a PixelCNN prior", type=positive, metavar="L")
    add("--prior-filter", "prior_filter_size", "its kernels", type=positive, metavar="K")
    add("--prior-maps", "prior_maps", "its feature maps", type=positive, metavar="M")
    text = "z is a bias of every layer, or upsampled; conv: no PixelCNN; auto: bias, of a map upsampling"
    add("--decoder", "decoder", text, choices=("auto", *DECODERS))
    add("--decoder-maps", "decoder_maps", "maps that upsampling ends with", type=positive, metavar="M")
    add("--encoder-maps", "encoder_maps", "of the encoder's stages", type=positive, nargs=3, metavar="M")
    add_network(add)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "evaluation", EvaluationConfig)
    add("--samples", "samples", "importance samples K for log p(x)", type=positive, metavar="K")
    add("--images", "log_p_images", "test images for log p(x), spread evenly", type=positive, metavar="N")
    add("--image-chunk", "image_chunk", "images at a time", type=positive, metavar="N")
    add("--sample-chunk", "sample_chunk", "samples of each image at a time", type=positive, metavar="K")


def train(options: argparse.Namespace) -> None:
    from .pixelvae_training import load_pixelvae, train_pixelvae

    # After the import, which sets the level itself.
    quieten()
    model_config, config, evaluation = settled(options, RECIPE, CONFIGS, load_pixelvae)
    check_impl(model_config.impl, options.accelerator)
    run = train_pixelvae(model_config, config, options.out, evaluation=evaluation, **run_options(options))
    if os.environ.get("RANK", "0") != "0":
        return
    say_progress(options, RECIPE, run, config.epochs)
    if (figures := run.figures) is not None:
        terms = " + ".join(f"{term:.2f}" for term in figures.kl_terms)
        print(f"bound      {figures.elbo:.2f} nats, of which KL {terms} ({figures.elbo_images} test images)")
        print(
            f"log p(x)   {figures.log_p:.2f} nats (K = {figures.samples}, {figures.log_p_images} test images; "
            f"{figures.effective_samples:.1f} effective samples)"
        )
        say_end(options, figures)
