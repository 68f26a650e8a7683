"""How ``adgm`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ....objectives import LinearSchedule
from ...data.batches import NOISE, stream_seed
from ...data.noise import Noise
from ...data.semi_supervised import SemiSupervisedBatch
from ...training.labelled_task import TERM, TESTED, ClassErrors
from ...training.task import AveragedTask
from .config import ADGMTrainConfig
from .model import ADGM

__all__ = ["ADGMTask"]

# Which part of a batch noise is for.
UNLABELLED, LABELLED = 0, 1
# The largest element of a gradient after its norm is bounded.
MOST_ELEMENT = 1.0


class ADGMTask(ClassErrors, AveragedTask):
    r"""The loss, nats for an image; images with and without labels are as many in a step, and have the same weight.

    .. math::
        -\operatorname{mean}_{\text{labelled}} \Big(\mathcal{L}(x, y) + \beta \frac{N}{N_l} \log q(y \mid a, x)\Big)
        - \operatorname{mean}_{\text{unlabelled}}\, \mathcal{U}(x) - \frac{1}{N} \log p(\theta)
    """

    config: ADGMTrainConfig
    model: ADGM

    def __init__(self, name: str, model: ADGM, config: ADGMTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.config.latent_features,
            terms=[TERM, "train_elbo", "labelled_elbo", "class_log_prob"],
            measured=TESTED,
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        images = cast(Any, self.trainer).datamodule.images
        if images.classes != self.model.config.classes:
            raise ValueError(f"classes must be {images.classes}, those of the data, got {self.model.config.classes}")
        # A checkpoint is restored later, so that a resumed run keeps its own.
        if self.model.config.likelihood == "bernoulli":
            means = torch.from_numpy(images.x_train).flatten(1).mean(0, dtype=torch.float32) / 255.0
            for model in (self.model, cast(ADGM, self.averaged)):
                model.start_at(means)

    def training_step(self, batch: SemiSupervisedBatch, batch_index: int) -> Tensor:
        x_l, y_l, x_u = batch
        ramp = self.config.kl_warmup * self.trainer.num_training_batches
        size = len(cast(Any, self.trainer).datamodule.images.x_train)
        found = self.model.training_bounds(
            x_u,
            x_l,
            y_l,
            samples=self.config.auxiliary_samples,
            noise_u=self.part_noise(x_u, UNLABELLED),
            noise_l=self.part_noise(x_l, LABELLED),
            rows=len(x_u) * self.trainer.world_size,
            kl_weight=LinearSchedule(self.config.kl_start, 1.0, ramp)(self.global_step + 1) if ramp > 0 else 1.0,
        )
        unlabelled, labelled, log_q = (bound.mean() for bound in found[:3])
        classified = self.config.beta * size / self.config.labels * log_q
        loss = self.penalty() / size - unlabelled - labelled - classified
        with torch.no_grad():
            terms = [self.count_errors(found.logits.softmax(-1).mean(1), y_l), unlabelled, labelled, log_q]
            self.epoch_terms += torch.stack([term.to(self.epoch_terms) for term in terms])
        return self.record_loss(loss, x_u)

    def penalty(self) -> Tensor | float:
        """Minus the log-density of the weights under their prior, without its constant."""
        if not self.config.weight_prior:
            return 0.0
        squares = [weight.square().sum() for weight in self.model.parameters() if weight.dim() > 1]
        return 0.5 * self.config.weight_prior * torch.stack(squares).sum()

    def part_noise(self, x: Tensor, part: int) -> Noise:
        """The noise of this process's share ``x`` of a part of the joint batch of the present step."""
        seed = stream_seed(self.config.seed, NOISE, self.global_step, part)
        generator = torch.Generator(x.device).manual_seed(seed)
        return Noise(generator, self.global_rank * len(x), len(x) * self.trainer.world_size)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        nn.utils.clip_grad_norm_(weights, self.config.most_norm, foreach=True)
        nn.utils.clip_grad_value_(weights, MOST_ELEMENT, foreach=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        # The averaged weights go with averaged statistics.
        self.move_average(list(self.averaged.buffers()), list(self.model.buffers()))
