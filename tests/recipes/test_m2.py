"""The systems m2, m1m2 and cvae: training, weights of others, and what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.recipes import RecipeError
from fastvae.recipes.class_models.task import LABELLED, UNLABELLED
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data.labelled import load_labelled, split_labelled
from fastvae.recipes.data.mnist import load_mnist
from fastvae.recipes.systems.loading import find_system, load_checkpoint
from fastvae.recipes.systems.m1m2.model import M1M2
from fastvae.recipes.systems.m1m2.task import find_first_stage, read_first_stage
from fastvae.recipes.systems.m2.config import M2EvaluationConfig, M2TrainConfig
from tests.recipes.class_support import M1_HIDDEN, M1_LATENT, PIXELS, SMALL, arrays_of_m1, keep_m1
from tests.recipes.training_support import metrics, train, train_on_one_and_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each system: its folder and what it did."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    m1 = keep_m1(folder)
    for name, (model, training, evaluation) in SMALL.items():
        more = {"m1": str(m1)} if name == "m1m2" else {}
        config = training(epochs=3, learning_rate=2e-2, **more)
        found[name] = folder / name, train(name, model, config, folder / name, evaluation=evaluation)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_training_lowers_the_loss(name, runs):
    folder, run = runs[name]
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < losses[0]
    assert {"samples.png", "analogies.png", "learning_curves.png"} <= {path.name for path in folder.iterdir()}
    figures = json.loads((folder / "result.json").read_text())
    assert figures["log_p_images"] == 897
    assert figures["log_p"] > figures["elbo"] - 3 * figures["elbo_error"]
    if name != "cvae":
        assert figures["error"] == pytest.approx(100 - np.trace(figures["confusion"]) * 100 / 897)
        assert (figures["labels"], figures["label_seed"]) == (20, 0)


def test_losses_of_a_step(runs):
    """The loss of an epoch is that of its terms."""
    _, run = runs["m2"]
    for row in run.history:
        expected = -row["train_elbo"] - 20 / 900 * row["labelled_elbo"] - 10 * row["class_log_prob"]
        assert row["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_noise_of_shares_is_that_of_the_joint_batch(impl, tmp_path):
    """And the two parts of a batch have noise of their own."""
    model, training, _ = SMALL["m2"]
    system, config = find_system("m2"), training(epochs=1)
    task = system.make_task(system.make_model(model), config, tmp_path)
    task.impl, found = impl, {}
    for rank, size in ((0, 1), (0, 2), (1, 2)):
        task._trainer = type("Trainer", (), {"world_size": size, "global_rank": rank, "global_step": 3})()
        x = torch.zeros(6 // size, 10, 2)
        for part, copies in ((LABELLED, 0), (UNLABELLED, 10)):
            mu = x if copies else x[:, 0]
            noise = task.part_noise(x[:, 0], part, copies)
            found[rank, size, part] = DiagonalGaussian(mu, mu, impl=impl).rsample_with_log_prob(**noise)[0]
    for part in (LABELLED, UNLABELLED):
        torch.testing.assert_close(torch.cat([found[0, 2, part], found[1, 2, part]]), found[0, 1, part])
    assert not torch.equal(found[0, 1, LABELLED], found[0, 1, UNLABELLED][:, 0])


def test_two_processes_train_as_one_with_the_joint_batch(tiny, tmp_path):
    folders = train_on_one_and_two_processes("class_two_processes.py", tiny, tmp_path)
    for name in SMALL:
        one, two = (metrics(folder / name) for folder in folders)
        assert len(one) == len(two) == 2
        for ours, theirs in zip(two, one, strict=True):
            # Means over chunks of an odd number of test images weigh the chunks otherwise.
            for column in ours.keys() - {"seconds", "test_error", "test_elbo"}:
                assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-9), (name, column)


def test_weights_of_the_authors(tmp_path):
    """A checkpoint of the arrays; their first layers are given the class, and q(y | x) is uniform."""
    arrays, classes = arrays_of_m1(), 10
    arrays["q_w0x"], arrays["p_w0z"] = arrays.pop("q_w0"), arrays.pop("p_w0")
    for name in ("q_w0y", "p_w0y"):
        arrays[name] = np.random.RandomState(1).standard_normal((M1_HIDDEN, classes)).astype(np.float32)
    np.savez(tmp_path / "m2.npz", **arrays)
    assert cli.main(["import", "m2", str(tmp_path / "m2.npz"), "--out", str(tmp_path / "out")]) == 0
    _, model, _ = load_checkpoint(tmp_path / "out" / "last.ckpt")
    x, y = torch.rand(5, PIXELS).round(), torch.tensor([0, 9, 3, 3, 1])
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    one_hot = torch.nn.functional.one_hot(y, classes).float()
    hidden = torch.nn.functional.softplus(x @ weights["q_w0x"].T + one_hot @ weights["q_w0y"].T)
    hidden = torch.nn.functional.softplus(hidden @ weights["q_w1"].T)
    q = model.posterior(x, y)
    torch.testing.assert_close(q.mu, hidden @ weights["q_mean_w"].T)
    torch.testing.assert_close(q.log_sigma, 0.5 * hidden @ weights["q_logvar_w"].T)
    hidden = torch.nn.functional.softplus(q.mu @ weights["p_w0z"].T + one_hot @ weights["p_w0y"].T)
    hidden = torch.nn.functional.softplus(hidden @ weights["p_w1"].T)
    torch.testing.assert_close(model.decode(q.mu, y), hidden @ weights["p_out_w"].T)
    assert not model.class_logits(x).any()


@pytest.mark.thorough
@pytest.mark.skipif(
    not (Path(os.environ.get("FASTVAE_DATA", "")) / "nips14_ssl_m2.npz").exists(),
    reason="needs a folder with MNIST and nips14_ssl_m2.npz in $FASTVAE_DATA",
)
def test_errors_of_the_authors_weights():
    system = find_system("m2")
    config, weights = system.import_weights(Path(os.environ["FASTVAE_DATA"]) / "nips14_ssl_m2.npz")
    model = system.make_model(config).eval()
    model.load_state_dict(weights)
    found = system.evaluate(model, split_labelled(load_mnist(progress=False)), M2EvaluationConfig())
    assert (found.samples, found.log_p_images, found.posterior_of) == (20, 1000, "intensities")
    assert found.posterior_error == pytest.approx(0.7, abs=0.4)


# M1 + M2


@pytest.fixture
def two_stages(tmp_path):
    torch.manual_seed(0)
    model = M1M2(SMALL["m1m2"][0])
    x = torch.from_numpy(load_labelled("digits").x_train).flatten(1)[:100] / 255.0
    model.start_from(read_first_stage(keep_m1(tmp_path)), x)
    return model, x


def test_units_that_m1_does_not_use_change_nothing(two_stages):
    model, x = two_stages
    assert model.second.active.tolist() == [1.0] * (M1_LATENT - 2) + [0.0] * 2
    z = model.first.encode(x).mu
    changed = z + (1 - model.second.active) * torch.randn_like(z)
    eps = torch.randn(len(x), 10, 2)
    for method in (model.second.class_logits, lambda z: model.second.unlabelled_bound(z, eps=eps)):
        torch.testing.assert_close(method(changed), method(z))


def test_density_of_latents(two_stages):
    model, x = two_stages
    z1, z2, labels = model.first.encode(x).mu, torch.randn(len(x), 2), torch.arange(len(x)) % 10
    mu, log_sigma = model.second.decode(z2, labels).chunk(2, -1)
    expected = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(z1)[:, : M1_LATENT - 2].sum(-1)
    torch.testing.assert_close(model.second.log_likelihood(z1, z2, labels), expected)
    every = model.second.log_likelihood(z1, z2[:, None].expand(-1, 10, -1))
    torch.testing.assert_close(every[torch.arange(len(x)), labels], expected)


def test_m1_does_not_learn_and_is_in_the_checkpoint(runs, tmp_path):
    folder, run = runs["m1m2"]
    weights = read_first_stage(keep_m1(tmp_path))
    for model in (run.model, load_checkpoint(folder / "last.ckpt")[1]):
        found = model.first.state_dict()
        assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_files_of_m1_that_do_not_fit(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match=r"m1 must name a trained M1 \(--m1\).* nips14_ssl_m1.npz"):
        find_first_stage("")
    path = keep_m1(tmp_path)
    assert find_first_stage("") == path
    with pytest.raises(RecipeError, match="m1 must be a checkpoint of m1, got one of m2"):
        read_first_stage(runs["m2"][0] / "last.ckpt")
    model, training, _ = SMALL["m1m2"]
    with pytest.raises(RecipeError, match=r"does not fit: M1 must have --m1-latent 6, --m1-hidden 5"):
        train("m1m2", type(model)(**(vars(model) | {"m1_hidden": (5,)})), training(epochs=1), tmp_path / "out")


def test_m1_must_have_latents(tmp_path):
    path = tmp_path / "nips14_ssl_m1.npz"
    np.savez(path, **arrays_of_m1(unused=M1_LATENT))
    model, training, _ = SMALL["m1m2"]
    with pytest.raises(RecipeError, match=r"nips14_ssl_m1\.npz must be an M1 with active units, got one without"):
        train("m1m2", model, training(epochs=1, m1=str(path)), tmp_path / "out")


def test_checkpoint_of_m1(tmp_path):
    config = find_system("m1").settings().model
    config = type(config)(latent_features=M1_LATENT, hidden_features=(M1_HIDDEN,) * 2, data_features=PIXELS)
    training = type(find_system("m1").settings().training)(epochs=1, batch_size=300, data="digits")
    run = train("m1", config, training, tmp_path, finish=False)
    model = M1M2(SMALL["m1m2"][0])
    x = torch.rand(20, PIXELS)
    model.start_from(read_first_stage(run.checkpoint), x)
    torch.testing.assert_close(model.first.encode(x).mu, run.model.encode(x).mu)
    z = torch.randn(3, M1_LATENT)
    torch.testing.assert_close(model.first.decode(z), run.model.decode(z).sigmoid())


@pytest.mark.parametrize(("name", "value"), [("alpha", -1.0), ("weight_prior", float("inf"))])
def test_bad_values(name, value):
    with pytest.raises(ValueError, match=f"{name} must be >= 0 and finite"):
        M2TrainConfig(**{name: value})
