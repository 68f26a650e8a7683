"""Training of the recipe ``pixelcnn``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .pixel_config import PixelCNNConfig, PixelTrainConfig
from .pixel_evaluation import PixelCNNFigures, evaluate_pixelcnn, spread
from .pixel_pictures import draw_inpainting, draw_pixel_samples
from .pixel_training import PixelRun, load_pixels, train_pixels
from .pixelcnn import BinaryPixelCNN
from .static_data import BinaryImages

__all__ = ["load_pixelcnn", "train_pixelcnn"]

RECIPE = "pixelcnn"


def train_pixelcnn(
    model_config: PixelCNNConfig, config: PixelTrainConfig, folder: Path, *, progress: bool = True, **options: Any
) -> PixelRun[BinaryPixelCNN]:
    """Trains on binary images, evaluates and draws ``samples.png`` and ``inpainting.png``.

    Args:
        model_config: the model.
        config: the training.
        folder: where everything goes, see :func:`~fastvae.recipes.pixel_training.train_pixels`.
        progress: whether to show progress bars.
        options: ``images``, ``resume``, ``limit_epochs``, ``accelerator`` and ``callbacks`` of that function.

    Returns:
        The model with averaged weights on the CPU; its figures are
        :class:`~fastvae.recipes.pixel_evaluation.PixelCNNFigures`.

    Raises:
        RecipeError: the images cannot be had, the batch cannot be shared out evenly, the loss is not finite,
            ``folder`` is in use or has an unfinished run, or ``resume`` cannot be read or is of another configuration.
    """

    def evaluate(model: BinaryPixelCNN, images: BinaryImages) -> PixelCNNFigures:
        return evaluate_pixelcnn(model, images, progress=progress)

    return train_pixels(
        RECIPE,
        lambda **changes: BinaryPixelCNN(replace(model_config, **changes)),
        config,
        folder,
        evaluate=evaluate,
        draw=draw,
        settings={"model": model_config.as_dict(), "training": asdict(config)},
        progress=progress,
        **options,
    )


def draw(model: BinaryPixelCNN, x: Tensor, folder: Path) -> None:
    draw_pixel_samples(model.sample, folder / "samples.png")
    draw_inpainting(model, spread(x, 10), folder / "inpainting.png")


def load_pixelcnn(path: Path, *, impl: str | None = None) -> tuple[BinaryPixelCNN, PixelTrainConfig]:
    """The model with averaged weights, and how it was trained, out of a checkpoint of :func:`train_pixelcnn`.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    chosen = {} if impl is None else {"impl": impl}
    return load_pixels(path, RECIPE, lambda plain: BinaryPixelCNN(PixelCNNConfig(**plain | chosen)), PixelTrainConfig)
