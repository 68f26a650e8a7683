"""The system ``draw``: what one glimpse is, noise of its own for each, its estimates, windows and settings."""

import pytest
import torch
from torch import nn

from fastvae.recipes.data.labelled import load_labelled
from fastvae.recipes.evaluation.latents import OneLatent
from fastvae.recipes.systems.draw import pictures
from fastvae.recipes.systems.draw.config import DRAWConfig, DRAWSettings, DRAWTrainConfig
from fastvae.recipes.systems.draw.model import DRAW
from fastvae.recipes.systems.draw.pictures import rectangle_of
from fastvae.recipes.systems.loading import find_system
from tests.recipes.training_support import (
    assert_same_weights,
    metrics,
    train,
    train_on_one_and_two_processes,
)

SIZES = {"latent_features": 4, "hidden_features": 6, "write_points": 3, "data_features": 64}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(glimpses=3, attention="window"):
    torch.manual_seed(2)
    model = DRAW(DRAWConfig(glimpses, attention, **SIZES)).double()
    with torch.no_grad():
        for parameter in (model.canvas, model.encoder.start, model.decoder.start):
            parameter.normal_()
    return model


@pytest.fixture
def x():
    return torch.rand(5, 64, generator=seeded(3), dtype=torch.float64).round()


class OneGlimpse(OneLatent):
    """A VAE whose networks are the parts of a DRAW that draws once, whole."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def encode(self, x):
        model, rows = self.model, len(x)
        output, cell = model.decoder.start[0].expand(rows, -1), model.encoder.start.unsqueeze(1).expand(2, rows, -1)
        seen = torch.cat([x, x - model.canvas.sigmoid(), output], 1)
        return model.head(model.encoder.cell(seen, tuple(cell))[0])

    def decode(self, z):
        rows = z.flatten(0, -2)
        state = tuple(self.model.decoder.start.unsqueeze(1).expand(2, len(rows), -1))
        logits = self.model.canvas + self.model.writer.patch(self.model.decoder.cell(rows, state)[0])
        return logits.view(*z.shape[:-1], -1)


def test_one_glimpse_without_attention_is_a_vae(x):
    model = make(1, "none")
    vae = OneGlimpse(model)
    log_p_x, kl = model.measure(x, generator=seeded())
    expected_log_p_x, expected_kl = vae.measure(x, generator=seeded())
    torch.testing.assert_close(log_p_x, expected_log_p_x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kl, expected_kl, rtol=1e-12, atol=1e-12)
    log_w = model.log_weights(x, model.encode(x), 7, generator=seeded(1))
    expected = vae.log_weights(x, vae.encode(x), 7, generator=seeded(1))
    torch.testing.assert_close(log_w, expected, rtol=1e-12, atol=1e-12)
    weights = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad((terms[0] - terms[1].sum(-1)).sum(), weights)
        for terms in ((log_p_x, kl), (expected_log_p_x, expected_kl))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attention", ["window", "none"])
def test_recurrence_by_hand(attention, x):
    model = make(3, attention)
    eps = torch.randn(5, 3, 4, generator=seeded(1), dtype=torch.float64)
    log_p_x, kl = model.measure(x, eps=eps.flatten(1))
    canvas, expected = model.canvas.expand(5, -1), []
    encoder, decoder = (tuple(net.start.unsqueeze(1).expand(2, 5, -1)) for net in (model.encoder, model.decoder))
    for t in range(3):
        lacking = x - canvas.sigmoid()
        seen = torch.cat([x, lacking], 1)
        if attention == "window":
            filter_y, filter_x, gain = written_out(model.reader.window(decoder[0]), 2)
            patches = [gain * filter_y @ image.view(5, 8, 8) @ filter_x.mT for image in (x, lacking)]
            seen = torch.stack(patches, 1).flatten(1)
        encoder = model.encoder.cell(torch.cat([seen, decoder[0]], 1), encoder)
        mu, log_sigma = model.head(encoder[0]).mu, model.head(encoder[0]).log_sigma
        expected.append(0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1))
        decoder = model.decoder.cell(mu + log_sigma.exp() * eps[:, t], decoder)
        written = model.writer.patch(decoder[0])
        if attention == "window":
            filter_y, filter_x, gain = written_out(model.writer.window(decoder[0]), 3)
            written = (filter_y.mT @ written.view(5, 3, 3) @ filter_x / gain).flatten(1)
        canvas = canvas + written
    torch.testing.assert_close(kl, torch.stack(expected, -1))
    torch.testing.assert_close(log_p_x, (x * canvas - nn.functional.softplus(canvas)).sum(-1))


def written_out(window, points):
    """Filters of 8 x 8 images by the paper's equations, with pixels and points from 1."""
    g_x, g_y, log_variance, log_stride, log_gain = (t[:, None] for t in window.unbind(-1))
    i, a = torch.arange(1, points + 1).double(), torch.arange(1, 9).double()
    filters = []
    for g in (g_y, g_x):
        mu = 4.5 * (g + 1) + (i - points / 2 - 0.5) * 7 / (points - 1) * log_stride.exp()
        weights = (-(a - mu[..., None]).square() / (2 * log_variance.exp()[..., None])).exp()
        filters.append(weights / weights.sum(-1, keepdim=True))
    return *filters, log_gain.exp()[..., None]


def test_every_glimpse_has_noise_of_its_own(x):
    """With a posterior that is N(0, I) latents are the noise itself."""
    model = make(4)
    nn.init.zeros_(model.head.linear.weight)
    nn.init.zeros_(model.head.linear.bias)
    for options in ({"kl": "sum"}, {"sample_shape": (2,)}):
        latents = torch.stack(model.draw(x, generator=seeded(), **options).latents)
        assert latents.flatten().unique().numel() == latents.numel()
    imagined = torch.stack(model.imagine(3, generator=seeded()).latents)
    assert imagined.flatten().unique().numel() == imagined.numel()


def test_measured_terms_have_the_mean_of_the_log_weights(x):
    model, rows = make(2), x[:1].expand(20_000, 64)
    with torch.no_grad():
        log_p_x, kl = model.measure(rows, generator=seeded(4))
        log_w = model.log_weights(x[:1], x[:1], 20_000, generator=seeded(5))[:, 0]
    bound = log_p_x - kl.sum(-1)
    error = ((bound.var() + log_w.var()) / len(rows)).sqrt()
    assert abs(bound.mean() - log_w.mean()) < 4 * error


def test_draws_do_not_depend_on_the_shares_of_a_batch(x):
    model = make(3)
    whole = model.log_weights(x, x, 4, generator=seeded(7)), *model.measure(x, generator=seeded(8))
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        log_w = model.log_weights(x[rows], x[rows], 4, generator=seeded(7), row_offset=rows.start)
        parts.append((log_w.t(), *model.measure(x[rows], generator=seeded(8), row_offset=rows.start)))
    for found, expected in zip(zip(*parts, strict=True), (whole[0].t(), *whole[1:]), strict=True):
        torch.testing.assert_close(torch.cat(found), expected)


def test_resumed_run_is_one_run(tmp_path):
    system = find_system("draw")
    settings = system.settings(DRAWConfig(2, **SIZES), DRAWTrainConfig(data="digits", epochs=2, batch_size=450))
    options = {"images": load_labelled("digits"), "accelerator": "cpu", "progress": False}
    whole = system.run(settings, tmp_path / "whole", finish=False, **options)
    part = system.run(settings, tmp_path / "parts", limit_epochs=1, **options)
    torch.rand(3)
    found = system.run(settings, tmp_path / "parts", resume=part.checkpoint, finish=False, **options)
    assert_same_weights(found, whole)


def test_two_processes_train_as_one_with_the_joint_batch(tiny, tmp_path):
    one, two = train_on_one_and_two_processes("draw_two_processes.py", tiny, tmp_path)
    for name in ("plain", "free"):
        for ours, theirs in zip(metrics(two / name), metrics(one / name), strict=True):
            for column in ("loss", "train_elbo", "train_kl", "test_elbo"):
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-9), (name, column)


def test_free_glimpses_have_no_gradient_of_their_divergence(tmp_path):
    """Below a floor far above its terms the loss is that of log p(x | z) alone."""
    found = {}
    for name, changes in {"free": {"free_bits": 1e3}, "no weight": {"kl_warmup": 1e9}}.items():
        training = DRAWTrainConfig(data="digits", epochs=1, batch_size=700, precision="64-true", **changes)
        images = load_labelled("digits")
        found[name] = train("draw", DRAWConfig(2, **SIZES), training, tmp_path / name, images=images, finish=False)
    ours, theirs = (run.model.state_dict() for run in found.values())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-7, atol=1e-7)


def test_pictures_and_figures(tmp_path):
    images, model = load_labelled("digits"), DRAWConfig(2, **SIZES)
    training = DRAWTrainConfig(data="digits", epochs=1, batch_size=600)
    evaluation = find_system("draw").settings.__dataclass_fields__["evaluation"].default_factory()
    few = type(evaluation)(samples=2, log_p_images=10)
    run = train("draw", model, training, tmp_path, images=images, evaluation=few)
    assert len(run.figures.kl_terms) == len(run.figures.units.number) == 2
    assert {"test_kl1", "test_kl2"} <= metrics(tmp_path)[0].keys()
    for name in ("samples", "reconstructions", "canvases", "divergences", "kl_terms", "units"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_canvases_of_many_glimpses(x, tmp_path, monkeypatch):
    """Some of them are shown, the last among them, each with its two windows."""
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    pictures.draw_canvases(make(12).float(), x[:1].float(), tmp_path / "canvases.png", samples=1)
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == ["1", "2", "3", "4", "6", "7", "8", "9", "10", "12", *[""] * 10]
    assert [len(axes.patches) for axes in drawn[0].axes] == [2] * 10 + [1] * 10


def test_rectangle_of_a_window():
    """A window of the whole image goes from the first pixel to the last; half a stride is half of that."""
    assert rectangle_of(torch.zeros(5), 5, 28) == pytest.approx((0.0, 0.0, 27.0))
    moved = torch.tensor([0.2, -0.2, 0.0, 0.0, 3.0])
    moved[3] = torch.tensor(0.5).log()
    assert rectangle_of(moved, 5, 28) == pytest.approx((6.75 + 2.9, 6.75 - 2.9, 13.5))


def test_settings():
    with pytest.raises(ValueError, match="data_features must be those of a square image, such as 784, got 63"):
        DRAWConfig(data_features=63)
    with pytest.raises(ValueError, match="data_features must be 64 for data='digits', got 784"):
        DRAWSettings(training=DRAWTrainConfig(data="digits"))
    with pytest.raises(ValueError, match=r"final_learning_rate must be between 0 and learning_rate=0\.001, got 0\.1"):
        DRAWTrainConfig(final_learning_rate=0.1)
    with pytest.raises(ValueError, match="attention must be one of window, none, got 'soft'"):
        DRAWConfig(attention="soft")
    assert DRAWTrainConfig(data="static").measured_part == "valid"
