"""The demonstration: a VAE with each of the two posteriors, trained, measured and drawn."""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import backend
from .._version import __version__
from .batches import BinarizedImages, JointBatches, binarize_fixed
from .config import POSTERIORS, DemoConfig, TrainConfig, VAEConfig
from .data import Mnist, load_mnist
from .files import held, write_json
from .pictures import draw_learning_curves, draw_manifold, draw_reconstructions, draw_samples
from .trainer import device_of
from .training import load_checkpoint, read_history, train
from .vae import VAE, evaluate

__all__ = ["run_demo", "step_times"]


def run_demo(
    folder: Path,
    config: DemoConfig | None = None,
    *,
    mnist: Mnist | None = None,
    accelerator: str = "auto",
    progress: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates, times and draws; prints the table and writes it to ``folder / "results.json"``.

    What an earlier demonstration left in ``folder`` is replaced, finished or not.

    Args:
        folder: where checkpoints, pictures and results go.
        config: what to do.
        mnist: the images; looked for by :func:`~fastvae.recipes.data.load_mnist` if None.
        accelerator: Lightning's: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: whether to show progress bars.

    Returns:
        The results as plain data.

    Raises:
        RecipeError: MNIST cannot be had, ``folder`` is in use or cannot be written, or a training fails.
    """
    config = DemoConfig() if config is None else config
    with held(folder):
        return demonstrate(folder, config, mnist, accelerator, progress)


def demonstrate(
    folder: Path, config: DemoConfig, mnist: Mnist | None, accelerator: str, progress: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    device = device_of(accelerator)
    mnist = load_mnist(progress=progress) if mnist is None else mnist
    print(
        backend.report(),
        f"threads: {torch.get_num_threads()}",
        f"MNIST: {mnist.source}",
        sep="\n",
        flush=True,
    )
    x_test = binarize_fixed(mnist.x_test)
    models, histories, rows = {}, {}, {}
    for posterior in POSTERIORS:
        print(
            f"\n{posterior} posterior: {config.training.epochs} epochs on {len(mnist.x_train)} images",
            flush=True,
        )
        model_config = replace(config.model, posterior=posterior)
        result = train(
            model_config,
            config.training,
            folder / posterior,
            mnist=mnist,
            accelerator=accelerator,
            progress=progress,
            overwrite=True,
        )
        models[posterior], _ = load_checkpoint(result.checkpoint)
        histories[posterior] = read_history(result.log_folder)
        evaluation = evaluate(
            models[posterior].to(device),
            x_test,
            samples=config.samples,
            log_p_images=config.log_p_images,
            progress=progress,
        )
        models[posterior].cpu()
        times = step_times(model_config, config.training, mnist, config.timed_steps, device=device)
        rows[posterior] = asdict(evaluation) | {
            "images_per_second": result.images_per_second,
            "step_ms": times["fastvae"],
            "reference_step_ms": times["reference"],
            "checkpoint": str(result.checkpoint.relative_to(folder)),
        }
    print(f"\n2-D manifold: {config.manifold_epochs} epochs with two latent dimensions", flush=True)
    plane = train(
        replace(config.model, latent_features=2),
        replace(config.training, epochs=config.manifold_epochs),
        folder / "manifold",
        mnist=mnist,
        accelerator=accelerator,
        progress=progress,
        overwrite=True,
    )
    draw_samples(models, folder / "samples.png")
    draw_reconstructions(models, x_test[:12], folder / "reconstructions.png")
    draw_manifold(plane.model, folder / "manifold.png")
    steps_per_epoch = len(mnist.x_train) // config.training.batch_size
    draw_learning_curves(histories, steps_per_epoch, folder / "learning_curves.png")
    results = {
        "posteriors": rows,
        "config": asdict(config),
        "seconds": time.perf_counter() - started,
        "versions": {"fastvae": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "mnist": mnist.source,
    }
    write_json(folder / "results.json", results)
    print("\n" + table(rows))
    print(f"\n{results['seconds']:.0f} s in all; pictures, checkpoints and results.json are in {folder}")
    return results


def step_times(
    model_config: VAEConfig,
    config: TrainConfig,
    mnist: Mnist,
    steps: int,
    *,
    warmup: int = 10,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Median milliseconds of a training step (forward, backward, Adam): ``"fastvae"`` and ``"reference"``.

    The model of the configuration and the one with ``impl="reference"`` take turns on the same batch.
    """
    batches = JointBatches(len(mnist.x_train), config.batch_size, config.seed)
    x = BinarizedImages(mnist.x_train)[next(iter(batches))].to(device)
    stepping = {}
    for name, impl in (("fastvae", model_config.impl), ("reference", "reference")):
        torch.manual_seed(config.seed)
        model = VAE(replace(model_config, impl=impl)).to(device)
        stepping[name] = (model, torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True))
    times: dict[str, list[float]] = {name: [] for name in stepping}
    for _ in range(warmup + steps):
        for name, (model, optimizer) in stepping.items():
            times[name].append(timed_step(model, optimizer, x))
    return {name: statistics.median(values[warmup:]) for name, values in times.items()}


def timed_step(model: VAE, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    (-model.bound(x).mean()).backward()
    optimizer.step()
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (time.perf_counter() - start) * 1e3


def table(rows: dict[str, dict[str, Any]]) -> str:
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
        ("training step, fastvae, ms", [f"{row['step_ms']:.2f}" for row in rows.values()]),
        ("training step, reference, ms", [f"{row['reference_step_ms']:.2f}" for row in rows.values()]),
        (
            "  reference / fastvae",
            [f"{row['reference_step_ms'] / row['step_ms']:.2f}" for row in rows.values()],
        ),
    ]
    width = max(len(label) for label, _ in lines)
    rendered = [label.ljust(width) + "".join(cell.rjust(13) for cell in cells) for label, cells in lines]
    rendered.insert(1, "-" * len(rendered[0]))
    return "\n".join(rendered)
