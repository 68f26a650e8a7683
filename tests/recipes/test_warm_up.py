"""A warm-up of the divergence, and the divergence of layers over epochs, in every system with a bound."""

import json
from dataclasses import replace

import pytest
import torch

from fastvae.recipes.data.labelled import split_labelled
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.cvae.config import CVAEConfig, CVAETrainConfig
from fastvae.recipes.systems.iwae.config import IWAEConfig, IWAETrainConfig
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.lvae.config import LVAEConfig, LVAETrainConfig
from fastvae.recipes.systems.m1.config import M1Config, M1TrainConfig
from fastvae.recipes.systems.sbn.config import SBNConfig, SBNTrainConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from tests.recipes.training_support import metrics

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
SYSTEMS = {
    "vae": (VAEConfig(latent_features=3, hidden_features=(8,)), VAETrainConfig()),
    "iwae": (IWAEConfig(2, (4, 3), (8, 6)), IWAETrainConfig(objective="vae")),
    "lvae": (LVAEConfig(latent_features=(4, 3), hidden_features=(8, 6)), LVAETrainConfig()),
    "sbn": (SBNConfig(latent_features=4), SBNTrainConfig(estimator="reinforce")),
    "m1": (M1Config(3, (8, 8)), M1TrainConfig()),
    "cvae": (CVAEConfig(3, (8,)), CVAETrainConfig()),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_first_epochs_weight_the_divergence_less(name, tiny, tmp_path):
    model, training = SYSTEMS[name]
    training = replace(training, epochs=1, batch_size=50, kl_warmup=4, schedule="sigmoid")
    system = find_system(name)
    images = split_mnist(tiny) if name == "sbn" else split_labelled(tiny)
    settings = system.settings(model, training, EvaluationConfig(samples=2, log_p_images=20))
    system.run(settings, tmp_path, images=images, accelerator="cpu", progress=False)
    (row,) = metrics(tmp_path)
    # The weight stays below a tenth in the first of four epochs.
    assert float(row["train_elbo"]) < -float(row["loss"])
    part = "valid" if name == "sbn" else "test"
    result = json.loads((tmp_path / "result.json").read_text())
    terms = [key for key in row if key.startswith(f"{part}_kl")]
    assert len(terms) == len(result["kl_terms"]) == len(result["units"]["active"])
    assert all(float(row[term]) == pytest.approx(float(row[term])) for term in terms)
    assert {"kl_terms.png", "units.png", "learning_curves.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_loss_of_intensities_takes_their_likelihood(beta):
    """Free bits and a warm-up of a model of intensities, whose p(x | z) is Gaussian."""
    model = VAE(VAEConfig(latent_features=3, hidden_features=(8,), data_features=12, likelihood="gaussian")).double()
    x, eps = torch.rand(5, 12, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    log_p_x, kl = model.measure(x, eps=eps)
    for minimum in (0.0, 1e-9):
        loss, bound, part = model.loss(x, minimum, beta=beta, eps=eps)
        torch.testing.assert_close(loss, (beta * kl[:, 0] - log_p_x).mean())
        torch.testing.assert_close(bound, (log_p_x - kl[:, 0]).mean())
        torch.testing.assert_close(part, kl.mean())
