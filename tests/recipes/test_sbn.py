"""The system ``sbn``: its bound against enumeration, its estimators, its runs."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.distributions import Bernoulli

from fastvae.recipes import RecipeError
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.sbn import pictures
from fastvae.recipes.systems.sbn.config import ESTIMATORS, SBNConfig, SBNSettings, SBNTrainConfig
from fastvae.recipes.systems.sbn.estimators import Baselines, estimate
from fastvae.recipes.systems.sbn.model import SBN
from tests.recipes.training_support import assert_same_run, metrics, train, train_on_one_and_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
SMALL = SBNConfig(latent_features=6, hidden_features=5)
SHORT = SBNTrainConfig(epochs=2, batch_size=50, k=3)
FEW = EvaluationConfig(samples=3, log_p_images=20)
LAYERS = ("linear", "linear2", "nonlinear")
# Pixels so few, and units so few, that all of them can be summed over.
PIXELS, UNITS, ROWS = 5, 3, 40_000


def toy(layers):
    """A model with weights that matter, in float64, and an image."""
    torch.manual_seed(1)
    model = SBN(SBNConfig(layers, UNITS, 4, PIXELS)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return model, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def every(count):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def enumerate_all(model, x):
    """log p(x, b) and log q(b | x) of all configurations, by torch's distributions."""
    depth = len(model.encoders)
    b = every(UNITS * depth).unflatten(1, (depth, UNITS)).unbind(1)
    log_q = log_p = 0.0
    for below, above, encoder in zip((x.expand(len(b[0]), -1), *b), b, model.encoders, strict=False):
        log_q = log_q + Bernoulli(logits=encoder(2 * below - 1)).log_prob(above).sum(-1)
    for below, above, decoder in zip((x.expand(len(b[0]), -1), *b), b, model.decoders, strict=False):
        log_p = log_p + Bernoulli(logits=decoder(2 * above - 1)).log_prob(below).sum(-1)
    return log_p + Bernoulli(logits=model.prior_logits).log_prob(b[-1]).sum(-1), log_q


@pytest.mark.parametrize("layers", LAYERS)
def test_bound_and_log_p_are_the_enumerated_ones(layers):
    model, x = toy(layers)
    with torch.no_grad():
        log_p, log_q = enumerate_all(model, x)
        torch.testing.assert_close(log_q.exp().sum(), torch.ones((), dtype=torch.float64))
        rows = x.expand(ROWS, -1)
        generator = torch.Generator().manual_seed(2)
        log_p_x, kl = model.measure(rows, generator=generator)
        bounds = log_p_x - kl.sum(-1)
        assert kl.shape == (ROWS, len(model.encoders))
        assert abs(bounds.mean() - log_q.exp() @ (log_p - log_q)) < 4.5 * bounds.std() / ROWS**0.5
        log_w = model.log_weights(rows[:4], model.encode(rows[:4]), 10_000, generator=generator)
        assert log_w.shape == (10_000, 4)
        weights = (log_w - log_p.logsumexp(0)).exp()
        assert abs(weights.mean() - 1) < 4.5 * weights.std() / weights.numel() ** 0.5


def exact_gradients(model, x, samples, beta=1.0):
    """Of the enumerated bound, of K samples where there are several, for all weights."""
    log_p, log_q = enumerate_all(model, x)
    b = every(UNITS * len(model.encoders))[:, :UNITS]
    log_p_x = Bernoulli(logits=model.decoders[0](2 * b - 1)).log_prob(x).sum(-1)
    log_w = log_p_x + beta * (log_p - log_p_x - log_q)
    if samples == 1:
        objective = (log_q.exp() * log_w).sum()
    else:
        rows = torch.cartesian_prod(*[torch.arange(len(log_q))] * samples)
        objective = (log_q[rows].sum(1).exp() * torch.logsumexp(log_w[rows], 1)).sum()
    return torch.autograd.grad(objective, list(model.parameters()))


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("layers", ["linear", "linear2"])
@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "concrete"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gradients_are_those_of_the_enumerated_bound(layers, estimator, beta):
    """Of the decoder and the prior, too: the mean of many rows, in ten parts whose spread is known."""
    if (layers, estimator) == ("linear2", "rebar"):
        with pytest.raises(ValueError, match="estimator must not be 'rebar' for layers='linear2'"):
            SBNSettings(SBNConfig("linear2"), SBNTrainConfig(estimator="rebar"))
        return
    model, x = toy(layers)
    config = SBNTrainConfig(estimator=estimator, k=2)
    baselines, parts = Baselines(config, PIXELS).double(), []
    exact = flat(exact_gradients(model, x, 2 if estimator == "vimco" else 1, beta))
    if estimator == "nvil":
        # Earlier signals of mean -3 and deviation 2, by which the encoder's gradient is divided.
        baselines.running.sums.copy_(torch.tensor([1.0, -3.0, 13.0]))
        baselines.eval()
        encoders = sum(p.numel() for p in model.encoders.parameters())
        exact[1:].narrow(0, UNITS - 1, encoders).div_(2.0)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found = estimate(model, x.expand(ROWS // 20, -1), config, baselines, beta=beta, generator=generator)
        parts.append(flat(torch.autograd.grad(found.objective.mean(), list(model.parameters()))))
    parts = torch.stack(parts)
    z = (parts.mean(0) - exact) / (parts.std(0) / 20**0.5).clamp(min=1e-12)
    # Student's t of 19 degrees of freedom for 40 to 60 weights.
    assert z.abs().max() < 6
    assert z.square().mean() < 2.5
    log_p, log_q = enumerate_all(model, x)
    assert found.elbo.shape == (ROWS // 20,)
    assert abs(found.elbo.mean() - log_q.exp() @ (log_p - log_q)) < 4.5 * found.elbo.std() / len(found.elbo) ** 0.5


def test_the_network_of_nvil_learns_the_signal():
    model, x = toy("linear")
    config = SBNTrainConfig(estimator="nvil")
    baselines, rows = Baselines(config, PIXELS).double(), x.expand(100, -1)
    optimizer = torch.optim.Adam(baselines.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        found = estimate(model, rows, config, baselines, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        found.baseline_loss.backward()
        optimizer.step()
        losses.append(found.baseline_loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert sum(losses[-10:]) / 10 < 1.3 * found.elbo.var()


@pytest.mark.parametrize("layers", LAYERS)
def test_implementations_draw_and_train_the_same(layers):
    found = []
    for impl in ("auto", "reference"):
        torch.manual_seed(0)
        model = SBN(replace(SMALL, layers=layers, impl=impl)).double()
        x = torch.rand(7, 784, generator=torch.Generator().manual_seed(1)).round().double()
        made = estimate(model, x, SHORT, Baselines(SHORT, 784), generator=torch.Generator().manual_seed(2))
        found.append([made.elbo, *torch.autograd.grad(made.objective.sum(), list(model.parameters()))])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_shards_draw_the_units_of_the_whole(impl):
    model = SBN(replace(SMALL, layers="linear2", impl=impl))
    logits = torch.randn(6, 6)

    def draw(first, last):
        generator = torch.Generator().manual_seed(3)
        return model.draw_latents(logits[first:last], (2,), generator=generator, row_offset=first).layers

    for whole, *parts in zip(draw(0, 6), draw(0, 4), draw(4, 6), strict=True):
        assert torch.equal(torch.cat(parts, 1), whole)


@pytest.mark.parametrize(
    ("layers", "estimator"),
    [
        ("linear2", "disarm"),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in (("nonlinear", "nvil"), ("linear", "rebar"))),
    ],
)
def test_what_a_run_leaves_behind(layers, estimator, tiny, tmp_path):
    model, training = replace(SMALL, layers=layers), replace(SHORT, estimator=estimator)
    images = split_mnist(tiny)
    run = train("sbn", model, training, tmp_path, evaluation=FEW, images=images)
    rows = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [5, 10]
    assert float(rows[1]["train_elbo"]) > float(rows[0]["train_elbo"])
    assert all(float(row["gradient_variance"]) > 0 for row in rows)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["elbo"] == run.figures.elbo
    assert len(result["kl_terms"]) == (2 if layers == "linear2" else 1)
    assert {"elbo_error", "log_p_error", "valid_elbo"} <= result.keys()
    assert evaluate(
        run.model, binarize_fixed(images.x_test), valid=binarize_fixed(images.x_valid), samples=3, log_p_images=20,
    ) == run.figures  # fmt: skip
    for name in ("samples", "reconstructions", "filters", "gradient_variance", "learning_curves"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_run_ends_as_an_unbroken_one(tiny, tmp_path):
    """The running mean and the network of the baseline go on, too."""
    images = split_mnist(tiny)
    training = replace(SHORT, estimator="nvil")
    options = {"evaluation": FEW, "images": images}
    expected = train("sbn", SMALL, training, tmp_path / "whole", **options)
    part = train("sbn", SMALL, training, tmp_path / "parts", limit_epochs=1, **options)
    found = train("sbn", SMALL, training, tmp_path / "parts", resume=part.checkpoint, **options)
    assert_same_run(found, expected)
    assert metrics(tmp_path / "whole")[1]["train_elbo"] == metrics(tmp_path / "parts")[1]["train_elbo"]


@pytest.mark.thorough
def test_two_processes_train_as_one(tiny, tmp_path):
    one, two = train_on_one_and_two_processes("sbn_two_processes.py", tiny, tmp_path)
    for name in ("nvil", "loo"):
        for ours, theirs in zip(metrics(two / name), metrics(one / name), strict=True):
            for column in ("loss", "train_elbo", "gradient_variance", "valid_elbo"):
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-9), (name, column)


def test_pictures_of_several_runs(tmp_path, monkeypatch):
    rows = "epoch,step,train_elbo,gradient_variance,valid_elbo\n1,5,-300.0,10.0,-250.0\n2,10,-200.0,8.0,\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        settings = {"training": {"estimator": "loo"}, "model": {"layers": "linear"}}
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        (tmp_path / name / "metrics.csv").write_text(rows)
    folders = [str(tmp_path / name) for name in ("a", "b")]
    monkeypatch.setattr("sys.argv", ["pictures", *folders, "--out", str(tmp_path)])
    pictures.main()
    for name in ("bounds", "gradient_variances"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecipeError, match="holds no run of sbn"):
        pictures.read_run(tmp_path)


def test_start_at_pixel_means():
    model = SBN(SMALL)
    torch.nn.init.zeros_(model.decoders[0][-1].weight)
    means = torch.linspace(0, 1, 784)
    model.start_at(means)
    torch.testing.assert_close(model.sample(3), means.clamp(1e-3, 1 - 1e-3).expand(3, -1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"estimator": "reinforc"}, "estimator must be one of"),
        ({"k": 1}, "k must be >= 2"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"baseline_decay": 1.0}, r"baseline_decay must lie in \[0, 1\)"),
    ],
)
def test_settings_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        SBNTrainConfig(**values)
