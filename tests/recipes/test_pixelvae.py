"""The model of the recipe ``pixelvae``: its bounds against formulae written out, its estimates, its samples."""

import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvae.objectives import LogMeanExp
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig
from fastvae.recipes.systems.pixelvae.model import PixelVAE
from fastvae.recipes.systems.pixelvae.prior import GaussianPixels, GaussianPrior
from tests.recipes.pixel_support import SMALL_VAE, VARIANTS, static_images


def model_of(variant, **changes):
    torch.manual_seed(0)
    return PixelVAE(replace(SMALL_VAE, **VARIANTS[variant], **changes)).eval()


def binary(n):
    return (torch.rand(n, 784) < 0.2).float()


def normal(q):
    return Independent(Normal(q.mu, q.log_sigma.exp()), 1)


def by_hand(model, x, eps):
    """log p(x | z) and the KL terms, with torch's own distributions."""
    posteriors = [normal(q) for q in model.encode(x)]
    z = [q.mean + q.stddev * e for q, e in zip(posteriors, eps.split(model.latent_sizes, -1), strict=True)]
    context = z[0] if model.upsampler is None else model.upsampler(model.as_map(z[0]) if model.map_head else z[0])
    logits = model.to_logits(context) if model.network is None else model.network(x.view(-1, 1, 28, 28), context)
    log_p_x = -binary_cross_entropy_with_logits(logits.flatten(1), x, reduction="none").sum(-1)
    terms = []
    if model.prior is not None:
        mu, log_sigma = model.prior(model.as_map(z[0]), *z[1:]).chunk(2, 1)
        prior = Independent(Normal(mu.flatten(1), log_sigma.exp().flatten(1)), 1)
        terms.append(kl_divergence(posteriors[0], prior))
    if len(terms) < len(posteriors):
        q = posteriors[-1]
        terms.append(0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(-1))
    return log_p_x, torch.stack(terms, -1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bound_and_its_gradient(variant):
    model, x = model_of(variant), binary(3)
    eps = torch.randn(3, model.noise_features)
    log_p_x, kl = by_hand(model, x, eps)
    expected = torch.autograd.grad((log_p_x - kl.sum(-1)).sum(), list(model.parameters()))
    found = model.measure(x, eps=eps)
    torch.testing.assert_close(found[0], log_p_x, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[1], kl, rtol=1e-4, atol=1e-4)
    assert found[1].shape == (3, len(model.kl_names))
    bound = model.bound(x, eps=eps)
    torch.testing.assert_close(bound, log_p_x - kl.sum(-1), rtol=1e-5, atol=1e-3)
    for ours, theirs in zip(torch.autograd.grad(bound.sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_log_weights(variant):
    model, x = model_of(variant), binary(2)
    posteriors = model.encode(x)
    eps = torch.randn(3, 2, model.noise_features)
    found = model.log_weights(x, posteriors, 3, eps=eps)
    for k in range(3):
        z = [normal(q).mean + normal(q).stddev * e for q, e in zip(
            posteriors, eps[k].split(model.latent_sizes, -1), strict=True
        )]  # fmt: skip
        log_q = sum(normal(q).log_prob(value) for q, value in zip(posteriors, z, strict=True))
        log_p = by_hand(model, x, eps[k])[0]
        if model.prior is None:
            log_p = log_p + Normal(0, 1).log_prob(z[0]).sum(-1)
        else:
            mu, log_sigma = model.prior(model.as_map(z[0]), *z[1:]).chunk(2, 1)
            log_p = log_p + Normal(mu, log_sigma.exp()).log_prob(model.as_map(z[0])).sum((1, 2, 3))
            log_p = log_p + sum(Normal(0, 1).log_prob(value).sum(-1) for value in z[1:])
        torch.testing.assert_close(found[k], log_p - log_q, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("variant", ["vector", "map, prior", "two levels"])
@torch.no_grad()
def test_importance_sampling_is_not_below_the_bound(variant):
    """Its mean over samples is: the bound's other form, whose KL terms are exact at each position, has the same."""
    model, x = model_of(variant), binary(2)
    generator = torch.Generator().manual_seed(0)
    log_w = model.log_weights(x, model.encode(x), 400, generator=generator)
    assert (LogMeanExp().update(log_w).value() > log_w.mean(0)).all()
    bounds = model.bound(x.repeat(400, 1), generator=generator).unflatten(0, (400, 2))
    error = (bounds.var(0) / 400 + log_w.var(0) / 400).sqrt()
    assert ((bounds.mean(0) - log_w.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_samples(variant):
    model = model_of(variant)
    x = model.sample(3, generator=torch.Generator().manual_seed(1))
    assert x.shape == (3, 784)
    assert ((x == 0) | (x == 1)).all()
    assert torch.equal(x, model.sample(3, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(x, model.sample(3, generator=torch.Generator().manual_seed(2)))
    z = model.sample_latents(4)
    assert z.shape == (4, model.latent_sizes[0])
    assert model.sample_images(z).shape == (4, 784)


@pytest.mark.parametrize("impl", ["cpp", "reference"])
def test_samples_whatever_the_ops(impl):
    """The C++ sampler does not know the prior's Gaussians."""
    assert model_of("two levels", impl=impl).sample(2).shape == (2, 784)


@torch.no_grad()
def test_gaussian_prior_draws_what_it_says():
    torch.manual_seed(0)
    prior = GaussianPrior(2, 8, 2, context_features=3).eval()
    # Far from a standard normal.
    prior.head.second.bias.copy_(torch.tensor([2.0, -1.0, 0.5, -0.5]))
    context = torch.randn(400, 3)
    z, parameters = prior._sampler().sample_with_parameters(400, (5, 4), context=context)
    torch.testing.assert_close(parameters, prior(z, context), rtol=1e-4, atol=1e-4)
    mu, log_sigma = prior.likelihood.moments(parameters)
    noise = (z - mu) / log_sigma.exp()
    count = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    expected = Normal(mu, log_sigma.exp()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(prior.log_prob(z, context), expected, rtol=1e-4, atol=1e-3)
    given = z.clone()
    given[:, :, 3:] = torch.nan
    again = prior.sample(400, (5, 4), context=context, given=given)
    assert torch.equal(again[:, :, :3], z[:, :, :3])


def test_gaussian_likelihood_refuses_infinite_numbers():
    with pytest.raises(ValueError, match="given must be finite"):
        GaussianPixels().check("given", torch.tensor([math.nan, math.inf]))


@torch.no_grad()
def test_prior_temperature_scales_the_noise():
    uniforms = torch.tensor([[0.1, 0.9]])
    parameters = torch.tensor([[1.0, 2.0, 0.0, math.log(3.0)]])
    wide, narrow = (GaussianPixels().draw(parameters, uniforms, t) for t in (1.0, 0.5))
    mean = torch.tensor([[1.0, 2.0]])
    torch.testing.assert_close(narrow - mean, 0.5 * (wide - mean))
    torch.testing.assert_close(wide, mean + torch.tensor([[-1.2815516, 3 * 1.2815516]]))


@torch.no_grad()
def test_parts_of_a_batch_draw_the_noise_of_the_whole():
    model, x = model_of("two levels", impl="cpp"), binary(4)
    whole, _ = model.draw(model.encode(x), generator=torch.Generator().manual_seed(3))
    part, _ = model.draw(model.encode(x[2:]), generator=torch.Generator().manual_seed(3), row_offset=2)
    for ours, theirs in zip(part, whole, strict=True):
        torch.testing.assert_close(ours, theirs[2:])


def test_autocast():
    model, x = model_of("two levels"), binary(2)
    with torch.autocast("cpu", torch.bfloat16):
        posteriors = model.encode(x)
        bound = model.bound(x)
    assert all(q.mu.dtype == torch.float32 for q in posteriors)
    assert bound.dtype == torch.float32
    assert bound.isfinite().all()


@pytest.mark.parametrize("variant", ["vector", "two levels"])
def test_reference_computes_what_the_fused_ops_do(variant):
    reference, fused, x = model_of(variant, impl="reference"), model_of(variant), binary(20)
    eps = torch.randn(20, fused.noise_features)
    bounds = [model.bound(x, eps=eps).mean() for model in (fused, reference)]
    torch.testing.assert_close(*bounds, rtol=1e-6, atol=1e-3)
    gradients = [
        torch.autograd.grad(bound, list(model.parameters()))
        for bound, model in zip(bounds, (fused, reference), strict=True)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_estimate_of_log_p_is_above_the_bound(tiny):
    model = model_of("vector")
    # A posterior far from the true one, which a decoder that hardly looks at z has close to the prior.
    model.vector_head.linear.bias[:3] = 1.5
    x = binarize_fixed(static_images(tiny).x_test)
    figures = evaluate(model, x, samples=200, sample_chunk=50, log_p_images=40)
    assert figures.kl > 3
    assert figures.log_p > figures.elbo + 2
    assert 1 <= figures.effective_samples <= 200


def test_what_is_chosen_by_itself():
    assert (SMALL_VAE.latent, SMALL_VAE.prior, SMALL_VAE.decoder) == ("vector", "normal", "bias")
    two = PixelVAEConfig(levels=2)
    assert (two.latent, two.prior, two.decoder) == ("map", "pixelcnn", "upsampling")
    assert PixelVAEConfig(latent="map").decoder == "upsampling"
    assert PixelVAEConfig(**two.as_dict()) == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 3}, "levels must be one of 1, 2, got 3"),
        ({"latent": "tree"}, "latent must be one of auto, vector, map, got 'tree'"),
        ({"prior": "flow"}, "prior must be one of auto, normal, pixelcnn, got 'flow'"),
        ({"decoder": "deconv"}, "decoder must be one of auto, bias, upsampling, conv, got 'deconv'"),
        ({"levels": 2, "latent": "vector"}, "latent must be 'map' for levels=2"),
        ({"levels": 2, "latent": "map", "prior": "normal", "decoder": "conv"}, "prior must be 'pixelcnn' for levels=2"),
        ({"prior": "pixelcnn"}, "prior must be 'normal' for latent='vector'"),
        ({"latent": "map"}, "decoder must be 'upsampling' or 'conv' for latent='map', got 'bias'"),
        ({"latent_maps": 0}, "latent_maps must be >= 1, got 0"),
        ({"prior_filter_size": 2}, "prior_filter_size must be odd, got 2"),
        ({"encoder_maps": (2, 3)}, r"encoder_maps must be three sizes >= 1, got \(2, 3\)"),
        ({"maps": 0}, "maps must be >= 1, got 0"),
    ],
)
def test_bad_model(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL_VAE, **change)
