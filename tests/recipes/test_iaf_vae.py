"""The convolutional model: its layers, their initialisation, its bound and its evaluation."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastvae.distributions import StandardNormal
from fastvae.nn import initialize_from_data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.flow_posterior import FlowPosterior
from fastvae.recipes.systems.iaf_vae.config import IAF_BASES, IAF_POSTERIORS, IAFTrainConfig, IAFVAEConfig
from fastvae.recipes.systems.iaf_vae.layers import ResidualBlock, apply_weight_norm, halve
from fastvae.recipes.systems.iaf_vae.model import IAFVAE

SMALL = IAFVAEConfig(latent_features=3, depth=2, width=12, feature_maps=(2, 4), dense_features=10)


def small(posterior="iaf", x=None, **changes):
    torch.manual_seed(0)
    model = IAFVAE(replace(SMALL, posterior=posterior, **changes))
    model.initialize_from((torch.rand(50, model.config.data_features) < 0.3).float() if x is None else x)
    return model


def a_posterior_that_matters(model):
    """Spread-out means and correlations, where a new head is close to the prior."""
    with torch.no_grad():
        model.head.linear.parametrizations.weight.original0.mul_(8)
    return model


def all_outputs_of(model, layers, run):
    seen = {}
    handles = [layer.register_forward_hook(lambda m, _, out: seen.setdefault(m, out)) for layer in layers]
    run()
    for handle in handles:
        handle.remove()
    return seen


def normalised_layers(model):
    return [m for m in model.modules() if hasattr(m, "parametrizations")]


@pytest.mark.parametrize("side", [4, 7, 8, 14, 28])
def test_block_and_its_mirror_image(side):
    x = torch.randn(2, 3, side, side)
    down, up = ResidualBlock(3, 5, stride=2), ResidualBlock(5, 3, transposed_to=side)
    assert down(x).shape == (2, 5, halve(side), halve(side))
    assert up(down(x)).shape == x.shape
    assert ResidualBlock(3, 3)(x).shape == x.shape


def test_block_is_the_formula():
    block, x = ResidualBlock(2, 3, stride=2), torch.randn(4, 2, 6, 6)
    act = nn.functional.elu
    torch.testing.assert_close(block(x), block.skip(x) + 0.1 * block.second(act(block.first(act(x)))))
    plain = ResidualBlock(2, 2)
    torch.testing.assert_close(plain(x), x + 0.1 * plain.second(act(plain.first(act(x)))))


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.ConvTranspose2d(6, 4, 3)])
def test_data_dependent_initialisation_of_a_layer(layer):
    x = 3.0 + 2.0 * torch.randn(200, 6, *([5, 5] if not isinstance(layer, nn.Linear) else []))
    layer = apply_weight_norm(layer)
    initialize_from_data(layer, x, target_std={layer: 0.5})
    y = layer(x)
    dims = [0, 2, 3][: y.dim() - 1]
    torch.testing.assert_close(y.mean(dims), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(dims, correction=0), torch.full((4,), 0.5), atol=1e-4, rtol=0)
    assert not layer._forward_hooks


def test_initialisation_of_a_layer_without_bias_and_of_a_constant_output():
    layer, x = apply_weight_norm(nn.Linear(3, 2, bias=False)), 1.0 + torch.randn(100, 3)
    initialize_from_data(layer, x)
    torch.testing.assert_close(layer(x).std(0, correction=0), torch.ones(2))
    before = layer.weight.clone()
    initialize_from_data(layer, torch.ones(5, 3))
    torch.testing.assert_close(layer.weight, before)


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_every_layer_starts_at_unit_variance(posterior):
    x = (torch.rand(300, 784) < torch.rand(300, 1)).float()
    model = small(posterior, x=x)
    layers = normalised_layers(model)
    eps = torch.randn(300, 3)
    # With the noise that the initialisation saw; its layers after the sample depend on it.
    initialize_from_data(model, run=lambda: model.bound(x, eps=eps), target_std={model.head.linear: 0.1})
    seen = all_outputs_of(model, layers, lambda: model.bound(x, eps=eps))
    assert len(seen) == len(layers)
    for layer, y in seen.items():
        dims = [0, 2, 3] if y.dim() == 4 else [0]
        wanted = 0.1 if layer is model.head.linear else 1.0
        std = y.std(dims, correction=0)
        torch.testing.assert_close(std, torch.full_like(std, wanted), rtol=1e-3, atol=0)
        if layer.bias is not None:
            torch.testing.assert_close(y.mean(dims), torch.zeros_like(std), rtol=0, atol=2e-3)


def test_masked_layers_are_initialised_once():
    model = small()
    assert all(bool(network.initialized) for network in model.flow.steps())
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.bound((torch.rand(20, 784) < 0.5).float())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_everything_has_weight_normalisation():
    model = small()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert hasattr(module, "parametrizations") or getattr(module, "weight_gain", None) is not None
    assert model.decoder[0].parametrizations.weight.original0.shape == (10, 1)
    assert model.decoder[-2].second.parametrizations.weight.original0.shape == (1, 1, 1, 1)
    assert model.decoder[-4].second.parametrizations.weight.original0.shape == (1, 2, 1, 1)


def test_paper_layout():
    model = IAFVAE(IAFVAEConfig())
    model.eval()
    blocks = [layer for layer in model.encoder if isinstance(layer, ResidualBlock)]
    seen = all_outputs_of(model, blocks, lambda: model.encoder(torch.zeros(2, 784)))
    assert [tuple(y.shape[1:]) for y in seen.values()] == [
        (16, 14, 14),
        (16, 14, 14),
        (32, 7, 7),
        (32, 7, 7),
        (32, 4, 4),
        (32, 4, 4),
    ]
    mirror = [layer for layer in model.decoder if isinstance(layer, ResidualBlock)]
    seen = all_outputs_of(model, mirror, lambda: model.decode(torch.zeros(2, 32)))
    assert [tuple(y.shape[1:]) for y in seen.values()] == [
        (32, 4, 4),
        (32, 7, 7),
        (32, 7, 7),
        (16, 14, 14),
        (16, 14, 14),
        (1, 28, 28),
    ]
    assert model.encoder[-2].weight.shape == (450, 512)
    assert model.head.linear.weight.shape == (64, 450)
    assert [network.context_layer.weight.shape for network in model.flow.steps()] == [(320, 450)] * 2
    orders = [network.structure.order for network in model.flow.steps()]
    assert orders == [tuple(range(32)), tuple(reversed(range(32)))]


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_shapes(posterior, tiny):
    model, x = small(posterior), binarize_fixed(tiny.x_test)
    z, log_q = model.encode(x).rsample_with_log_prob((5,))
    assert z.shape == (5, 60, 3)
    assert log_q.shape == (5, 60)
    assert model.decode(z).shape == (5, 60, 784)
    assert model.bound(x).shape == (60,)


@pytest.mark.parametrize("kind", ["gated", "iaf_release"])
@pytest.mark.parametrize("base", IAF_BASES)
def test_flow_posterior_has_the_density_of_the_inverse(base, kind, tiny):
    model, x = a_posterior_that_matters(small(base=base, kind=kind)).double(), binarize_fixed(tiny.x_test).double()
    q = model.encode(x)
    assert isinstance(q, FlowPosterior)
    z, log_q = q.rsample_with_log_prob((4,))
    base, log_det = model.flow.inverse(z, q.context)
    torch.testing.assert_close(log_q, q.base.log_prob(base) + log_det)


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_groups_of_the_divergence_add_up(posterior, tiny):
    model, x = a_posterior_that_matters(small(posterior)), binarize_fixed(tiny.x_test)
    q = model.encode(x)
    eps = torch.randn(60, 3)
    z, groups = model.draw_with_kl(q, kl="dimensions", eps=eps)
    same, log_q, kl = q.rsample_with_kl(eps=eps)
    assert groups.shape == (60, 3)
    torch.testing.assert_close(z, same)
    torch.testing.assert_close(groups.sum(-1), kl, rtol=1e-4, atol=1e-5)
    if posterior == "iaf":
        torch.testing.assert_close(groups.sum(-1), log_q - StandardNormal(3).log_prob(z))


def test_groups_of_a_triangular_posterior_are_conditional_divergences(tiny):
    """The last dimension's, given those before it, against the divergence with and without it."""
    model, x = a_posterior_that_matters(small("triangular")), binarize_fixed(tiny.x_test)
    q = model.encode(x)
    _, groups = model.draw_with_kl(q, kl="dimensions")
    covariance = q.covariance_matrix
    divergences = []
    for count in (2, 3):
        part = torch.distributions.MultivariateNormal(q.mu[:, :count], covariance[:, :count, :count])
        prior = torch.distributions.MultivariateNormal(torch.zeros(count), torch.eye(count))
        divergences.append(torch.distributions.kl_divergence(part, prior))
    torch.testing.assert_close(groups[:, 2], divergences[1] - divergences[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_loss_with_free_bits(posterior, tiny):
    model, x = a_posterior_that_matters(small(posterior)), binarize_fixed(tiny.x_test)
    eps = torch.randn(60, 3)
    loss, bound, kl = model.loss(x, eps=eps)
    torch.testing.assert_close(loss, -model.bound(x, eps=eps).mean())
    torch.testing.assert_close(bound, -loss)
    q = model.encode(x)
    groups = model.draw_with_kl(q, kl="dimensions", eps=eps)[1].mean(0).detach()
    torch.testing.assert_close(groups.sum(), kl, rtol=1e-4, atol=1e-5)
    minimum = groups.max().item() * len(groups) / 3 * 0.9
    loss_free, bound_free, _ = model.loss(x, minimum, eps=eps)
    floor = groups.clamp(min=minimum * 3 / len(groups)).sum()
    torch.testing.assert_close(loss_free, loss + floor - groups.sum())
    torch.testing.assert_close(bound_free, bound, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_implementations_train_the_same_model(posterior, tiny):
    x, eps = binarize_fixed(tiny.x_test).double(), torch.randn(60, 3, dtype=torch.float64)
    weights, gradients = small(posterior).state_dict(), []
    for impl in ("auto", "reference"):
        model = small(posterior, impl=impl).double()
        model.load_state_dict(weights)
        model.loss(x, 0.01, eps=eps)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_autocast_keeps_the_posterior_in_full_precision(posterior, tiny):
    model, x = small(posterior), binarize_fixed(tiny.x_test)
    with torch.autocast("cpu", torch.bfloat16):
        q = model.encode(x)
        loss, *_ = model.loss(x, 0.01)
    assert (q.base if posterior == "iaf" else q).mu.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("posterior", IAF_POSTERIORS)
def test_evaluation(posterior, tiny):
    model, x = a_posterior_that_matters(small(posterior)).eval(), binarize_fixed(tiny.x_test)
    found = evaluate(model, x, samples=6, log_p_images=50, image_chunk=20, sample_chunk=4)
    assert found.elbo < found.log_p < 0
    assert 1 <= found.effective_samples <= 6
    assert found == evaluate(model, x, samples=6, log_p_images=50, image_chunk=20, sample_chunk=4)
    with torch.no_grad():
        bounds = torch.stack([model.bound(x).mean() for _ in range(15)])
    assert found.elbo == pytest.approx(bounds.mean().item(), abs=6 * bounds.std().item())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (IAFVAEConfig, {"posterior": "full"}, "posterior must be one of diagonal, triangular, iaf, got 'full'"),
        (IAFVAEConfig, {"base": "iaf"}, "base must be one of diagonal, triangular, got 'iaf'"),
        (IAFVAEConfig, {"kind": "planar"}, "kind must be one of gated, .*, got 'planar'"),
        (IAFVAEConfig, {"impl": "cuda"}, "impl must be one of auto, triton, cpp, reference, got 'cuda'"),
        (IAFVAEConfig, {"depth": 0}, "depth must be >= 1, got 0"),
        (IAFVAEConfig, {"feature_maps": ()}, "feature_maps must be one or more sizes >= 1"),
        (IAFVAEConfig, {"tril_scale": 0.0}, "tril_scale must be > 0"),
        (IAFTrainConfig, {"precision": "bf16"}, "precision must be one of"),
        (IAFTrainConfig, {"epochs": 0}, "epochs must be >= 1, got 0"),
        (IAFTrainConfig, {"learning_rate": float("nan")}, "learning_rate must be > 0 and finite, got nan"),
        (IAFTrainConfig, {"free_bits": -1.0}, "free_bits must be >= 0 and finite, got -1.0"),
        (IAFTrainConfig, {"decay_from": 1.5}, r"decay_from must lie in \[0, 1\], got 1.5"),
        (IAFTrainConfig, {"average_decay": 1.0}, r"average_decay must lie in \[0, 1\), got 1.0"),
        (EvaluationConfig, {"samples": 0}, "samples must be >= 1, got 0"),
    ],
)
def test_bad_configuration(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
