"""Settings of the evaluation of a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import check_whole, option

__all__ = ["EvaluationConfig"]


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is evaluated, as plain data.

    Args:
        samples: importance samples K for log p(x).
        log_p_images: test images for log p(x).
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.

    Raises:
        ValueError: a number is below 1.
    """

    samples: int = 128
    log_p_images: int = option("images", 10_000)
    image_chunk: int = 100
    sample_chunk: int = 32

    def __post_init__(self) -> None:
        check_whole(self, samples=1, log_p_images=1, image_chunk=1, sample_chunk=1)
