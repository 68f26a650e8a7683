"""Weights of papers' authors: arrays of tiny files, and the figures of the real ones where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data.published_weights import M2_ARRAYS, read_m1_weights, read_m2_weights
from fastvae.recipes.evaluation.features import features
from fastvae.recipes.systems.loading import find_system, load_checkpoint

FOLDER = Path(os.environ.get("FASTVAE_DATA", "no-such-folder"))
SIZES = {"x": 6, "h": 5, "g": 4, "z": 3, "y": 2}
# Rows and columns of the arrays: M1 with 6-5-4-3 units, and M2 with two classes.
M1_SHAPES = {
    "q_w0": "hx", "q_b0": "h1", "q_w1": "gh", "q_b1": "g1", "q_mean_w": "zg", "q_mean_b": "z1", "q_logvar_w": "zg",
    "q_logvar_b": "z1", "p_w0": "gz", "p_b0": "g1", "p_w1": "hg", "p_b1": "h1", "p_out_w": "xh", "p_out_b": "x1",
}  # fmt: skip
M2_SHAPES = {name: shape for name, shape in M1_SHAPES.items() if name not in ("q_w0", "p_w0")} | {
    "q_w0x": "hx", "q_w0y": "hy", "p_w0z": "gz", "p_w0y": "gy",
}  # fmt: skip


def draw(shapes):
    random = np.random.RandomState(0)
    return {
        name: random.randn(*(SIZES.get(letter, 1) for letter in shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(path, arrays):
    np.savez(path, **arrays)
    return path


def softplus(x):
    return np.logaddexp(0.0, x)


def test_m1_is_the_authors_network(tmp_path):
    arrays = draw(M1_SHAPES)
    config, weights = find_system("m1").import_weights(write(tmp_path / "w.npz", arrays))
    assert (config.latent_features, config.hidden_features, config.data_features) == (3, (5, 4), 6)
    model = find_system("m1").make_model(config)
    model.load_state_dict(weights)
    x = np.random.RandomState(1).rand(6, 7)
    hidden = softplus(arrays["q_w1"] @ softplus(arrays["q_w0"] @ x + arrays["q_b0"]) + arrays["q_b1"])
    mean = arrays["q_mean_w"] @ hidden + arrays["q_mean_b"]
    variance = np.exp(arrays["q_logvar_w"] @ hidden + arrays["q_logvar_b"])
    q = model.double().encode(torch.from_numpy(x.T))
    assert np.allclose(q.mu.detach().numpy(), mean.T, rtol=1e-6)
    assert np.allclose((2 * q.log_sigma).exp().detach().numpy(), variance.T, rtol=1e-5)
    z = np.random.RandomState(2).randn(3, 7)
    hidden = softplus(arrays["p_w1"] @ softplus(arrays["p_w0"] @ z + arrays["p_b0"]) + arrays["p_b1"])
    logits = arrays["p_out_w"] @ hidden + arrays["p_out_b"]
    assert np.allclose(model.decode(torch.from_numpy(z.T)).detach().numpy(), logits.T, rtol=1e-6)


def test_m2_has_the_documented_layout(tmp_path):
    arrays = draw(M2_SHAPES)
    weights = read_m2_weights(write(tmp_path / "w.npz", arrays))
    assert weights.keys() == M2_ARRAYS.keys() | {"head.linear.weight", "head.linear.bias"}
    for ours, theirs in M2_ARRAYS.items():
        assert np.array_equal(weights[ours].numpy(), arrays[theirs].squeeze(1) if "bias" in ours else arrays[theirs])
    assert weights["head.linear.weight"].shape == (6, 4)
    assert np.array_equal(weights["head.linear.bias"][3:].numpy(), 0.5 * arrays["q_logvar_b"][:, 0])


def spoil(name, array):
    return lambda arrays: arrays | {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "q_w1"}, r"must hold the arrays of .*; it lacks q_w1"),
        (spoil("q_w0", np.zeros((5, 6), int)), "q_w0 must be a matrix of floats, got int64"),
        (spoil("q_w0", np.zeros(5)), r"q_w0 must be a matrix of floats, got float64 of shape \(5,\)"),
        (spoil("q_b0", np.full((5, 1), np.nan)), "q_b0 must be finite"),
        (spoil("q_b0", np.zeros((5, 2))), r"encoder.0.bias must have one column, got shape \(5, 2\)"),
        (spoil("q_logvar_w", np.zeros((2, 4))), "q_logvar_w and q_logvar_b must have the shapes of q_mean_w"),
        (spoil("q_w0", np.array([[None]])), "cannot be read as weights"),
    ],
)
def test_arrays_that_do_not_fit(change, message, tmp_path):
    path = write(tmp_path / "w.npz", change(draw(M1_SHAPES)))
    with pytest.raises(RecipeError, match=message):
        read_m1_weights(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(RecipeError, match=r"none.npz cannot be read as weights of .*: No such file"):
        read_m1_weights(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(write(tmp_path / "w.npz", draw(M1_SHAPES)).read_bytes()[:-50])
    with pytest.raises(RecipeError, match=r"bad.npz cannot be read as weights"):
        read_m1_weights(tmp_path / "bad.npz")


def test_import_makes_a_checkpoint(tmp_path, capsys):
    path = write(tmp_path / "w.npz", draw(M1_SHAPES))
    assert cli.main(["import", "m1", str(path), "--out", str(tmp_path / "out")]) == 0
    assert f"next: fastvae evaluate {tmp_path / 'out' / 'last.ckpt'}" in capsys.readouterr().out
    system, model, settings = load_checkpoint(tmp_path / "out" / "last.ckpt")
    assert (system.name, settings.model.hidden_features) == ("m1", (5, 4))
    assert np.array_equal(model.to_logits.weight.detach().numpy(), draw(M1_SHAPES)["p_out_w"])
    assert cli.main(["import", "m1", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "last.ckpt is damaged, or of another program" in capsys.readouterr().err


def test_import_of_weights_that_do_not_fit(tmp_path, capsys):
    path = write(tmp_path / "w.npz", draw(M1_SHAPES) | {"p_w1": np.zeros((7, 4))})
    assert cli.main(["import", "m1", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "the weights must have decoder.2.weight of shape (5, 4), got (7, 4)" in capsys.readouterr().err
    assert cli.main(["import", "vae", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "vae reads no weights of others" in capsys.readouterr().err


class Encoder(nn.Module):
    """Means that vary with a scale for each unit."""

    def __init__(self, scales):
        super().__init__()
        self.scales = nn.Parameter(torch.tensor(scales))

    def encode(self, x):
        mu = x[:, :1] * self.scales
        return type("Gaussian", (), {"mu": mu, "log_sigma": -mu})


def test_features_are_those_of_active_units():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    model = Encoder([1.0, 0.01, 0.2, 0.05])
    found = features(model, x)
    assert found.active.tolist() == [True, False, True, False]
    assert torch.equal(found.mean, x[:, :1] * torch.tensor([1.0, 0.2]))
    assert torch.allclose(found.std, (-found.mean).exp())
    few = features(model, x[5:7], active=found.active, chunk=1)
    assert torch.equal(few.mean, found.mean[5:7])
    with pytest.raises(ValueError, match=r"active must have shape \(4,\), got \(3,\)"):
        features(model, x, active=torch.ones(3, dtype=torch.bool))
