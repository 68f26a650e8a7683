"""Tasks that trainings share: noise that no process changes, figures of each epoch, an average of the weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..data.batches import EVALUATION, NOISE, BinarizedImages, JointBatches, stream_seed
from ..data.noise import share_noise
from ..errors import RecipeError
from ..settings import to_plain
from .config import AveragedTrainConfig, TrainConfig
from .history import write_metrics

__all__ = ["LOG_EVERY", "AveragedTask", "EpochTask", "ImageTask"]

LOG_EVERY = 10
# The decay of averaged weights is at most n / (n + FORGETTING) after n steps.
FORGETTING = 9


class ImageTask(L.LightningModule):
    """What tasks share: noise as a function of (seed, step, row of the joint batch), and the mean loss of an epoch."""

    def __init__(self, config: TrainConfig, latent_features: int, impl: str) -> None:
        super().__init__()
        self.config, self.latent_features, self.impl = config, latent_features, impl

    def step_noise(self, x: Tensor, *part: int) -> dict[str, Any]:
        """The noise of this process's share ``x`` of the batch of the present step.

        Args:
            x: the share.
            part: a number for each further noise that the step needs.
        """
        seed, rows = stream_seed(self.config.seed, NOISE, self.global_step, *part), len(x) * self.trainer.world_size
        return self.joint_noise(x, seed, self.global_rank * len(x), rows)

    def test_noise(self, x: Tensor, first: int, rows: int) -> dict[str, Any]:
        """The noise of test images, the same in every test."""
        return self.joint_noise(x, stream_seed(self.config.seed, EVALUATION, 0), first, rows)

    def joint_noise(self, x: Tensor, seed: int, first: int, rows: int) -> dict[str, Any]:
        """The noise of ``x``, which begins at row ``first`` of a joint batch of ``rows`` rows."""
        generator = torch.Generator(x.device).manual_seed(seed)
        return share_noise(x, (self.latent_features,), self.impl, generator=generator, first=first, rows=rows)

    def record_loss(self, loss: Tensor, x: Tensor) -> Tensor:
        """Adds the loss to the epoch's, and shows it now and then."""
        self.epoch_loss += loss.detach()
        # Lightning's log takes long beside a step of a small model.
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log("loss", loss, prog_bar=True, sync_dist=True, batch_size=len(x))
        return loss

    def on_train_epoch_start(self) -> None:
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def mean_loss(self) -> Tensor:
        """The mean loss of the epoch that ends.

        Raises:
            RecipeError: it is not finite.
        """
        return self.check_finite("loss", self.mean_of_epoch(self.epoch_loss))

    def check_finite(self, name: str, value: Tensor) -> Tensor:
        """Checks a quantity of the epoch that ends.

        Raises:
            RecipeError: it is not finite.
        """
        if not torch.isfinite(value):
            raise RecipeError(
                f"the {name} became {value.item()} in epoch {self.current_epoch + 1}: try a lower learning rate "
                f"than {self.config.learning_rate}"
            )
        return value

    def mean_of_epoch(self, total: Tensor) -> Tensor:
        """The mean over steps and processes of a sum over the steps of an epoch."""
        return cast(Tensor, self.trainer.strategy.reduce(total / self.trainer.num_training_batches, reduce_op="mean"))


class EpochTask(ImageTask):
    """A line of figures for each epoch: in ``metrics.csv``, and in the checkpoint.

    Args:
        name: of the system.
        model: the model to train; its ``config`` has ``as_dict`` and ``impl``.
        config: the training.
        folder: where ``metrics.csv`` goes.
        latent_features: columns of the noise that one image takes.
        terms: names of the quantities that a training step adds to ``epoch_terms``; the first is the one that
            learning curves show, such as ``"train_elbo"``.
        measured: name of the quantity that the tests log, such as ``"test_elbo"``. Beside it they log a KL term for
            each of the model's ``kl_names``, where it has some, such as ``"test_kl"``; see :meth:`record_bound`.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: TrainConfig,
        folder: Path,
        *,
        latent_features: int,
        terms: Sequence[str],
        measured: str,
    ) -> None:
        settings: Any = model.config
        super().__init__(config, latent_features, settings.impl)
        self.save_hyperparameters({"recipe": name, "model": settings.as_dict(), "training": to_plain(config)})
        self.model, self.folder, self.terms, self.measured = model, folder, tuple(terms), measured
        part = measured.partition("_")[0]
        self.measured_kl = tuple(f"{part}_{name}" for name in getattr(model, "kl_names", ()))
        self.history: list[dict[str, float]] = []

    @property
    def final_model(self) -> nn.Module:
        """The model that is evaluated and kept."""
        return self.model

    def setup(self, stage: str) -> None:
        images = cast(Any, self.trainer).datamodule.images.x_train
        self.steps = self.config.epochs * len(JointBatches(len(images), self.config.batch_size, self.config.seed))

    def first_batch(self) -> tuple[Tensor, dict[str, Any]]:
        """The whole first joint batch, on the model's device and in its dtype, and the noise of its step."""
        images = cast(Any, self.trainer).datamodule.images.x_train
        x = BinarizedImages(images)[self._first_of_batches()].to(next(self.model.parameters()))
        return x, self.joint_noise(x, stream_seed(self.config.seed, NOISE, 0), 0, len(x))

    def first_rows(self) -> Tensor:
        """The numbers of the images of the first joint batch."""
        return self._first_of_batches()[0]

    def _first_of_batches(self) -> tuple[Tensor, int]:
        """Numbers of images, and the seed of their binarisation."""
        images = cast(Any, self.trainer).datamodule.images.x_train
        return next(iter(JointBatches(len(images), self.config.batch_size, self.config.seed)))

    def first_labels(self) -> Tensor:
        """The classes of the images of the first joint batch, ``(N,)``, on the model's device."""
        labels = torch.from_numpy(cast(Any, self.trainer).datamodule.images.y_train)
        return labels[self.first_rows()].long().to(next(self.model.parameters()).device)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.epoch_terms = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        loss = self.mean_loss()
        means = dict(zip(self.terms, self.mean_of_epoch(self.epoch_terms), strict=True))
        self.log_dict({name: value.float() for name, value in means.items()})
        found: dict[str, Tensor] = {"loss": loss, **means}
        if (self.current_epoch + 1) % self.config.check_every == 0:
            logged = self.trainer.callback_metrics
            found[self.measured] = self.check_finite(self.measured, logged[self.measured])
            found |= {name: logged[name] for name in self.measured_kl if name in logged}
        self.history.append(
            {"epoch": self.current_epoch + 1, "step": self.global_step}
            | {name: value.item() for name, value in found.items()}
            | {
                "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "seconds": time.perf_counter() - self.epoch_began,
            }
        )
        if self.global_rank == 0:
            write_metrics(self.history, self.columns(), self.folder / "metrics.csv")

    def record_bound(self, log_p_x: Tensor, kl: Tensor, x: Tensor) -> None:
        """Logs the bound of the images ``x`` of a test, and its KL terms.

        Args:
            log_p_x: log p(x | z), ``(N,)``, nats.
            kl: a term for each of the model's ``kl_names``, ``(N, T)``, nats.
            x: the images.
        """
        found = {self.measured: log_p_x - kl.sum(-1), **dict(zip(self.measured_kl, kl.unbind(-1), strict=True))}
        for name, value in found.items():
            shown = name == self.measured
            self.log(name, value.mean(), prog_bar=shown, sync_dist=True, batch_size=len(x))

    def one_cycle(self, step: int) -> float:
        """Share of the peak learning rate: a linear rise in the first tenth of the steps, then half a cosine."""
        progress = step / max(self.steps, 1)
        return min(progress / 0.1 + 0.01, 1.0) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def columns(self) -> tuple[str, ...]:
        """The quantities of an epoch, by which ``metrics.csv`` has its columns."""
        return ("epoch", "step", "loss", *self.terms, self.measured, *self.measured_kl, "learning_rate", "seconds")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The oldest checkpoints have none.
        history: Any = checkpoint.get("history", [])
        columns = set(self.columns())
        sound = isinstance(history, list) and all(
            isinstance(row, dict)
            and {"epoch", "step"} <= row.keys() <= columns
            and all(isinstance(value, int | float) for value in row.values())
            for row in history
        )
        if not sound:
            raise RecipeError("the checkpoint cannot be continued: its history is no list of the figures of epochs")
        self.history = list(history)


class AveragedTask(EpochTask):
    """A learning rate that decays at the end, and a moving average of the weights, on which the tests run."""

    config: AveragedTrainConfig

    def __init__(
        self, name: str, model: nn.Module, config: AveragedTrainConfig, folder: Path, **quantities: Any
    ) -> None:
        super().__init__(name, model, config, folder, **quantities)
        self.averaged = copy.deepcopy(model).requires_grad_(False)

    @property
    def final_model(self) -> nn.Module:
        return self.averaged

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, fused=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate: 1, then a geometric decay over the rest of the steps."""
        begin = self.config.decay_from * self.steps
        if step <= begin:
            return 1.0
        passed = min((step - begin) / (self.steps - begin), 1.0)
        return (self.config.final_learning_rate / self.config.learning_rate) ** passed

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.move_average(list(self.averaged.parameters()), list(self.model.parameters()))

    def move_average(self, averages: list[Tensor], values: list[Tensor]) -> None:
        """Takes values after a step into their moving averages, which soon forget the weights of the start."""
        step = self.global_step
        decay = min(self.config.average_decay, step / (step + FORGETTING))
        get_ema_multi_avg_fn(decay)(averages, values, step)
