"""The ladder network: its costs, its denoising functions, its two halves, its training."""

import dataclasses
import math

import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.batch_statistics import EPS
from fastvae.recipes.systems.ladder.combinator import Combinator
from fastvae.recipes.systems.ladder.config import LadderConfig, LadderTrainConfig
from fastvae.recipes.systems.ladder.model import Ladder
from fastvae.recipes.systems.ladder.task import LadderTask
from tests.recipes.labelled_support import spots
from tests.recipes.training_support import assert_same_run, metrics, train

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
CONFIG = LadderConfig((7, 5), data_features=6, classes=3)
SPOTS = LadderConfig((12, 8), data_features=16, classes=3)


def network(config=CONFIG):
    """A network whose parameters are all away from where they begin."""
    torch.manual_seed(0)
    model = Ladder(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def inputs(model, labelled=5, unlabelled=8):
    generator = torch.Generator().manual_seed(1)
    widths = (model.config.data_features, model.config.data_features, model.noise_features)
    rows = (labelled, unlabelled, labelled + unlabelled)
    return [
        torch.randn(count, width, dtype=torch.float64, generator=generator)
        for count, width in zip(rows, widths, strict=True)
    ]


def test_costs_are_those_of_the_paper():
    """Batch norm of the estimates with the statistics of the clean pass, minus the clean values after batch norm."""
    model = network()
    x_l, x_u, noise = inputs(model)
    _, costs = model.denoise(x_l, x_u, noise)
    logits, noisy = model.encode_noisy(torch.cat([x_l, x_u]), noise, len(x_l))
    estimates = model.decode(logits[len(x_l) :], [z[len(x_l) :] for z in noisy])
    expected, h = [(estimates[0] - x_u).square().mean()], x_u
    for index, linear in enumerate(model.up):
        z = h @ linear.weight.T
        mean, deviation = z.mean(0), (z.var(0, correction=0) + EPS).sqrt()
        clean = (z - mean) / deviation
        expected.append(((estimates[index + 1] - mean) / deviation - clean).square().mean())
        h = (clean + model.shifts[index]).relu()
    torch.testing.assert_close(costs, torch.stack(expected), rtol=1e-10, atol=1e-12)


def test_no_noise_and_identity_cost_nothing():
    """The combinator that undoes the clean statistics gives every layer back."""
    model = network()
    x_l, x_u, noise = inputs(model)
    with torch.no_grad():
        for combinator, clean in zip(model.combinators, model.encode_clean(x_u), strict=True):
            mean, deviation = (clean.z.mean(0), 1.0 / clean.scale) if clean.scale.dim() else (0.0, 1.0)
            parameters = combinator.parameters_of_units
            parameters.zero_()
            parameters[9] = deviation
            # z v + (1 - v) mu gives the mean its place.
            parameters[4] = mean / (1.0 - parameters[9]).where(parameters[9] != 1.0, 1.0)
    _, costs = model.denoise(x_l, x_u, 0.0 * noise)
    assert costs.abs().max() < 1e-20
    _, costs = model.denoise(x_l, x_u, noise)
    assert costs.min() > 1e-4


def test_combinator_is_its_formula():
    torch.manual_seed(0)
    combinator = Combinator(3).double()
    a = combinator.parameters_of_units.data.normal_()
    z, u = torch.randn(2, 4, 3, dtype=torch.float64)
    for row in range(4):
        for unit in range(3):
            a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = (float(value) for value in a[:, unit])
            guess = float(u[row, unit])
            mu = a1 / (1 + math.exp(-(a2 * guess + a3))) + a4 * guess + a5
            v = a6 / (1 + math.exp(-(a7 * guess + a8))) + a9 * guess + a10
            expected = (float(z[row, unit]) - mu) * v + mu
            assert combinator(z, u)[row, unit].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("sigma", "noise"), [(0.7, 0.3), (2.0, 1.0)])
def test_combinator_learns_the_best_estimate_of_a_gaussian(sigma, noise):
    r"""z given u is N(2 u - 1, sigma^2): v = sigma^2 / (sigma^2 + noise^2), and mu = 2 u - 1."""
    generator, count = torch.Generator().manual_seed(0), 20_000
    u, of_z, of_noise = torch.randn(3, count, 1, dtype=torch.float64, generator=generator)
    z = 2.0 * u - 1.0 + sigma * of_z
    z_tilde = z + noise * of_noise
    combinator = Combinator(1).double()
    optimizer = torch.optim.LBFGS(
        combinator.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10
    )

    def closure():
        optimizer.zero_grad()
        loss = (combinator(z_tilde, u) - z).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    best = sigma**2 / (sigma**2 + noise**2)
    guesses = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    with torch.no_grad():
        at_0, at_1 = combinator(torch.zeros_like(guesses), guesses), combinator(torch.ones_like(guesses), guesses)
    v = at_1 - at_0
    # Five standard errors of a slope, for a curve with three parameters more.
    error = 5 * math.sqrt(best * noise**2 / count / (sigma**2 + noise**2)) * 2
    assert (v - best).abs().max() < error
    mu = at_0 / (1.0 - v)
    assert (mu - (2.0 * guesses - 1.0)).abs().max() < 10 * error / (1 - best)


def test_halves_never_mix():
    model = network()
    x_l, x_u, noise = inputs(model)
    x_l.requires_grad_()
    x_u.requires_grad_()
    logits, costs = model.denoise(x_l, x_u, noise)
    of_logits = torch.autograd.grad(logits.square().sum(), (x_l, x_u), retain_graph=True)
    assert of_logits[1].abs().max() == 0 < of_logits[0].abs().min()
    of_costs = torch.autograd.grad(costs.sum(), (x_l, x_u))
    assert of_costs[0].abs().max() == 0 < of_costs[1].abs().min()


def test_perturbed_half_leaves_the_other_as_it_was():
    model = network()
    x_l, x_u, noise = inputs(model)
    logits, costs = model.denoise(x_l, x_u, noise)
    assert torch.equal(model.denoise(x_l, 3.0 * x_u + 1.0, noise)[0], logits)
    assert torch.equal(model.denoise(3.0 * x_l + 1.0, x_u, noise)[1], costs)


def test_gradients_go_through_the_clean_pass():
    """The numerical gradient of the costs counts the clean targets and their statistics."""
    model = network(LadderConfig((3,), data_features=2, classes=2))
    x_l, x_u, noise = inputs(model, 3, 4)
    # gradcheck changes the parameters in place.
    assert torch.autograd.gradcheck(lambda *_: model.denoise(x_l, x_u, noise), tuple(model.parameters()))


def test_rows_that_have_no_statistics():
    model = network()
    with pytest.raises(ValueError, match=r"x must have 2 rows or more, .*; got 1"):
        model.denoise(*inputs(model, 1, 4))
    with pytest.raises(ValueError, match=r"x must have 2 rows or more, .*; got 1"):
        model.denoise(*inputs(model, 4, 1))
    with pytest.raises(ValueError, match="batch_size must be >= 2, got 1"):
        LadderTrainConfig(batch_size=1)
    with pytest.raises(ValueError, match="labelled_batch_size must be >= 2, got 1"):
        LadderTrainConfig(labelled_batch_size=1)


@pytest.mark.parametrize("costs", [(), (1.0, -1.0), (math.nan,), (math.inf,)])
def test_costs_that_are_none(costs):
    with pytest.raises(ValueError, match="costs must be one or more numbers >= 0 and finite, got"):
        LadderTrainConfig(costs=costs)


def test_rate_and_weights(tmp_path):
    task = LadderTask("ladder", Ladder(CONFIG), LadderTrainConfig(), tmp_path)
    task.steps = 300
    assert [task.decay(step) for step in (0, 201, 300)] == [1.0, 1.0, 0.0]
    assert task.decay(250) == pytest.approx(50 / 99)
    assert task.weights == (1000.0, 10.0, 0.1, 0.1)
    assert LadderTask("ladder", Ladder(CONFIG), LadderTrainConfig(costs=(1.0,) * 9), tmp_path).weights == (1.0,) * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An unbroken run, and one in two parts."""
    config, found = LadderTrainConfig(epochs=6, batch_size=20, labels=9, learning_rate=0.02), []
    for limits in ((6,), (2, 4)):
        folder, resume = tmp_path_factory.mktemp("ladder"), None
        for limit in limits:
            run = train("ladder", SPOTS, config, folder, images=spots(240), resume=resume, limit_epochs=limit)
            resume = run.checkpoint
        found.append((run, folder))
    return found


def test_training_finds_the_classes(runs):
    run, folder = runs[0]
    rows = metrics(folder)
    assert run.figures.error < 20.0
    assert float(rows[-1]["train_cost_0"]) < float(rows[0]["train_cost_0"])
    assert {"costs.png", "denoised.png", "learning_curves.png", "result.json"} <= {
        each.name for each in folder.iterdir()
    }


def test_resumed_run_ends_as_an_unbroken_one(runs):
    assert_same_run(runs[1][0], runs[0][0])


def test_predictions_do_not_depend_on_the_batch(runs):
    model, x = runs[0][0].model, torch.rand(5, 16)
    torch.testing.assert_close(model.class_logits(x)[:1], model.class_logits(x[:1]))
    found = model.reconstruct(x)
    assert found.shape == x.shape
    assert not found.requires_grad


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    task = LadderTask("ladder", Ladder(SPOTS), dataclasses.replace(LadderTrainConfig(), labels=6), tmp_path)
    with pytest.raises(RecipeError, match="ladder takes batch statistics of the joint batch: it must run on 1 process"):
        task.setup("fit")
