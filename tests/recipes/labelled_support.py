"""Labelled images that a test draws, and a system that is nothing but a linear classifier of them."""

from dataclasses import dataclass, field

import numpy as np
import torch

from fastvae.recipes.data.labelled import LabelledImages, LabelledParts
from fastvae.recipes.evaluation.classification import ClassConfig
from fastvae.recipes.labelled_system import LabelledSystem
from fastvae.recipes.settings import to_plain
from fastvae.recipes.training.labelled_config import LabelledTrainConfig
from fastvae.recipes.training.labelled_task import TERM, TESTED, ClassErrors


def spots(train=60, test=30, classes=3, seed=0):
    """Noise of 4 x 4 pixels with a bright row for each class."""
    random = np.random.RandomState(seed)

    def draw(count):
        labels = np.arange(count) % classes
        images = random.randint(0, 100, (count, 4, 4)).astype(np.uint8)
        images[np.arange(count), labels] += 120
        return LabelledImages(images, labels, classes, "drawn")

    return LabelledParts(draw(train), draw(test))


@dataclass(frozen=True)
class LinearConfig:
    """A linear classifier."""

    data_features: int = 16
    classes: int = 3
    impl: str = "auto"

    def as_dict(self):
        return to_plain(self)


class Linear(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(config.data_features, config.classes)

    def class_logits(self, x):
        return self.layer(x)


class LinearTask(ClassErrors):
    """Cross-entropy of the labelled images, and the mean entropy of the others."""

    def __init__(self, name, model, config, folder):
        super().__init__(name, model, config, folder, latent_features=1, terms=[TERM], measured=TESTED)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.config.learning_rate)

    def training_step(self, batch, batch_index):
        x_l, y_l, x_u = batch
        logits = self.model.class_logits(x_l)
        unlabelled = torch.distributions.Categorical(logits=self.model.class_logits(x_u)).entropy().mean()
        self.epoch_terms[0] += self.count_errors(logits, y_l)
        return self.record_loss(torch.nn.functional.cross_entropy(logits, y_l) + unlabelled, x_u)


@dataclass(frozen=True)
class LinearSettings:
    """All settings."""

    model: LinearConfig = field(default_factory=LinearConfig)
    training: LabelledTrainConfig = field(default_factory=LabelledTrainConfig)
    evaluation: ClassConfig = field(default_factory=ClassConfig)


class LinearSystem(LabelledSystem):
    name = "linear"
    settings = LinearSettings

    def make_model(self, config):
        return Linear(config)

    def make_task(self, model, config, folder):
        return LinearTask(self.name, model, config, folder)

    def draw(self, model, x, folder):
        pass
