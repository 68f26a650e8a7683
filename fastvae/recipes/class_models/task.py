"""How models with a class that is known of few images are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from ...nn import shared_first_batch
from ..data.batches import NOISE, stream_seed
from ..data.noise import share_noise
from ..data.semi_supervised import SemiSupervisedBatch
from ..training.labelled_task import TERM, TESTED, ClassErrors
from ..training.task import AveragedTask
from .semi_supervised import SemiSupervisedVAE

__all__ = ["SemiSupervisedTask"]

# Which part of a batch noise is for.
LABELLED, UNLABELLED = 0, 1


class SemiSupervisedTask(ClassErrors, AveragedTask):
    r"""The loss of the model M2 for an image of the training set, nats.

    .. math::
        -\frac{1}{N}\Big(\sum_{\text{labelled}} \mathcal{L}(x, y) + \alpha \frac{N}{N_l} \log q(y \mid x)
        + \sum_{\text{all}} \mathcal{U}(x) + \log p(\theta)\Big), \qquad p(\theta) = N(0, I)

    The labelled images are among the N unlabelled ones, too, without their labels. The optimiser adds log p(theta).
    """

    config: Any
    model: Any

    def __init__(self, name: str, model: Any, config: Any, folder: Path) -> None:
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
        self.images = len(cast(Any, self.trainer).datamodule.images.x_train)

    def optimizer(self) -> torch.optim.Optimizer:
        # Adam's decay is the gradient of the prior's logarithm, in nats of an image.
        decay = self.config.weight_prior / self.images
        return torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, weight_decay=decay, fused=True)

    def start_from(self, x: Tensor) -> None:
        """Starts the model M2 from the whole first batch of its data, ``(N, features)``; then the average, too."""
        # All processes take the whole batch and its noise.
        generator = torch.Generator(x.device).manual_seed(stream_seed(self.config.seed, NOISE, 0, UNLABELLED))
        shape = (self.model.config.classes, self.latent_features)
        noise = share_noise(x, shape, self.impl, generator=generator, first=0, rows=len(x))
        with shared_first_batch():
            self.core.initialize_from(x, **noise)
        self.averaged.load_state_dict(self.model.state_dict())

    @property
    def core(self) -> SemiSupervisedVAE:
        """The model M2 that is trained."""
        found: SemiSupervisedVAE = self.model
        return found

    def take_data(self, x: Tensor, part: int) -> Tensor:
        """What the model M2 is given for images ``(N, pixels)`` of a part of the batch."""
        return x

    def training_step(self, batch: SemiSupervisedBatch, batch_index: int) -> Tensor:
        core, classes = self.core, self.model.config.classes
        x_l, y_l, x_u = self.take_data(batch.x_l, LABELLED), batch.y_l, self.take_data(batch.x_u, UNLABELLED)
        labelled = core.labelled_bound(x_l, y_l, **self.part_noise(x_l, LABELLED)).mean()
        unlabelled = core.unlabelled_bound(x_u, **self.part_noise(x_u, UNLABELLED, classes)).mean()
        logits = core.class_logits(x_l)
        log_q = -functional.cross_entropy(logits, y_l)
        loss = -self.config.labels / self.images * labelled - unlabelled - self.config.alpha * log_q
        with torch.no_grad():
            terms = [self.count_errors(logits, y_l), unlabelled, labelled, log_q]
            self.epoch_terms += torch.stack([term.to(self.epoch_terms) for term in terms])
        return self.record_loss(loss, batch.x_u)

    def part_noise(self, x: Tensor, part: int, copies: int = 0, features: int | None = None) -> dict[str, Any]:
        """The noise of this process's share ``x`` of a part of the joint batch.

        Args:
            x: data ``(N, ...)``.
            part: of the batch.
            copies: the classes C of noise for ``(N, C)``; 0 for noise for ``(N,)``.
            features: columns of the noise; those of the latents if None.
        """
        generator = torch.Generator(x.device).manual_seed(stream_seed(self.config.seed, NOISE, self.global_step, part))
        columns = self.latent_features if features is None else features
        return share_noise(
            x,
            (copies, columns) if copies else (columns,),
            self.impl,
            generator=generator,
            first=self.global_rank * len(x),
            rows=len(x) * self.trainer.world_size,
        )
