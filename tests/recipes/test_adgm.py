"""The recipe ``adgm``: its bounds against exact answers and enumeration, and what its batch statistics are taken of."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.data.moons import LabelledPoints, make_moons
from fastvae.recipes.data.noise import Noise
from fastvae.recipes.systems.adgm.config import ADGMConfig, ADGMSettings, ADGMTrainConfig
from fastvae.recipes.systems.adgm.model import ADGM
from fastvae.recipes.systems.adgm.statistics import measure_moments, sum_squares
from fastvae.recipes.systems.loading import find_system, load_checkpoint
from tests.recipes.adgm_support import KINDS, draw_noise, make_exact, make_model, moments
from tests.recipes.training_support import metrics, train, train_on_one_and_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
by_kind = pytest.mark.parametrize("kind", KINDS)
NEVER = -1e4


def binary(rows, pixels=5, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, pixels, generator=generator, dtype=torch.float64).round()


@by_kind
def test_bounds_with_exact_posteriors_are_log_p(kind):
    """Gauss-Hermite nodes integrate the noise of a and z exactly: the bound is quadratic in both."""
    model, variance = make_exact(kind)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    a, z = (torch.from_numpy(part).reshape(-1, 1, 1) for part in np.meshgrid(nodes, nodes))
    share = torch.from_numpy(np.outer(weights, weights).ravel() / (2.0 * math.pi))
    for value in (-1.7, 0.0, 0.6):
        x = torch.full((9, 1), value, dtype=torch.float64)
        expected = -0.5 * (value**2 / variance + torch.log(2.0 * math.pi * variance))
        unlabelled = model.unlabelled_bound(x, noise=Noise(eps=(a, z[:, None])))
        labelled = model.labelled_bound(x, torch.zeros(9, dtype=torch.long), noise=Noise(eps=(a, z)))
        for bound in (unlabelled, labelled):
            torch.testing.assert_close((share * bound).sum(), expected, rtol=1e-12, atol=1e-12)


@by_kind
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_unlabelled_bound_is_the_sum_over_classes_with_its_gradients(kind, likelihood):
    model, x = make_model(kind, likelihood=likelihood), binary(3)
    a, z = draw_noise(model, 3, samples=2)
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (weights * model.unlabelled_bound(x, samples=2, noise=Noise(eps=(a, z)))).sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    bound = model.unlabelled_bound(x, samples=2, noise=Noise(eps=(a, z))).detach()
    model.zero_grad()
    expected = torch.zeros(3, dtype=torch.float64)
    for sample in range(2):
        # One sample of a, one class at a time, and the sum over classes inside of the mean over samples.
        each = a[:, sample : sample + 1]
        drawn, _ = model.draw_a(x, 1, Noise(eps=(each,)))
        q = model.logits_given_a(x, drawn).softmax(-1)[:, 0]
        for label in range(4):
            noise = Noise(eps=(each, z[:, sample : sample + 1, label]))
            of_class = model.labelled_bound(x, torch.full((3,), label), noise=noise)
            expected = expected + 0.5 * q[:, label] * (of_class - q[:, label].log())
    (weights * expected).sum().backward()
    torch.testing.assert_close(bound, expected.detach(), rtol=1e-11, atol=1e-11)
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-10)


@by_kind
def test_class_order_does_not_matter(kind):
    model, x = make_model(kind), binary(6)
    order = torch.tensor([2, 0, 3, 1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("encode_z", "decode_a", "decode_x"):
            weight = getattr(other, name).first.class_weight
            weight.copy_(weight[:, order].clone())
        for parameter in other.to_classes.parameters():
            parameter.copy_(parameter[order].clone())
    a, z = draw_noise(model, 6)
    bound = model.unlabelled_training_bound(x, noise=Noise(eps=(a, z)))
    torch.testing.assert_close(
        other.unlabelled_training_bound(x, noise=Noise(eps=(a, z[:, :, order]))), bound, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(moments(other), moments(model), rtol=1e-11, atol=1e-11)


@by_kind
def test_a_class_of_probability_zero_changes_neither_bound_nor_statistics(kind):
    model, x = make_model(kind, classes=5), binary(6)
    with torch.no_grad():
        model.to_classes.bias[4] = NEVER
    fewer = make_model(kind, classes=4)
    weights = model.state_dict()
    for name, value in fewer.state_dict().items():
        of_classes = name.endswith("class_weight") or name.startswith("to_classes")
        kept = weights[name] if not of_classes else weights[name].narrow(1 if "first" in name else 0, 0, 4)
        value.copy_(kept)
    a, z = draw_noise(model, 6)
    bound = fewer.unlabelled_training_bound(x, noise=Noise(eps=(a, z[:, :, :4])))
    prior = math.log(5 / 4)
    torch.testing.assert_close(
        model.unlabelled_training_bound(x, noise=Noise(eps=(a, z))) + prior, bound, rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(moments(model), moments(fewer), rtol=1e-11, atol=1e-11)


@by_kind
def test_a_sure_classifier_gives_the_labelled_bound(kind):
    """The statistics are those of the rows of the sure class alone."""
    model, x = make_model(kind), binary(6)
    with torch.no_grad():
        model.to_classes.bias[2] = -NEVER
    a, z = draw_noise(model, 6)
    labels = torch.full((6,), 2)
    noise_u, noise_l = Noise(eps=(a, z)), Noise(eps=(a, z[:, :, 2]))
    found = model.training_bounds(x, x, labels, noise_u=noise_u, noise_l=noise_l)
    torch.testing.assert_close(found.unlabelled, found.labelled, rtol=1e-11, atol=1e-11)
    assert torch.equal(found.log_q, torch.zeros(6, dtype=torch.float64))


def test_bounds_are_linear_in_the_weight_of_the_divergences():
    model, x = make_model("adgm"), binary(6)
    noise = {"noise_u": Noise(eps=draw_noise(model, 6)), "noise_l": Noise(eps=draw_noise(model, 6, classes=0))}

    def bounds(weight):
        found = model.training_bounds(x, x, torch.arange(6) % 4, kl_weight=weight, **noise)
        return torch.stack([found.unlabelled, found.labelled])

    torch.testing.assert_close(bounds(0.5), 0.5 * (bounds(0.0) + bounds(1.0)), rtol=1e-12, atol=1e-12)
    assert (bounds(0.0) - bounds(1.0)).abs().min() > 1e-3


@by_kind
def test_labelled_images_leave_no_trace_in_the_statistics(kind):
    model, x = make_model(kind), binary(6)
    a, z = draw_noise(model, 6)
    own = draw_noise(model, 3, classes=0)
    found = []
    for seed in (3, 4):
        each = copy.deepcopy(model)
        noise = {"noise_u": Noise(eps=(a, z)), "noise_l": Noise(eps=own)}
        bounds = each.training_bounds(x, binary(3, seed=seed), torch.tensor([0, 1, seed - 1]), **noise)
        found.append((bounds.unlabelled, moments(each), bounds.labelled))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][2], found[1][2])
    assert not torch.equal(found[0][1], moments(model))


def test_moments_are_those_of_classes_drawn_from_their_probabilities():
    h = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    counts = torch.tensor([[[1, 0, 2, 5], [3, 3, 1, 1]]] * 3)
    drawn = h.flatten(0, 2).repeat_interleave(counts.flatten(), 0)
    mean, variance = measure_moments(h, counts / 8)
    torch.testing.assert_close(mean, drawn.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, drawn.var(0, correction=0), rtol=1e-12, atol=1e-12)
    mean, variance = measure_moments(h, None)
    torch.testing.assert_close(variance, h.flatten(0, 2).var(0, correction=0), rtol=1e-12, atol=1e-12)


def test_gradients_of_moments():
    h = torch.randn(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(3, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h: measure_moments(h, weights), h)
    assert torch.autograd.gradgradcheck(lambda h: measure_moments(h, weights), h)
    # On several processes the weights of one do not sum to 1, and the mean is not that of its rows.
    rows, mean = h.detach().flatten(0, 2).requires_grad_(), torch.randn(5, dtype=torch.float64, requires_grad=True)
    given = weights.flatten()
    assert torch.autograd.gradcheck(lambda rows, mean: sum_squares(given, rows, mean), (rows, mean))
    assert torch.autograd.gradgradcheck(lambda rows, mean: sum_squares(given, rows, mean), (rows, mean))


@by_kind
def test_evaluation_of_an_image_does_not_depend_on_the_others(kind):
    model, x = make_model(kind), binary(6)
    a, z = draw_noise(model, 6)
    whole = model.unlabelled_bound(x, noise=Noise(eps=(a, z)))
    part = model.unlabelled_bound(x[2:3], noise=Noise(eps=(a[2:3], z[2:3])))
    torch.testing.assert_close(part, whole[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_noise_of_a_share_is_that_of_the_joint_batch(impl):
    model, x = make_model("adgm", impl=impl), binary(6)

    def bound(part, first):
        noise = Noise(torch.Generator().manual_seed(7), first, 6)
        return model.unlabelled_bound(x[part], samples=2, noise=noise)

    whole = bound(slice(0, 6), 0)
    shares = torch.cat([bound(slice(0, 2), 0), bound(slice(2, 6), 2)])
    torch.testing.assert_close(shares, whole, rtol=1e-11, atol=1e-11)


def test_wrong_calls():
    model, x, y = make_model("adgm"), binary(3), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"x_u must hold at least 2 images, .*, got 1"):
        model.training_bounds(x[:1], x, y)
    with pytest.raises(ValueError, match=r"x_u must have the width of x_l, 5, got shape \(3, 4\)"):
        model.training_bounds(x[:, :4], x, y)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\), got values from 0 to 4"):
        model.training_bounds(x, x, torch.tensor([0, 4, 1]))
    with pytest.raises(ValueError, match="data_features must be >= 1 for a model, got 0"):
        ADGM(ADGMConfig())
    with pytest.raises(ValueError, match="likelihood must be 'bernoulli' or 'gaussian' for a model, got 'auto'"):
        ADGM(ADGMConfig(data_features=3, classes=2))
    with pytest.raises(ValueError, match=r"batch_size must be >= 2, since batch normalisation .*, got 1"):
        ADGMTrainConfig(batch_size=1)
    with pytest.raises(ValueError, match="likelihood must be gaussian for the data moons, got bernoulli"):
        ADGMSettings(ADGMConfig(likelihood="bernoulli"), ADGMTrainConfig(data="moons"))
    with pytest.raises(ValueError, match="data_features must be 64 for the data digits, got 784"):
        ADGMSettings(ADGMConfig(data_features=784), ADGMTrainConfig(data="digits"))
    with pytest.raises(RecipeError, match=r"labels must be 0 \.\.\. 3, got 9"):
        find_system("adgm").sample(model, 2, labels=torch.tensor([9, 0]))
    with pytest.raises(RecipeError, match="labels must be 2 classes, one for each image, got 3"):
        find_system("adgm").sample(model, 2, labels=torch.tensor([1, 0, 2]))


def test_moons():
    moons = make_moons(200, noise=0.0)
    assert moons.test.images.shape == (1000, 2)
    assert moons.train.images.dtype == np.float32
    centre = np.array([[-0.5, -0.25], [0.5, 0.25]])[moons.train.labels]
    np.testing.assert_allclose(np.linalg.norm(moons.train.images - centre, axis=1), 1.0, atol=1e-6)
    assert np.array_equal(make_moons(10).train.images, make_moons(10).train.images)
    with pytest.raises(ValueError, match="count must be even and >= 2, got 3"):
        make_moons(3)
    with pytest.raises(ValueError, match="noise must be >= 0, got -1"):
        make_moons(2, noise=-1)
    with pytest.raises(TypeError, match="images must be float32, got float64"):
        LabelledPoints(np.zeros((2, 2)), np.zeros(2, int), 2)
    with pytest.raises(ValueError, match=r"images must have 2 dimensions, got shape \(2,\)"):
        LabelledPoints(np.zeros(2, np.float32), np.zeros(2, int), 2)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        LabelledPoints(np.zeros((2, 2), np.float32), np.zeros(3, int), 2)


def test_labels_of_moons_are_spread_along_them():
    train = make_moons(400, noise=0.0).train
    centre = np.array([[-0.5, -0.25], [0.5, 0.25]])[train.labels]
    way = (train.images - centre) * np.where(train.labels == 1, -1.0, 1.0)[:, None]
    share = np.arctan2(way[:, 1], way[:, 0]) / np.pi
    for seed in range(5):
        rows = train.draw_labelled(12, seed)
        assert np.bincount(train.labels[rows]).tolist() == [6, 6]
        for label in (0, 1):
            places = np.sort(share[rows][train.labels[rows] == label])
            assert all(0.049 < place < 0.201 for place in places[:2])
            assert all(0.424 < place < 0.576 for place in places[2:4])
            assert all(0.799 < place < 0.951 for place in places[4:])
    assert set(train.draw_labelled(6, 1)) < set(train.draw_labelled(12, 1))
    assert train.draw_labelled(6, 1).tolist() != train.draw_labelled(6, 2).tolist()
    assert np.bincount(train.labels[train.draw_labelled(4, 0)]).tolist() == [2, 2]


DIGITS = {"data": "digits", "labels": 100, "epochs": 8, "average_decay": 0.5, "learning_rate": 3e-3}


def test_training_on_digits(tmp_path):
    model = ADGMConfig("adgm", 5, 4, (32, 32))
    run = train("adgm", model, ADGMTrainConfig(**DIGITS), tmp_path)
    errors = [float(row["test_error"]) for row in metrics(tmp_path)]
    # Nine of ten digits are wrong by chance.
    assert errors[-1] < 60.0
    assert run.figures.error == pytest.approx(errors[-1], abs=5.0)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["labels"] == 100
    assert result["config"]["model"]["data_features"] == 64
    assert result["elbo"] == run.figures.elbo
    assert len(result["kl_terms"]) == 3
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"auxiliary.png", "samples.png", "reconstructions.png", "learning_curves.png"}
    _, loaded, _ = load_checkpoint(tmp_path / "last.ckpt")
    # The averaged weights come with averaged statistics.
    assert torch.equal(moments(loaded), moments(run.model))
    assert (loaded.encode_a.hidden.norms[0].running_mean != 0).all()


def test_points_of_the_plane(tmp_path):
    model = ADGMConfig("sdgm", 1, 1, (8, 8))
    config = ADGMTrainConfig(data="moons", epochs=1, labels=6, batch_size=500)
    run = train("adgm", model, config, tmp_path)
    assert run.model.config.likelihood == "gaussian"
    assert run.figures.test_images == 1000
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures >= {"regions.png", "auxiliary.png", "samples.png", "reconstructions.png"}


@pytest.mark.thorough
def test_six_labels_are_enough_for_two_moons(tmp_path):
    """The options that the page of the systems documents."""
    rates = {"learning_rate": 1e-2, "final_learning_rate": 3e-4, "decay_from": 0.7, "average_decay": 0.95}
    steps = {"epochs": 150, "kl_warmup": 30, "kl_start": 0.0, "check_every": 150, "weight_prior": 0.0}
    run = train(
        "adgm", ADGMConfig("adgm", 1, 1, (64, 64)), ADGMTrainConfig(data="moons", labels=6, **rates, **steps), tmp_path
    )
    assert run.figures.error == 0.0
    assert run.figures.test_images == 1000


def test_two_processes_train_as_one_with_the_joint_batch(tiny, tmp_path):
    """Batch statistics, and their gradients, are those of the joint batch."""
    one, two = train_on_one_and_two_processes("adgm_two_processes.py", tiny, tmp_path)
    for kind in KINDS:
        for expected, found in zip(metrics(one / kind), metrics(two / kind), strict=True):
            for name in ("loss", "train_error", "train_elbo", "labelled_elbo", "class_log_prob", "test_error"):
                assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-9), name
