"""What evaluation says of latent units: parts of the divergence, active units and effective samples."""

import math
from dataclasses import replace

import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.recipes.class_models.with_labels import WithLabels, join_labels
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate, spread
from fastvae.recipes.evaluation.latents import OneLatent
from fastvae.recipes.evaluation.units import DRAWS, Units, measure_units
from fastvae.recipes.systems.cvae.config import CVAEConfig
from fastvae.recipes.systems.cvae.model import CVAE
from fastvae.recipes.systems.draw.config import DRAWConfig
from fastvae.recipes.systems.draw.model import DRAW
from fastvae.recipes.systems.hvi.config import HVIConfig
from fastvae.recipes.systems.hvi.model import HVI
from fastvae.recipes.systems.iwae.config import IWAEConfig
from fastvae.recipes.systems.iwae.model import IWAE
from fastvae.recipes.systems.lvae.config import LVAEConfig
from fastvae.recipes.systems.lvae.model import LVAE
from fastvae.recipes.systems.m1.config import M1Config
from fastvae.recipes.systems.m1.model import M1
from fastvae.recipes.systems.pixelvae.model import PixelVAE
from fastvae.recipes.systems.sbn.config import SBNConfig
from fastvae.recipes.systems.sbn.model import SBN
from tests.recipes.evaluation_support import FEW, flow, small
from tests.recipes.pixel_support import SMALL_VAE

GLIMPSES = {"latent_features": 4, "hidden_features": 6, "write_points": 3, "data_features": 64}
MODELS = {
    "vae": small,
    "vae, full covariance": lambda: small("triangular"),
    "vae, iaf": lambda: small("iaf"),
    "vae, learned prior": lambda: small(prior="maf", prior_depth=1, prior_width=6),
    "iaf_vae": flow,
    "m1": lambda: M1(M1Config(3, (8, 8))),
    "iwae": lambda: IWAE(IWAEConfig(1, (3,), (8,))),
    "iwae, two layers": lambda: IWAE(IWAEConfig(2, (4, 3), (8, 6))),
    "lvae": lambda: LVAE(LVAEConfig("ladder", (4, 3, 2), (8, 6, 5))),
    "lvae, bottom-up": lambda: LVAE(LVAEConfig("bottom-up", (4, 3, 2), (8, 6, 5))),
    "hvi": lambda: HVI(HVIConfig("dense", 2, 3, hidden_features=(8,), momentum_features=5)),
    "draw": lambda: DRAW(DRAWConfig(3, **GLIMPSES)),
    "draw, without attention": lambda: DRAW(DRAWConfig(2, "none", **GLIMPSES)),
    "sbn": lambda: SBN(SBNConfig(latent_features=5)),
    "sbn, two layers": lambda: SBN(SBNConfig("linear2", 5)),
    "pixelvae": lambda: PixelVAE(SMALL_VAE),
    "pixelvae, two levels": lambda: PixelVAE(
        replace(SMALL_VAE, levels=2, latent="map", decoder="conv", prior="pixelcnn")
    ),
    "cvae": lambda: WithLabels(CVAE(CVAEConfig(3, (8,)))),
    "cvae, priors of classes": lambda: WithLabels(CVAE(CVAEConfig(3, (8,), prior="class"))),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=MODELS)
def case(request, tiny):
    torch.manual_seed(3)
    model, x = MODELS[request.param](), binarize_fixed(tiny.x_test)[:12].double()
    module = getattr(model, "model", model).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    if module is not model:
        return model, join_labels(x, torch.arange(12) % 10)
    # The recurrent models draw their middle alone.
    return model, x[:, 14 * 28 :][:, : GLIMPSES["data_features"]] if isinstance(model, DRAW) else x


@torch.no_grad()
def test_parts_of_units_add_up_to_the_terms(case):
    model, x = case
    posterior = model.encode(x)
    log_p_x, kl = model.measure_units(x, posterior, generator=seeded())
    expected_log_p_x, expected = model.measure(x, posterior, generator=seeded())
    torch.testing.assert_close(log_p_x, expected_log_p_x)
    torch.testing.assert_close(torch.stack([layer.sum(-1) for layer in kl], -1), expected)
    averages = model.average_units(posterior, 2, generator=seeded())
    assert [layer.shape for layer in averages] == [layer.shape for layer in kl]


@torch.no_grad()
def test_averages_of_units_are_those_of_samples(case):
    model, x = case
    posterior, samples = model.encode(x), 1000
    if isinstance(model, WithLabels):
        model = model.model
    if isinstance(model, OneLatent | CVAE):
        drawn = [posterior.rsample_with_log_prob((samples,), generator=seeded(1))[0]]
    elif isinstance(model, SBN):
        drawn = model.draw_latents(posterior, (samples,), generator=seeded(1)).layers
    elif isinstance(model, IWAE):
        drawn = [posterior.rsample_with_log_prob((samples,), generator=seeded(1))[0]]
        drawn += [encoder(drawn[0]).rsample_with_log_prob(generator=seeded(2))[0] for encoder in model.encoders[1:]]
    elif isinstance(model, LVAE):
        drawn = model.draw(posterior, (samples,), generator=seeded(1)).latents
    elif isinstance(model, DRAW):
        drawn = [z.view(samples, len(x), -1) for z in model.draw(x, (samples,), generator=seeded(1)).latents]
    else:
        drawn = model.draw(posterior, (samples,), generator=seeded(1))[0]
        drawn = [drawn] if isinstance(drawn, torch.Tensor) else drawn
    for found, of_layer in zip(model.average_units(posterior, samples, generator=seeded(3)), drawn, strict=True):
        z = (found - of_layer.mean(0)) / (of_layer.std(0) * math.sqrt(2 / samples))
        assert z.abs().max() < 5


class Linear(OneLatent):
    """z ~ N(0, I), x ~ N(slope z, 1) by dimension, and the exact posterior."""

    def __init__(self, slope):
        super().__init__()
        self.slope = torch.nn.Parameter(slope)
        self.precision = 1 + slope.square()

    def encode(self, x):
        log_sigma = -0.5 * self.precision.log()
        return DiagonalGaussian(x * self.slope / self.precision, log_sigma.expand_as(x))

    def log_likelihood(self, x, z):
        return DiagonalGaussian(z * self.slope, torch.zeros_like(z)).log_prob(x.expand_as(z))


@pytest.fixture
def linear():
    """A model whose first three units of five are dead, and images from it."""
    model = Linear(torch.tensor([0.0, 0.0, 0.0, 0.5, 2.0], dtype=torch.float64))
    x = torch.randn(400, 5, generator=seeded(), dtype=torch.float64) * model.precision.sqrt()
    return model, x


def test_exact_posterior(linear):
    model, x = linear
    found = evaluate(model, x, **FEW)
    exact = -0.5 * (x.square() / model.precision + (2 * math.pi * model.precision).log()).sum(-1)
    assert found.log_p == pytest.approx(spread(exact, 45).mean().item(), abs=1e-10)
    assert found.log_p_error == pytest.approx(spread(exact, 45).std(correction=0).item() / 45**0.5)
    assert found.effective_samples == pytest.approx(7)
    assert found.effective_samples_error == pytest.approx(0, abs=1e-6)
    mu = x * model.slope.detach() / model.precision
    kl = 0.5 * (mu.square() + 1 / model.precision - 1 + model.precision.log())
    assert found.units.kl[0] == pytest.approx(kl.mean(0).tolist(), rel=1e-5)
    assert found.units.kl_error[0] == pytest.approx((kl.std(0, correction=0) / 20).tolist(), rel=1e-5, abs=1e-9)
    assert found.kl_terms == pytest.approx([kl.sum(-1).mean().item()])
    assert found.kl_terms_error == pytest.approx([kl.sum(-1).std(correction=0).item() / 20])
    assert found.units.mean_variance[0] == pytest.approx(mu.var(0, correction=0).tolist(), rel=1e-5, abs=1e-9)
    assert (found.units.number, found.units.active) == ((5,), (2,))


def test_chunks_and_processes_change_no_unit(linear):
    model, x = linear
    first, second = (evaluate(model, x, **FEW | {"image_chunk": size}).units for size in (400, 33))
    assert first.active == second.active
    assert first.kl[0] == pytest.approx(second.kl[0], rel=1e-5)
    assert first.mean_variance[0] == pytest.approx(second.mean_variance[0], rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("dead", [0, 2, 3])
def test_dead_units(dead, tiny):
    model, x = small(), binarize_fixed(tiny.x_test)
    with torch.no_grad():
        mu_and_log_sigma = model.head.linear
        for row in [*range(dead), *range(3, 3 + dead)]:
            mu_and_log_sigma.weight[row] = 0.0
            mu_and_log_sigma.bias[row] = 0.0
    found = evaluate(model, x, **FEW).units
    assert (found.number, found.active) == ((3,), (3 - dead,))
    assert found.kl[0][:dead] == pytest.approx([0.0] * dead, abs=1e-6)
    assert min(found.kl[0][dead:], default=1.0) > 1e-3


class Noisy(Linear):
    """As :class:`Linear`, of posterior means from few samples of variance 1."""

    def average_units(self, posterior, samples, *, generator):
        noise = torch.randn(samples, *posterior.mu.shape, generator=generator, dtype=torch.float64)
        return [posterior.mu + noise.mean(0)]


def test_noise_of_sampled_means_is_no_variance():
    model = Noisy(torch.tensor([0.0] * 20 + [1.0], dtype=torch.float64))
    x = torch.randn(3000, 21, generator=seeded(), dtype=torch.float64)
    (variances,) = evaluate(model, x, samples=1, log_p_images=1).units.mean_variance
    # A product of two averages of standard deviation 1 / sqrt(DRAWS).
    assert max(map(abs, variances[:20])) < 5 / DRAWS / 3000**0.5 < 0.1 / DRAWS
    assert variances[20] == pytest.approx(0.25, abs=0.05)


def test_sums_of_a_chunk():
    model = Linear(torch.tensor([0.3, 0.0], dtype=torch.float64))
    x = torch.randn(4, 2, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        log_p_x, kl, sums = measure_units(model, x, model.encode(x), seeded(1))
    assert (log_p_x.shape, kl.shape, sums.shape) == ((4,), (4, 1), (6, 2))
    assert sums[0].tolist() == [0, 0]
    assert sums[1].sum() == pytest.approx(kl.sum().item())
    assert torch.equal(sums[3], sums[4])


def test_model_that_does_not_know_its_units(linear):
    model, x = linear

    class Plain:
        encode, measure, log_weights = model.encode, model.measure, model.log_weights
        parameters, state_dict = model.parameters, model.state_dict

    found, expected = evaluate(Plain(), x, **FEW), evaluate(model, x, **FEW)
    assert found.units == Units()
    assert replace(found, units=expected.units) == expected
