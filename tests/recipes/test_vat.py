"""Virtual adversarial training: the direction, the divergence along it, gradients, training."""

import math
from dataclasses import replace

import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.vat.config import VATConfig, VATTrainConfig
from fastvae.recipes.systems.vat.model import VATClassifier
from fastvae.recipes.systems.vat.moons import fit_moons, label_moons
from fastvae.recipes.systems.vat.perturbation import adversarial_direction, prediction_divergence, prediction_entropy
from fastvae.recipes.systems.vat.task import VATTask
from tests.recipes.labelled_support import spots
from tests.recipes.training_support import assert_same_run, metrics, train

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
SPOTS = VATConfig((12, 8), data_features=16, classes=3)


class LinearSoftmax(VATClassifier):
    """Nothing but the last layer, without batch norm."""

    def __init__(self, config):
        super().__init__(config)
        self.to_logits = torch.nn.Linear(config.data_features, config.classes)

    def forward(self, x):
        return self.to_logits(x)


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return LinearSoftmax(VATConfig((6,), data_features=6, classes=4, epsilon=0.02)).double()


@pytest.fixture
def x():
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def noise():
    return torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def hessians(model, x):
    """W^T (diag p - p p^T) W for every row."""
    p = model(x).softmax(-1)
    weight = model.to_logits.weight
    return weight.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ weight


@torch.no_grad()
def test_direction_is_the_first_eigenvector(linear, x, noise):
    found = adversarial_direction(linear, x, linear(x).log_softmax(-1), noise, step=1e-5, turns=400)
    values, vectors = torch.linalg.eigh(hessians(linear, x))
    assert (values[:, -2] / values[:, -1]).max() < 0.98
    cosine = (found * vectors[..., -1]).sum(-1).abs()
    torch.testing.assert_close(cosine, torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_turn_multiplies_by_the_hessian(linear, x, noise):
    found = adversarial_direction(linear, x, linear(x).log_softmax(-1), 5.0 * noise, step=1e-6)
    expected = torch.nn.functional.normalize((hessians(linear, x) @ noise[..., None])[..., 0], dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_default_step_in_float32(linear, x, noise):
    """A step of 1e-6 is all rounding there; the default one is nearly the product with the Hessian."""
    expected = torch.nn.functional.normalize((hessians(linear, x) @ noise[..., None])[..., 0], dim=-1)
    log_p, narrow = linear(x).log_softmax(-1).float(), linear.float()
    cosines = [
        (adversarial_direction(narrow, x.float(), log_p, noise.float(), step=step) * expected).sum(-1).min()
        for step in (VATConfig().xi, 1e-6)
    ]
    assert cosines[0] > 0.999 > cosines[1]


@torch.no_grad()
def test_divergence_is_half_the_quadratic_form(linear, x, noise):
    """Up to the third cumulant, which is at most the cube of the range of the logits' change."""
    r = 0.05 * torch.nn.functional.normalize(noise, dim=-1)
    found = prediction_divergence(linear(x).log_softmax(-1), linear(x + r))
    half = 0.5 * (r[:, None] @ hessians(linear, x) @ r[..., None]).flatten()
    change = r @ linear.to_logits.weight.T
    bound = (change.amax(1) - change.amin(1)) ** 3 / 6
    assert ((found - half).abs() <= bound).all()
    assert (bound < 0.5 * half).all()


def test_no_gradient_through_prediction_and_perturbation(linear, x, noise):
    linear.smoothness(x, noise).sum().backward()
    with torch.no_grad():
        p, log_p = linear(x).softmax(-1), linear(x).log_softmax(-1)
        moved = x + linear.config.epsilon * adversarial_direction(linear, x, log_p, noise, step=linear.config.xi)
        of_logits = linear(moved).softmax(-1) - p
    torch.testing.assert_close(linear.to_logits.weight.grad, of_logits.T @ moved, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(linear.to_logits.bias.grad, of_logits.sum(0), rtol=1e-9, atol=1e-14)


def test_smoothness_is_the_divergence_at_the_length_epsilon(linear, x, noise):
    with torch.no_grad():
        log_p = linear(x).log_softmax(-1)
        r = linear.config.epsilon * adversarial_direction(linear, x, log_p, noise, step=linear.config.xi)
        expected = torch.nn.functional.kl_div(
            linear(x + r).log_softmax(-1), log_p, reduction="none", log_target=True
        ).sum(-1)
    torch.testing.assert_close(r.norm(dim=-1), torch.full((7,), linear.config.epsilon, dtype=torch.float64))
    torch.testing.assert_close(linear.smoothness(x, noise).detach(), expected, rtol=1e-9, atol=1e-15)


def test_entropy():
    logits = torch.tensor([[2.0, 2.0, 2.0], [900.0, 0.0, -900.0], [0.0, math.log(3.0), -900.0]], dtype=torch.float64)
    of_three_quarters = math.log(4.0) - 0.75 * math.log(3.0)
    expected = torch.tensor([math.log(3.0), 0.0, of_three_quarters], dtype=torch.float64)
    torch.testing.assert_close(prediction_entropy(logits), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
def test_loss_of_a_step(tmp_path, monkeypatch, entropy_weight):
    """The entropy's gradient goes through the predictions of unlabelled images, the divergence's does not."""
    torch.manual_seed(0)
    model = VATClassifier(SPOTS).double()
    config = VATTrainConfig(smoothness_weight=0.3, entropy_weight=entropy_weight)
    task = VATTask("vat", model, config, tmp_path)
    x_l, y_l, x_u = torch.rand(6, 16).double(), torch.arange(6) % 3, torch.rand(9, 16).double()
    noise = torch.randn(9, 16).double()
    monkeypatch.setattr(task, "draw_noise", lambda rows: noise[:rows])
    monkeypatch.setattr(task, "record_loss", lambda loss, x: loss)
    task.epoch_terms = torch.zeros(4, dtype=torch.float64)
    found = task.training_step((x_l, y_l, x_u), 0)

    log_p = model(x_u).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    cross_entropy = torch.nn.functional.cross_entropy(model(x_l), y_l)
    smoothness = model.smoothness(x_u, noise).mean()
    expected = cross_entropy + 0.3 * smoothness + entropy_weight * entropy
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(task.epoch_terms[1:], torch.stack([cross_entropy, smoothness, entropy]).detach())


def test_inputs_that_nothing_depends_on(linear, x, noise):
    with torch.no_grad():
        linear.to_logits.weight.zero_()
    found = adversarial_direction(linear, x, linear(x).log_softmax(-1), noise)
    torch.testing.assert_close(found, torch.nn.functional.normalize(noise, dim=-1))


def test_gradients_whose_squares_underflow():
    predict, x = lambda x: 1e-15 * x, torch.tensor([[1.0, 2.0]])
    found = adversarial_direction(predict, x, torch.tensor([[-1.0, -0.459]]), torch.tensor([[3.0, 4.0]]))
    assert found.norm() == pytest.approx(1.0, rel=1e-6)


def test_perturbed_passes_leave_no_trace():
    torch.manual_seed(0)
    model = VATClassifier(SPOTS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.smoothness(torch.rand(5, 16), torch.randn(5, 16)).sum().backward()
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_logits_of_a_batch_are_normalised():
    """No class can take over the images of another: every logit has mean 0 and variance 1 over a batch."""
    torch.manual_seed(0)
    logits = VATClassifier(SPOTS)(torch.rand(40, 16))
    torch.testing.assert_close(logits.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits.var(0, correction=0), torch.ones(3), rtol=0, atol=1e-3)
    free = VATClassifier(replace(SPOTS, norm_logits=False))
    x = torch.rand(40, 16)
    torch.testing.assert_close(free(x), free.to_logits(free.features(x)))


@pytest.mark.parametrize("rows", [0, 1])
def test_rows_that_have_no_statistics(rows):
    with pytest.raises(ValueError, match=f"x must have 2 rows or more, .*; got {rows}"):
        VATClassifier(SPOTS)(torch.zeros(rows, 16))
    with pytest.raises(ValueError, match="batch_size must be >= 2, got 1"):
        VATTrainConfig(**{("labelled_batch_size", "batch_size")[rows]: 1})


def test_rate(tmp_path):
    task = VATTask("vat", VATClassifier(SPOTS), VATTrainConfig(), tmp_path)
    assert [task.decay(step) for step in (0, 499, 500, 1499)] == pytest.approx([1.0, 1.0, 0.9, 0.81])


def test_moons_need_smoothness():
    moons = label_moons()
    errors = []
    for weight in (0.0, 1.0):
        found = fit_moons(moons, weight)(moons.points).argmax(1)
        errors.append(float((found != moons.labels).double().mean()))
    assert errors[1] < 0.01 < 0.03 < errors[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An unbroken run, and one in two parts."""
    config, found = VATTrainConfig(epochs=4, batch_size=20, labels=9, learning_rate=0.02), []
    for limits in ((4,), (2, 2)):
        folder, resume = tmp_path_factory.mktemp("vat"), None
        for limit in limits:
            run = train("vat", SPOTS, config, folder, images=spots(240), resume=resume, limit_epochs=limit)
            resume = run.checkpoint
        found.append((run, folder))
    return found


def test_training_finds_the_classes(runs):
    run, folder = runs[0]
    rows = metrics(folder)
    assert run.figures.error < 10.0
    assert float(rows[-1]["train_cross_entropy"]) < float(rows[0]["train_cross_entropy"])
    assert all(math.isfinite(float(row["train_smoothness"])) for row in rows)
    assert float(rows[-1]["train_entropy"]) < float(rows[0]["train_entropy"])
    pictures = {"adversarial.png", "moons.png", "learning_curves.png", "result.json"}
    assert pictures <= {each.name for each in folder.iterdir()}


def test_resumed_run_ends_as_an_unbroken_one(runs):
    assert_same_run(runs[1][0], runs[0][0])


def test_there_is_nothing_to_sample(runs, tmp_path):
    system, model = find_system("vat"), runs[0][0].model
    with pytest.raises(RecipeError, match="vat has no distribution of images to draw new ones from"):
        system.draw_samples(model, tmp_path / "samples.png", count=4)
    with pytest.raises(RecipeError, match="vat has no latents to reconstruct images from"):
        system.reconstruct(model, torch.rand(2, 16))


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="vat takes batch statistics of the joint batch: it must run on 1 process"):
        VATTask("vat", VATClassifier(SPOTS), VATTrainConfig(), tmp_path).setup("fit")
