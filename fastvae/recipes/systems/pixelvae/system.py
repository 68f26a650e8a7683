"""Training of the recipe ``pixelvae``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .iaf_config import EvaluationConfig
from .pixel_config import PixelVAEConfig, PixelVAETrainConfig
from .pixel_evaluation import PixelVAEFigures, evaluate_pixelvae, spread
from .pixel_pictures import draw_interpolations, draw_pixel_samples, draw_sampled_reconstructions
from .pixel_training import PixelRun, load_pixels, train_pixels
from .pixelvae import PixelVAE
from .static_data import BinaryImages

__all__ = ["load_pixelvae", "train_pixelvae"]

RECIPE = "pixelvae"


def train_pixelvae(
    model_config: PixelVAEConfig,
    config: PixelVAETrainConfig,
    folder: Path,
    *,
    evaluation: EvaluationConfig | None = None,
    progress: bool = True,
    **options: Any,
) -> PixelRun[PixelVAE]:
    """Trains on binary images, evaluates and draws ``samples.png``, ``reconstructions.png``, ``interpolations.png``.

    Args:
        model_config: the model.
        config: the training.
        folder: where everything goes, see :func:`~fastvae.recipes.pixel_training.train_pixels`.
        evaluation: how it is evaluated.
        progress: whether to show progress bars.
        options: ``images``, ``resume``, ``limit_epochs``, ``accelerator`` and ``callbacks`` of that function.

    Returns:
        The model with averaged weights on the CPU; its figures are
        :class:`~fastvae.recipes.pixel_evaluation.PixelVAEFigures`.

    Raises:
        RecipeError: the images cannot be had, the batch cannot be shared out evenly, the loss is not finite,
            ``folder`` is in use or has an unfinished run, or ``resume`` cannot be read or is of another configuration.
    """
    how = asdict(EvaluationConfig() if evaluation is None else evaluation)

    def evaluate(model: PixelVAE, images: BinaryImages) -> PixelVAEFigures:
        return evaluate_pixelvae(model, images, **how, progress=progress)

    return train_pixels(
        RECIPE,
        lambda **changes: PixelVAE(replace(model_config, **changes)),
        config,
        folder,
        evaluate=evaluate,
        draw=draw,
        settings={"model": model_config.as_dict(), "training": asdict(config), "evaluation": how},
        progress=progress,
        **options,
    )


def draw(model: PixelVAE, x: Tensor, folder: Path) -> None:
    draw_pixel_samples(model.sample, folder / "samples.png")
    # Sorted by digit, as the static test images are, the second is another digit than the first.
    first, second = spread(x, 10), spread(x.roll(-len(x) // 3, 0), 10)
    draw_sampled_reconstructions(model, first, folder / "reconstructions.png")
    draw_interpolations(model, first, second, folder / "interpolations.png")


def load_pixelvae(path: Path, *, impl: str | None = None) -> tuple[PixelVAE, PixelVAETrainConfig]:
    """The model with averaged weights, and how it was trained, out of a checkpoint of :func:`train_pixelvae`.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    chosen = {} if impl is None else {"impl": impl}
    return load_pixels(path, RECIPE, lambda plain: PixelVAE(PixelVAEConfig(**plain | chosen)), PixelVAETrainConfig)
