"""The recipe ``pixelvae``: its bounds against formulae written out, its estimates, its variants, its command line."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvae import __main__ as cli
from fastvae.objectives import LogMeanExp
from fastvae.recipes import data, pixelvae_training
from fastvae.recipes.batches import binarize_fixed
from fastvae.recipes.iaf_config import EvaluationConfig
from fastvae.recipes.pixel_config import PixelVAEConfig, PixelVAETrainConfig
from fastvae.recipes.pixel_evaluation import evaluate_pixelvae
from fastvae.recipes.pixel_gaussian import GaussianPixels, GaussianPrior
from fastvae.recipes.pixelvae import PixelVAE
from fastvae.recipes.pixelvae_training import load_pixelvae, train_pixelvae
from tests.recipes.pixel_support import Crash, assert_same_run, is_png, keep, metrics, static_images

SMALL = PixelVAEConfig(
    latent_features=3,
    latent_maps=2,
    prior_layers=2,
    prior_maps=4,
    decoder_maps=2,
    encoder_maps=(2, 3, 4),
    layers=2,
    filter_size=3,
    first_filter_size=5,
    maps=4,
)
VARIANTS = {
    "vector": {},
    "plain": {"network": "plain"},
    "upsampling": {"decoder": "upsampling"},
    "conv": {"decoder": "conv"},
    "map": {"latent": "map", "decoder": "upsampling"},
    "map, conv": {"latent": "map", "decoder": "conv"},
    "map, prior": {"latent": "map", "decoder": "upsampling", "prior": "pixelcnn"},
    "two levels": {"levels": 2, "latent": "map", "decoder": "upsampling", "prior": "pixelcnn"},
    "two levels, conv": {"levels": 2, "latent": "map", "decoder": "conv", "prior": "pixelcnn"},
}
SHORT = PixelVAETrainConfig(epochs=2, batch_size=50, average_decay=0.8, learning_rate=1e-2, kl_warmup=4)
FEW = EvaluationConfig(samples=3, log_p_images=20)

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def model_of(variant, **changes):
    torch.manual_seed(0)
    return PixelVAE(replace(SMALL, **VARIANTS[variant], **changes)).eval()


def binary(n):
    return (torch.rand(n, 784) < 0.2).float()


@pytest.fixture
def images(tiny):
    return static_images(tiny)


def run(images, folder, config=SHORT, model=SMALL, **options):
    return train_pixelvae(
        model, config, folder, evaluation=FEW, images=images, accelerator="cpu", progress=False, **options
    )


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps(variant, images, tmp_path):
    config = replace(SMALL, **VARIANTS[variant])
    found = run(images, tmp_path, replace(SHORT, epochs=1, batch_size=125), config)
    torch.manual_seed(0)
    start = PixelVAE(config).state_dict()
    moved = [name for name, value in found.model.state_dict().items() if not torch.equal(value, start[name])]
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name, _ in found.model.named_parameters()}
    figures = found.figures
    assert figures.kl == pytest.approx(sum(figures.kl_terms))
    assert all(math.isfinite(value) for value in (figures.elbo, figures.valid_elbo, figures.log_p, figures.kl))
    pictures = ("samples", "reconstructions", "interpolations", "learning_curves")
    assert all(is_png(tmp_path / f"{name}.png") for name in pictures)


def test_what_a_run_leaves_behind(images, tmp_path):
    found = run(images, tmp_path, replace(SHORT, epochs=4))
    rows = metrics(tmp_path)
    assert float(rows[-1]["train_elbo"]) > float(rows[0]["train_elbo"]) + 10
    result = json.loads((tmp_path / "result.json").read_text())
    wanted = {"recipe": "pixelvae", "samples": 3, "log_p_images": 20, "elbo_images": 60, "train_images": 250}
    assert wanted.items() <= result.items()
    assert (result["elbo"], result["log_p"]) == (found.figures.elbo, found.figures.log_p)
    model, config = load_pixelvae(found.checkpoint)
    assert (model.config, config) == (SMALL, replace(SHORT, epochs=4))
    again = evaluate_pixelvae(model, images, samples=3, log_p_images=20)
    assert (again.elbo, again.log_p) == (found.figures.elbo, found.figures.log_p)


@torch.no_grad()
def test_estimate_of_log_p_is_above_the_bound(images):
    model = model_of("vector")
    # A posterior far from the true one, which a decoder that hardly looks at z has close to the prior.
    model.vector_head.linear.bias[:3] = 1.5
    figures = evaluate_pixelvae(model, images, samples=200, sample_chunk=50, log_p_images=40)
    assert figures.kl > 3
    assert figures.log_p > figures.elbo + 2
    assert 1 <= figures.effective_samples <= 200


@pytest.mark.parametrize("variant", ["vector", "two levels"])
def test_resumed_run_ends_as_an_unbroken_one(variant, images, tmp_path):
    model = replace(SMALL, **VARIANTS[variant])
    expected = run(images, tmp_path / "whole", model=model)
    with pytest.raises(RuntimeError, match="power failure"):
        run(images, tmp_path / "broken", model=model, callbacks=[Crash()])
    assert_same_run(run(images, tmp_path / "broken", model=model, resume=tmp_path / "broken" / "last.ckpt"), expected)


def test_weight_of_the_kl_terms(images, tmp_path):
    for warmup in (0, 10**9):
        run(images, tmp_path / str(warmup), replace(SHORT, epochs=1, kl_warmup=warmup))
        row = metrics(tmp_path / str(warmup))[0]
        loss, elbo, kl = (float(row[name]) for name in ("loss", "train_elbo", "train_kl"))
        assert loss == pytest.approx(-elbo - (kl if warmup else 0.0), rel=1e-6)


def test_reference_trains_as_the_fused_ops(images, tmp_path):
    """With noise of its own: the first bounds differ by that only."""
    for impl in ("auto", "reference"):
        run(images, tmp_path / impl, replace(SHORT, epochs=1), replace(SMALL, impl=impl))
    ours, theirs = (float(metrics(tmp_path / impl)[0]["loss"]) for impl in ("auto", "reference"))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_what_is_chosen_by_itself():
    assert (SMALL.latent, SMALL.prior, SMALL.decoder) == ("vector", "normal", "bias")
    two = PixelVAEConfig(levels=2)
    assert (two.latent, two.prior, two.decoder) == ("map", "pixelcnn", "upsampling")
    assert PixelVAEConfig(latent="map").decoder == "upsampling"
    assert PixelVAEConfig(**two.as_dict()) == two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 3}, "levels must be 1 or 2, got 3"),
        ({"latent": "tree"}, "latent must be one of vector, map, got 'tree'"),
        ({"prior": "flow"}, "prior must be one of normal, pixelcnn, got 'flow'"),
        ({"decoder": "deconv"}, "decoder must be one of bias, upsampling, conv, got 'deconv'"),
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
        replace(SMALL, **change)


def test_bad_warmup():
    with pytest.raises(ValueError, match="kl_warmup must be >= 0, got -1"):
        replace(SHORT, kl_warmup=-1)


# Command line

OPTIONS = (
    "--levels 2 --latent-features 3 --latent-maps 2 --prior-layers 2 --prior-maps 4 --decoder-maps 2 "
    "--encoder-maps 2 3 4 --layers 2 --filter 3 --maps 4 --epochs 1 --batch-size 50 --kl-warmup 5 --samples 3 "
    "--images 20 --device cpu --no-progress"
).split()


def test_command_line(images, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep(images, data.cache_folder(), monkeypatch)
    out = tmp_path / "out"
    assert cli.main(["train", "pixelvae", *OPTIONS, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 epochs" in printed
    assert "nats, of which KL" in printed
    assert "nats (K = 3, 20 test images;" in printed
    # The figures once more, with other samples.
    again = ["train", "pixelvae", "--resume", str(out / "last.ckpt"), "--samples", "5", "--device", "cpu"]
    assert cli.main([*again, "--no-progress", "--out", str(out)]) == 0
    assert "nats (K = 5, 10000" not in capsys.readouterr().out
    assert json.loads((out / "result.json").read_text())["samples"] == 5


def test_command_line_wins_over_the_file(tmp_path, monkeypatch):
    seen = []

    def record(*arguments, **options):
        seen.append((*arguments, options))
        raise SystemExit(0)

    monkeypatch.setattr(pixelvae_training, "train_pixelvae", record)
    settings = {"recipe": "pixelvae", "model": {"maps": 64, "encoder_maps": [2, 3, 4]}, "samples": 7, "kl_warmup": 3}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        cli.main(["train", "pixelvae", "--config", str(tmp_path / "c.json"), "--latent", "map", "--epochs", "5"])
    model, training, _, options = seen[0]
    assert model == PixelVAEConfig(latent="map", maps=64, encoder_maps=(2, 3, 4))
    assert training == PixelVAETrainConfig(epochs=5, kl_warmup=3)
    assert options["evaluation"] == EvaluationConfig(samples=7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--levels 3", "invalid choice: 3"),
        ("--decoder bias --latent map", "decoder must be 'upsampling' or 'conv' for latent='map'"),
        ("--encoder-maps 2 3", "expected 3 arguments"),
        ("--kl-warmup -1", "--kl-warmup: must be a whole number >= 0, got '-1'"),
        ("--samples 0", "--samples: must be a whole number >= 1, got '0'"),
    ],
)
def test_bad_option(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelvae", *arguments.split()])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "pixelvae", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "steps until the KL terms have weight 1 (default: 10000)" in said
    assert "of the encoder's stages (default: 32 64 64)" in said


def test_static_images_are_binary(images):
    assert set(binarize_fixed(images.x_test).unique().tolist()) == {0.0, 1.0}
