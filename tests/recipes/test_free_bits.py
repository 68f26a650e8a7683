"""Free bits of flow posteriors, weights of the KL term, and learned priors of a latent vector."""

from dataclasses import replace

import pytest
import torch

from fastvae.distributions import DiagonalGaussian, TriangularGaussian
from fastvae.likelihoods import bernoulli_log_prob
from fastvae.nn import FlowSequence, InverseAutoregressiveFlow, Permutation
from fastvae.objectives import CyclicSchedule, LinearSchedule, SigmoidSchedule, free_bits, standard_normal_log_prob
from fastvae.recipes.flow_posterior import FlowPosterior, draw_by_dimension
from fastvae.recipes.flow_prior import FlowPrior
from fastvae.recipes.systems.iaf_vae.config import IAFTrainConfig, IAFVAEConfig, IAFVAESettings
from fastvae.recipes.systems.pixelvae.config import PixelVAETrainConfig
from fastvae.recipes.systems.pixelvae.model import PixelVAE
from fastvae.recipes.systems.pixelvae.prior import GaussianPrior
from fastvae.recipes.systems.vae.config import VAEConfig, VAESettings, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from tests.recipes.pixel_support import SMALL_VAE
from tests.recipes.training_support import train

D = 4
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def scatter(module, spread=0.3):
    """Parameters away from their start, where much is zero or the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module


def posterior(base, dtype, permuted=False):
    torch.manual_seed(2)
    mu, log_sigma = torch.randn(6, D, dtype=dtype), 0.5 * torch.randn(6, D, dtype=dtype) - 1.0
    tril = torch.randn(6, D * (D - 1) // 2, dtype=dtype)
    q = DiagonalGaussian(mu, log_sigma) if base == "diagonal" else TriangularGaussian(mu, log_sigma, tril)
    flow = scatter(InverseAutoregressiveFlow(D, (8,), steps=2, context_features=3).to(dtype))
    chain = FlowSequence(flow, Permutation([1, 2, 3, 0])).to(dtype) if permuted else flow
    return FlowPosterior(q, chain, torch.randn(6, 3, dtype=dtype))


def vae_of(**changes):
    torch.manual_seed(1)
    return scatter(
        VAE(VAEConfig(**{"posterior": "iaf", "latent_features": D, "hidden_features": (8,), "width": 8} | changes)), 0.1
    )


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("base", ["diagonal", "triangular"])
def test_shares_add_up_to_the_log_densities(base, dtype, permuted):
    q, eps = posterior(base, dtype, permuted), torch.randn(5, 6, D, dtype=dtype)
    z, log_q = q.rsample_with_log_prob((5,), eps=eps)
    same, also_log_q, parts = q.rsample_with_kl((5,), kl="dimensions", eps=eps)
    torch.testing.assert_close(same, z)
    torch.testing.assert_close(also_log_q, log_q, rtol=1e-6, atol=1e-6)
    expected = log_q - standard_normal_log_prob(z)
    assert ((parts.sum(-1) - expected).abs() <= 1e-6 * parts.abs().sum(-1).clamp(min=1.0)).all()
    # Noise that nobody gives is found again from the sample.
    z, shares = draw_by_dimension(q, generator=torch.Generator().manual_seed(0))
    again, log_q = q.rsample_with_log_prob(generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z, again)
    torch.testing.assert_close(shares.sum(-1), log_q, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", ["diagonal", "triangular"])
def test_gradients_of_shares_are_those_of_the_density(base):
    q, eps = posterior(base, torch.float64), torch.randn(6, D, dtype=torch.float64)
    leaves = [q.base.mu, q.base.log_sigma, *q.flow.parameters()] + ([q.base.tril] if base == "triangular" else [])
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.rand(6, dtype=torch.float64)
    wanted = torch.autograd.grad((weights * q.rsample_with_kl(eps=eps)[2]).sum(), leaves)
    for noise in ({"eps": eps}, {"generator": torch.Generator().manual_seed(0)}):
        parts = q.rsample_with_kl(kl="dimensions", **noise)[2]
        if "eps" not in noise:
            wanted = torch.autograd.grad(
                (weights * q.rsample_with_kl(generator=torch.Generator().manual_seed(0))[2]).sum(), leaves
            )
        found = torch.autograd.grad((weights * parts.sum(-1)).sum(), leaves)
        for d, expected in zip(found, wanted, strict=True):
            torch.testing.assert_close(d, expected)


def test_a_share_belongs_to_its_dimension():
    """With independent dimensions a share is that dimension's own log-density."""
    mu, log_sigma = torch.randn(3, D).double(), torch.randn(3, D).double()
    turn = Permutation([1, 2, 3, 0])
    q = FlowPosterior(DiagonalGaussian(mu, log_sigma), FlowSequence(turn), None)
    z, shares = draw_by_dimension(q)
    own = torch.distributions.Normal(mu[:, [1, 2, 3, 0]], log_sigma[:, [1, 2, 3, 0]].exp()).log_prob(z)
    torch.testing.assert_close(shares, own)


def test_a_dimension_under_its_floor_has_no_gradient():
    q, eps = posterior("diagonal", torch.float64), torch.randn(6, D, dtype=torch.float64)
    parts = q.rsample_with_kl(kl="dimensions", eps=eps)[2]
    means = parts.detach().mean(0)
    floor = means.sort().values[1:3].mean().clamp(min=0.0).item()
    (d_parts,) = torch.autograd.grad(free_bits(parts, floor), parts, retain_graph=True)
    assert torch.equal(d_parts, ((means > floor).double() / 6).expand(6, D))
    penalty = free_bits(parts, 1e6)
    for gradient in torch.autograd.grad(penalty, list(q.flow.parameters())):
        assert (gradient == 0).all()


def test_the_last_step_of_a_dimension_under_its_floor_has_no_gradient():
    """Only the share of its own dimension depends on its shift and scale."""
    q, eps = posterior("diagonal", torch.float32), torch.randn(6, D)
    parts = q.rsample_with_kl(kl="dimensions", eps=eps)[2]
    means = parts.detach().mean(0)
    floor = means.sort().values[1:3].mean().clamp(min=0.0).item()
    last = q.flow.steps()[-1].masked_layers()[-1]
    gradients = torch.autograd.grad(free_bits(parts, floor), [last.weight, last.bias])
    for gradient in gradients:
        per_output = gradient.abs().reshape(2, D, -1).sum(-1)
        assert (per_output[:, means <= floor] == 0).all()
    assert (gradients[1].reshape(2, D)[:, means > floor] != 0).all()


@pytest.mark.parametrize("prior", ["normal", "maf"])
@pytest.mark.parametrize("kind", ["diagonal", "triangular", "iaf"])
def test_loss(kind, prior):
    model, x = vae_of(posterior=kind, prior=prior, prior_width=8), (torch.rand(9, 784) < 0.3).float()
    eps = torch.randn(9, D)
    q = model.encode(x)
    z, parts = model.draw_with_kl(q, kl="dimensions", eps=eps)
    same, kl = model.draw_with_kl(q, eps=eps)
    torch.testing.assert_close(parts.sum(-1), kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z, same)
    log_p_x = bernoulli_log_prob(x, model.decode(z)).mean()
    loss, bound, mean = model.loss(x, beta=0.5, eps=eps)
    torch.testing.assert_close(
        torch.stack([loss, bound, mean]), torch.stack([0.5 * kl.mean() - log_p_x, log_p_x - kl.mean(), kl.mean()])
    )
    means = parts.mean(0)
    for groups, floor in ((0, 0.5), (2, 0.5), (1, 100.0)):
        loss, bound, _ = model.loss(x, floor, num_groups=groups, beta=0.5, eps=eps)
        count = groups or D
        penalty = means.unflatten(0, (count, -1)).sum(1).clamp(min=floor * D / count).sum()
        torch.testing.assert_close(loss, 0.5 * penalty - log_p_x, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(bound, log_p_x - kl.mean(), rtol=1e-5, atol=1e-4)
    # Where nothing is above its floor, the loss has the gradient of the likelihood alone.
    parameters = [p for name, p in model.named_parameters() if not name.startswith("prior")]
    found, wanted = (torch.autograd.grad(t, parameters) for t in (model.loss(x, 1e6, eps=eps)[0], -log_p_x))
    for d, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(d, expected)


def test_sampled_divergence_of_a_gaussian_by_dimension():
    model, x = vae_of(posterior="triangular").double(), (torch.rand(2, 784) < 0.3).double()
    q = model.encode(x).expand((4000, 2))
    exact = q.rsample_with_kl(kl="dimensions")[2][0]
    _, parts = model.draw_with_kl(q, kl="dimensions", sampled=True, generator=torch.Generator().manual_seed(3))
    error = parts.std(0) / 4000**0.5
    assert ((parts.mean(0) - exact).abs() < 4.5 * error + 1e-9).all()


def test_prior_of_a_vector():
    torch.manual_seed(4)
    prior = FlowPrior(2, depth=3, width=8).double()
    z = torch.randn(7, 2).double()
    torch.testing.assert_close(prior.log_prob(z), standard_normal_log_prob(z))
    scatter(prior)
    torch.testing.assert_close(prior.log_prob_by_dimension(z).sum(-1), prior.log_prob(z))
    side = torch.linspace(-12, 12, 401).double()
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        assert prior.log_prob(grid).exp().sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1.0, abs=1e-3)
        drawn = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
        mass = (prior.log_prob(grid).exp() * (side[1] - side[0]) ** 2)[:, None]
    mean = (mass * grid).sum(0)
    assert ((drawn.mean(0) - mean).abs() < 4.5 * drawn.std(0) / 20_000**0.5 + 1e-3).all()


@pytest.mark.parametrize("kind", ["diagonal", "iaf"])
def test_weights_and_bounds_have_the_learned_prior(kind):
    model, x = vae_of(posterior=kind, prior="maf", prior_width=8), (torch.rand(5, 784) < 0.3).float()
    q, eps = model.encode(x), torch.randn(5, D)
    log_p_x, kl = model.measure(x, q, eps=eps)
    torch.testing.assert_close(model.log_weights(x, q, 1, eps=eps[None])[0], log_p_x - kl[:, 0])
    torch.testing.assert_close(model.bound(x, eps=eps), log_p_x - kl[:, 0], rtol=1e-5, atol=1e-3)
    assert model.sample(3, generator=torch.Generator().manual_seed(0)).shape == (3, 784)


def test_weight_of_the_kl_term():
    for schedule, expected in (
        ("linear", LinearSchedule(0.0, 1.0, 20)),
        ("cyclic", CyclicSchedule(0.0, 1.0, 40, ramp=0.5, cycles=3)),
        ("sigmoid", SigmoidSchedule(0.0, 1.0, midpoint=10, slope=0.6)),
    ):
        config = VAETrainConfig(kl_warmup=4.0, schedule=schedule, kl_cycles=3)
        assert [config.kl_weight(step, 5) for step in range(200)] == [expected(step) for step in range(200)]
    assert IAFTrainConfig().kl_weight(1, 100) == 1.0
    assert PixelVAETrainConfig(schedule="cyclic", kl_warmup=10, kl_cycles=0).kl_weight(1010) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VAETrainConfig(schedule="sigmoid"), "kl_warmup must be > 0 for schedule='sigmoid', got 0.0"),
        (lambda: IAFTrainConfig(schedule="cosine"), "schedule must be one of linear, cyclic, sigmoid"),
        (lambda: IAFTrainConfig(kl_warmup=-1.0), "kl_warmup must be >= 0"),
        (lambda: VAETrainConfig(free_bits=-0.1), "free_bits must be >= 0"),
        (
            lambda: VAESettings(VAEConfig(), VAETrainConfig(free_bits_groups=5)),
            "free_bits_groups must divide .* 32, got 5",
        ),
        (
            lambda: IAFVAESettings(training=IAFTrainConfig(free_bits_groups=3)),
            "free_bits_groups must divide .* 32, got 3",
        ),
        (lambda: VAEConfig(prior="flow"), "prior must be one of normal, maf"),
    ],
)
def test_settings_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_runs(tiny, tmp_path):
    flow = {"latent_features": D, "width": 8, "prior": "maf", "prior_width": 8}
    training = {"epochs": 1, "batch_size": 100, "free_bits": 0.1, "free_bits_groups": 2, "kl_warmup": 1.0}
    vae = VAETrainConfig(schedule="sigmoid", **training)
    found = train("vae", VAEConfig("triangular", hidden_features=(8,), **flow), vae, tmp_path / "vae", images=tiny)
    assert any(p.detach().abs().max() > 0 for p in found.model.prior.flow.networks[0].layers[-1].parameters())
    small = IAFVAEConfig(depth=1, feature_maps=(2,), dense_features=8, **flow)
    train("iaf_vae", small, IAFTrainConfig(schedule="cyclic", **training), tmp_path / "iaf", images=tiny)


def test_prior_over_a_map_starts_at_the_standard_normal():
    torch.manual_seed(0)
    for normalised in (False, True):
        prior = GaussianPrior(2, 4, 2, context_features=3, weight_norm=normalised)
        z, context = torch.randn(5, 2, 7, 7), torch.randn(5, 3)
        torch.testing.assert_close(prior.log_prob(z, context), standard_normal_log_prob(z.flatten(1)))
        prior.log_prob(z, context).sum().backward()
        last = prior.head.second.weight_gain if normalised else prior.head.second.weight
        assert (last.grad != 0).any()


def test_two_levels_start_with_a_small_divergence():
    torch.manual_seed(0)
    model = PixelVAE(replace(SMALL_VAE, levels=2, latent="map", decoder="upsampling", prior="pixelcnn"))
    x = (torch.rand(10, 784) < 0.3).float()
    _, kl = model.measure(x)
    exact = model.encode(x)[0].rsample_with_kl()[2]
    torch.testing.assert_close(kl[:, 0], exact)
