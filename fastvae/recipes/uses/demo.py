"""The demonstration: a VAE with each posterior, trained, measured and drawn."""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ... import backend
from ..._version import __version__
from ..data.batches import BinarizedImages, JointBatches, binarize_fixed
from ..data.mnist import Mnist, load_mnist
from ..evaluation.config import EvaluationConfig
from ..files import to_finite, write_json
from ..pictures.curves import draw_learning_curves
from ..pictures.grids import draw_reconstructions, draw_samples
from ..pictures.latents import draw_manifold
from ..settings import check_whole
from ..systems.vae.config import POSTERIORS, VAEConfig, VAESettings, VAETrainConfig
from ..systems.vae.model import VAE
from ..systems.vae.system import SYSTEM
from ..training.folder import hold_folder
from ..training.history import curves_of
from ..training.run import Run
from ..training.trainer import device_of
from .demo_speed import WAYS, measure_evaluation, measure_steps

__all__ = ["DemoConfig", "DemoSettings", "format_table", "run_demo"]

_WORDS = {"fastvae": "fastvae", "reference": "eager PyTorch", "compile": "torch.compile"}


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration does besides training and evaluation, as plain data.

    Args:
        manifold_epochs: epochs of the model with two latent dimensions.
        timed_steps: training steps timed for each way of running them, and a third as many chunks of the evaluation.
        compiler: whether to time ``torch.compile``, too.

    Raises:
        ValueError: a number is below 1 or above :data:`~fastvae.recipes.settings.MOST_WHOLE`.
    """

    manifold_epochs: int = 8
    timed_steps: int = 150
    compiler: bool = True

    def __post_init__(self) -> None:
        check_whole(self, manifold_epochs=1, timed_steps=1)


@dataclass(frozen=True)
class DemoSettings:
    """All settings of a demonstration, which replaces the posterior of ``model`` by each kind."""

    model: VAEConfig = field(default_factory=VAEConfig)
    training: VAETrainConfig = field(default_factory=VAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    demonstration: DemoConfig = field(default_factory=DemoConfig)


def run_demo(
    folder: Path,
    settings: DemoSettings | None = None,
    *,
    mnist: Mnist | None = None,
    accelerator: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates, times and draws; prints the table and writes it to ``folder / "results.json"``.

    It replaces an earlier demonstration in ``folder``, finished or not.

    Args:
        folder: where checkpoints, pictures and results go.
        settings: what to do.
        mnist: the images; looked for by :func:`~fastvae.recipes.data.mnist.load_mnist` if None.
        accelerator: Lightning's: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: whether to show progress bars.

    Returns:
        The results as plain data.

    Raises:
        RecipeError: MNIST cannot be had, ``folder`` is in use or cannot be written, or a training fails.
    """
    settings = DemoSettings() if settings is None else settings
    started = time.perf_counter()
    with hold_folder(folder):
        device = device_of(accelerator)
        mnist = load_mnist(progress=progress) if mnist is None else mnist
        announce(mnist)
        how = {"images": mnist, "accelerator": accelerator, "progress": progress, "overwrite": True}
        runs, rows = {}, {}
        for posterior in POSTERIORS:
            runs[posterior], rows[posterior] = show_posterior(posterior, folder, settings, device, how)
        plane = show_plane(folder, settings, how)
        draw_all(runs, plane, mnist, folder)
        results = {
            "posteriors": rows,
            "config": asdict(settings),
            "seconds": time.perf_counter() - started,
            "versions": {"fastvae": __version__, "torch": torch.__version__, "python": platform.python_version()},
            "threads": torch.get_num_threads(),
            "mnist": mnist.source,
        }
        write_json(folder / "results.json", results)
    print("\n" + format_table(rows))
    print(f"\n{results['seconds']:.0f} s in all; pictures, checkpoints and results.json are in {folder}")
    return results


def announce(mnist: Mnist) -> None:
    print(backend.report(), f"threads: {torch.get_num_threads()}", f"MNIST: {mnist.source}", sep="\n", flush=True)


def show_posterior(
    posterior: Any, folder: Path, settings: DemoSettings, device: torch.device, how: dict[str, Any]
) -> tuple[Run, dict[str, Any]]:
    """Trains a model with this posterior; its run, and its row of the table."""
    images = how["images"]
    print(f"\n{posterior} posterior: {settings.training.epochs} epochs on {len(images.x_train)} images", flush=True)
    model = replace(settings.model, posterior=posterior)
    run = SYSTEM.run(VAESettings(model, settings.training, settings.evaluation), folder / posterior, **how)
    batches = JointBatches(len(images.x_train), settings.training.batch_size, settings.training.seed)
    batch = BinarizedImages(images.x_train)[next(iter(batches))].to(device)
    chunk = binarize_fixed(images.x_test)[: settings.evaluation.image_chunk].to(device)
    rounds, compiler = settings.demonstration.timed_steps, settings.demonstration.compiler
    steps = measure_steps(model, settings.training, batch, rounds, compiler=compiler)
    evaluations = measure_evaluation(model, settings.evaluation, chunk, -(-rounds // 3), compiler=compiler)
    return run, to_finite(asdict(run.figures)) | {
        "images_per_second": run.images_per_second,
        "step_ms": steps["fastvae"],
        "reference_step_ms": steps["reference"],
        "compile_step_ms": steps["compile"],
        "evaluation_ms": evaluations["fastvae"],
        "reference_evaluation_ms": evaluations["reference"],
        "compile_evaluation_ms": evaluations["compile"],
        "checkpoint": str(run.checkpoint.relative_to(folder)),
    }


def show_plane(folder: Path, settings: DemoSettings, how: dict[str, Any]) -> VAE:
    """Trains a model with two latent dimensions."""
    epochs = settings.demonstration.manifold_epochs
    print(f"\n2-D manifold: {epochs} epochs with two latent dimensions", flush=True)
    plane = VAESettings(replace(settings.model, latent_features=2), replace(settings.training, epochs=epochs))
    model: VAE = SYSTEM.run(plane, folder / "manifold", finish=False, **how).model
    return model


def draw_all(runs: dict[str, Run], plane: VAE, mnist: Mnist, folder: Path) -> None:
    """Draws the posteriors side by side, and the plane."""
    models = {name: run.model for name, run in runs.items()}
    draw_samples(models, folder / "samples.png")
    draw_reconstructions(models, binarize_fixed(mnist.x_test)[:12], folder / "reconstructions.png")
    draw_manifold(plane, folder / "manifold.png")
    histories = {name: curves_of(run.history, ("train_elbo", "test_elbo")) for name, run in runs.items()}
    first = next(iter(runs.values()))
    draw_learning_curves(histories, int(first.history[0]["step"]), folder / "learning_curves.png")


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each quantity, one column for each posterior."""
    first = next(iter(rows.values()))
    lines = [
        ("", list(rows)),
        (
            f"test ELBO, nats ({first['elbo_images']} images)",
            [f"{row['elbo']:.2f}" for row in rows.values()],
        ),
        ("  of which KL, nats", [f"{row['kl']:.2f}" for row in rows.values()]),
        (
            f"log p(x), nats (K = {first['samples']}, {first['log_p_images']} images)",
            [f"{row['log_p']:.2f}" for row in rows.values()],
        ),
        ("training, images/s", [f"{row['images_per_second']:.0f}" for row in rows.values()]),
        *format_times("training step", "step_ms", rows),
        *format_times("evaluation of a chunk", "evaluation_ms", rows),
    ]
    width = max(len(label) for label, _ in lines)
    rendered = [label.ljust(width) + "".join(cell.rjust(16) for cell in cells) for label, cells in lines]
    rendered.insert(1, "-" * len(rendered[0]))
    return "\n".join(rendered)


def format_times(what: str, key: str, rows: dict[str, dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A line of milliseconds for each way, and how many times faster fastvae is than each other one."""
    found = {name: [row[key if name == "fastvae" else f"{name}_{key}"] for row in rows.values()] for name in WAYS}
    lines = []
    for name, times in found.items():
        cells = ["-" if value is None else f"{value:.2f}" for value in times]
        if name != "fastvae":
            pairs = zip(cells, times, found["fastvae"], strict=True)
            cells = [cell if value is None else f"{cell} ({value / own:.2f}x)" for cell, value, own in pairs]
        lines.append((f"{what}, {_WORDS[name]}, ms", cells))
    return lines
