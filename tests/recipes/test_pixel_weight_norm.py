"""Weight normalisation in the systems over pixels."""

from dataclasses import replace

import lightning as L
import pytest
import torch

from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelTrainConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig
from tests.recipes.pixel_support import static_images
from tests.recipes.training_support import train

SMALL = PixelCNNConfig(layers=2, filter_size=3, first_filter_size=3, maps=4, weight_norm=True)
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


class Start(L.Callback):
    """The weights with which a training begins."""

    def on_train_start(self, trainer, task):
        self.weights = {name: value.clone() for name, value in task.model.state_dict().items()}
        self.averaged = {name: value.clone() for name, value in task.averaged.state_dict().items()}


def test_a_training_begins_with_normalised_pre_activations(tiny, tmp_path):
    start, images = Start(), static_images(tiny)
    config = PixelTrainConfig(epochs=1, batch_size=125)
    found = train("pixelcnn", SMALL, config, tmp_path / "whole", images=images, callbacks=[start])
    assert all(torch.equal(start.averaged[name], value) for name, value in start.weights.items())
    model, seen = BinaryPixelCNN(SMALL), []
    model.load_state_dict(start.weights)
    last = model.network.head.second
    last.register_forward_hook(lambda *call: seen.append(call[2].detach()))
    model.log_prob(torch.from_numpy(images.x_train).flatten(1) / 255.0)
    # The first batch, half of these images, had mean 0 and standard deviation 1.
    assert abs(seen[0].mean().item()) < 0.2
    assert abs(seen[0].std().item() - 1.0) < 0.2
    assert found.model.sample(2).shape == (2, 784)


def test_a_conditional_model_starts_with_the_classes_of_the_first_batch(tiny, tmp_path):
    config = PixelTrainConfig(data="dynamic", epochs=1, batch_size=125)
    model, images = replace(SMALL, conditional=True), split_mnist(tiny)
    found = train("pixelcnn", model, config, tmp_path, images=images, finish=False)
    assert found.model.log_prob(torch.zeros(2, 784), torch.tensor([0, 1])).isfinite().all()


def test_settings_that_have_no_masked_convolution():
    with pytest.raises(ValueError, match="weight_norm must be False for decoder='conv' with prior='normal', got True"):
        PixelVAEConfig(decoder="conv", weight_norm=True)
