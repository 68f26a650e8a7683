"""The system ``pixelvae``: a VAE whose decoder, and prior, may be networks over pixels."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from ...data.batches import binarize_fixed
from ...data.static_mnist import BinaryImages
from ...evaluation.bounds import Figures, evaluate, spread
from ...evaluation.config import EvaluationConfig
from ...evaluation.job import ALONE, Job
from ...evaluation.speed import measure_sampling
from ...evaluation.wording import describe_figures
from ...pictures.grids import draw_pixel_samples, draw_sampled_reconstructions
from ...pictures.latents import draw_interpolations
from ..pixelcnn.system import PixelSystem
from .config import PixelVAEConfig, PixelVAESettings
from .model import PixelVAE

__all__ = ["SYSTEM", "PixelVAESystem"]


class PixelVAESystem(PixelSystem):
    """A VAE with one or two levels of latents."""

    name = "pixelvae"
    settings = PixelVAESettings

    def make_model(self, config: PixelVAEConfig) -> PixelVAE:
        return PixelVAE(config)

    def evaluate(
        self,
        model: PixelVAE,
        images: BinaryImages,
        config: EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Figures:
        x, valid = binarize_fixed(images.x_test, seed), binarize_fixed(images.x_valid, seed)
        figures = evaluate(model, x, valid=valid, **asdict(config), seed=seed, progress=progress, job=job)
        if not job.processes.leads:
            return figures
        speed = measure_sampling(model.sample, next(model.parameters()).device)
        return replace(figures, sampled_images_per_second=speed)

    def describe(self, figures: Figures) -> list[str]:
        return describe_figures(figures, bound="bound", images="test images")

    def draw(self, model: PixelVAE, x: Tensor, folder: Path) -> None:
        draw_pixel_samples(model.sample, folder / "samples.png")
        # Sorted by digit, as the static test images are, the second is another digit than the first.
        first, second = spread(x, 10), spread(x.roll(-len(x) // 3, 0), 10)
        draw_sampled_reconstructions(model.reconstruct, first, folder / "reconstructions.png")
        draw_interpolations(model, first, second, folder / "interpolations.png")


SYSTEM = PixelVAESystem()
