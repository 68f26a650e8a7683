"""The command line, also as ``python -m fastvae``.

``fastvae report | train RECIPE | evaluate | compress | decompress | demo``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from math import isfinite
from pathlib import Path

from . import backend
from ._version import __version__
from .recipes import (
    RecipeError,
    compress_command,
    iaf_command,
    pixelcnn_command,
    pixelvae_command,
    posterior2d_command,
)
from .recipes.config import KL_KINDS, POSTERIORS, PRECISIONS, DemoConfig, TrainConfig, VAEConfig
from .recipes.options import (
    Parser,
    add_accelerator,
    add_folder,
    build,
    check_impl,
    given,
    one_line,
    option_adder,
    positive,
    quieten,
    seed,
)
from .recipes.paths import check_target, replace_file

__all__ = ["main"]

EXTRA = ("lightning", "matplotlib", "tqdm")
TRACEBACK = "FASTVAE_TRACEBACK"
STOPPED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Whatever goes wrong is one line on the standard error; with ``$FASTVAE_TRACEBACK`` set, Python's traceback instead.

    Args:
        arguments: those after the program's name; the process's own if None.

    Returns:
        The exit status: 0, 1 after an error, 130 after an interrupt.

    Raises:
        SystemExit: with status 2, where the arguments do not fit; with 0, after ``--help`` and ``--version``.
    """
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.command is not report and (missing := [name for name in EXTRA if find_spec(name) is None]):
        return fail(f'this command needs {", ".join(missing)}: pip install "fastvae-kernels[train]"')
    try:
        options.command(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        fail("stopped by SIGINT")
        return STOPPED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        return fail(explained(error))
    return 0


def explained(error: Exception) -> str:
    """What the person at the command line reads of an error."""
    said = str(error)
    if isinstance(error, RecipeError):
        return said
    if isinstance(error, MemoryError) or "allocate memory" in said:
        return f"there is not enough memory: choose smaller sizes or batches ({said or 'MemoryError'})"
    if isinstance(error, BrokenPipeError):
        # Python would try to write the rest at its end, and complain.
        sys.stdout = open(os.devnull, "w")
        return "the output was closed before all of it was written"
    if isinstance(error, OSError):
        said = error.strerror or said
        return f"{error.filename}: {said}" if error.filename is not None else f"reading or writing failed: {said}"
    # Values that do not fit, and implementations that cannot run, explain themselves.
    if type(error) in (RuntimeError, TypeError, ValueError) and said:
        return said
    return f"unexpected {type(error).__name__}: {said}; {TRACEBACK}=1 shows where: please report it"


def fail(message: str) -> int:
    print(f"fastvae: error: {one_line(message)}", file=sys.stderr)
    return 1


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fastvae",
        description="Variational auto-encoders on fast kernels.",
        epilog="MNIST is looked for in $FASTVAE_DATA and in the user's cache before it is downloaded.",
    )
    parser.add_argument("--version", action="version", version=f"fastvae {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("report", help="which implementation runs on which device, and why")
    command.set_defaults(command=report)

    recipes = commands.add_parser("train", help="train a model").add_subparsers(required=True, metavar="RECIPE")
    command = recipes.add_parser(
        "vae",
        help="a VAE with a Gaussian posterior on dynamically binarised MNIST",
        description="Train a VAE on dynamically binarised MNIST. On N processes: torchrun --nproc-per-node N "
        "-m fastvae train vae; the losses do not depend on N.",
    )
    command.set_defaults(command=train_vae, parser=command)
    add_folder(command, "vae-out")
    command.add_argument(
        "--resume", type=Path, metavar="CHECKPOINT", help="continue an interrupted run, configured as it was"
    )
    add_accelerator(command)
    add = option_adder(command, "posterior", VAEConfig)
    add("--posterior", "posterior", "covariance of q(z | x): diagonal or full", choices=POSTERIORS)
    add_model(command)
    add_training(command)
    iaf_command.add_to(recipes)
    pixelcnn_command.add_to(recipes)
    pixelvae_command.add_to(recipes)
    posterior2d_command.add_to(recipes)

    command = commands.add_parser(
        "evaluate",
        help="test ELBO and log p(x) of a checkpoint",
        description="Test ELBO and importance-sampled log p(x) of a checkpoint, on the test images of MNIST "
        "under one fixed binarisation.",
    )
    command.set_defaults(command=evaluate, parser=command)
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what fastvae train or demo wrote")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file, too")
    add_accelerator(command)
    command.add_argument("--impl", choices=backend.IMPLEMENTATIONS, help="instead of the checkpoint's own")
    command.add_argument(
        "--seed",
        type=seed,
        default=0,
        metavar="N",
        help="of binarisation and noise (default: %(default)s)",
    )
    add_evaluation(command)

    compress_command.add_to(commands)

    command = commands.add_parser(
        "demo",
        help="train a VAE with each posterior, measure and draw",
        description="Train a VAE with a diagonal and one with a full-covariance Gaussian posterior on MNIST; "
        "print test ELBO, log p(x) and speed; write samples, reconstructions, a 2-D manifold and learning "
        "curves.",
    )
    command.set_defaults(command=demo, parser=command)
    add_folder(command, "demo-out")
    add_accelerator(command)
    add = option_adder(command, "demonstration", DemoConfig)
    add(
        "--manifold-epochs",
        "manifold_epochs",
        "epochs of the two-dimensional model",
        type=positive,
        metavar="N",
    )
    add_evaluation(command)
    add_model(command)
    add_training(command)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "model", VAEConfig)
    add("--latent", "latent_features", "dimensions of z", type=positive, metavar="D")
    add("--hidden", "hidden_features", "widths of the hidden layers", type=positive, nargs="+", metavar="H")
    add("--tril-scale", "tril_scale", "factor on the entries below the diagonal", type=float, metavar="S")
    add("--kl", "kl", "the KL term to train with", choices=KL_KINDS)
    add("--impl", "impl", "implementation of the posterior", choices=backend.IMPLEMENTATIONS)


def add_training(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "training", TrainConfig)
    add("--epochs", "epochs", "passes over the training images", type=positive, metavar="N")
    add("--batch-size", "batch_size", "images in a step, of all processes", type=positive, metavar="N")
    add("--learning-rate", "learning_rate", "peak of the one-cycle schedule", type=float, metavar="R")
    add("--kl-warmup", "kl_warmup", "epochs until the KL term has weight 1", type=float, metavar="N")
    add("--seed", "seed", "of weights, order, binarisation and noise", type=seed, metavar="N")
    add("--precision", "precision", "Lightning's name of it", choices=PRECISIONS)


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = option_adder(parser, "evaluation", DemoConfig)
    add("--samples", "samples", "importance samples K for log p(x)", type=positive, metavar="K")
    add("--images", "log_p_images", "test images for log p(x)", type=positive, metavar="N")


def report(options: argparse.Namespace) -> None:
    print(backend.report())


def train_vae(options: argparse.Namespace) -> None:
    from .recipes.training import load_checkpoint, train

    # After the import, which sets the level itself.
    quieten()
    if options.resume is None:
        model_config, config = build(options, VAEConfig), build(options, TrainConfig)
    else:
        contradicting = sorted(given(options, VAEConfig) | given(options, TrainConfig))
        if contradicting:
            options.parser.error(f"--resume takes {', '.join(contradicting)} from the checkpoint; leave it out")
        model, config = load_checkpoint(options.resume)
        model_config = model.config
    check_impl(model_config.impl, options.accelerator)
    result = train(model_config, config, options.out, resume=options.resume, accelerator=options.accelerator)
    if os.environ.get("RANK", "0") == "0":
        print(f"{result.images_per_second:.0f} images/s; the losses are in {result.log_folder}")
        print(f"next: fastvae evaluate {result.checkpoint}")


def evaluate(options: argparse.Namespace) -> None:
    from .recipes.batches import binarize_fixed
    from .recipes.data import load_mnist
    from .recipes.iaf_training import load_model
    from .recipes.trainer import device_of
    from .recipes.vae import evaluate as evaluate_model

    if options.json:
        check_target(options.json)
    device = device_of(options.accelerator)
    model = load_model(options.checkpoint, impl=options.impl)
    check_impl(model.config.impl, options.accelerator)
    x = binarize_fixed(load_mnist().x_test, options.seed)
    wanted = given(options, DemoConfig)
    figures = evaluate_model(model.to(device), x, **wanted, seed=options.seed, progress=True)
    print(f"test ELBO  {figures.elbo:.2f} nats, of which KL {figures.kl:.2f} ({figures.elbo_images} images)")
    print(
        f"log p(x)   {figures.log_p:.2f} nats (K = {figures.samples}, {figures.log_p_images} images; "
        f"{figures.effective_samples:.1f} effective samples)"
    )
    plain = asdict(figures)
    # JSON has no number for what is not finite.
    found = {name: value if isfinite(value) else None for name, value in plain.items()}
    if options.json:
        replace_file(options.json, (json.dumps(found, indent=2, allow_nan=False) + "\n").encode())
    if found != plain:
        raise RecipeError(f"the figures of {options.checkpoint} are not finite: its training diverged")


def demo(options: argparse.Namespace) -> None:
    from .recipes.demo import run_demo

    quieten()
    parts = {"model": build(options, VAEConfig), "training": build(options, TrainConfig)}
    check_impl(parts["model"].impl, options.accelerator)
    run_demo(options.out, DemoConfig(**parts, **given(options, DemoConfig)), accelerator=options.accelerator)


if __name__ == "__main__":
    sys.exit(main())
