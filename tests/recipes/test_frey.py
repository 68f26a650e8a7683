"""The Frey faces, and the Gaussian likelihood of intensities."""

import hashlib

import numpy as np
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import frey
from fastvae.recipes.pictures.grids import tile
from fastvae.recipes.systems.vae.config import VAEConfig, VAESettings, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
SMALL = "--likelihood gaussian --data-features 560 --activation tanh --hidden 8 --latent 2 --batch-size 400 --samples 2"


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """A file of the same form, which passes for the faces."""
    frames = np.random.RandomState(0).randint(90, 160, (1965, 560)).astype(np.uint8)
    frames[:, 100:200] += 80
    monkeypatch.setattr(frey, "SHA256", hashlib.sha256(frames.tobytes()).hexdigest())
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.save(tmp_path / "freyfaces.npy", frames)
    return frames


def test_parts(faces):
    images = frey.load_frey()
    assert (images.x_train.shape, images.x_test.shape) == ((1600, 28, 20), (365, 28, 20))
    assert (np.concatenate([images.x_train, images.x_test]).reshape(1965, 560) == faces).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no array", "cannot be read"), (np.zeros((1965, 560)), "float64 of shape"), (None, "were not found")],
)
def test_files_that_are_wrong(content, message, faces, tmp_path):
    path = tmp_path / "freyfaces.npy"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content.astype(np.float64)[:200])
    with pytest.raises(RecipeError, match=message):
        frey.load_frey()


def test_gaussian_likelihood():
    torch.manual_seed(0)
    model = VAE(VAEConfig(latent_features=2, hidden_features=(8,), data_features=560, likelihood="gaussian")).double()
    x, z = torch.rand(4, 560).double(), torch.randn(3, 4, 2).double()
    hidden = model.decoder(z)
    density = torch.distributions.Normal(model.decode(z).sigmoid(), model.to_log_sigma(hidden).exp())
    torch.testing.assert_close(model.log_likelihood(x, z), density.log_prob(x).sum(-1))
    eps = torch.randn(4, 2).double()
    q = model.encode(x)
    z, _, kl = q.rsample_with_kl(eps=eps)
    torch.testing.assert_close(model.bound(x, eps=eps), model.log_likelihood(x, z) - kl)
    with pytest.raises(RecipeError, match=r"likelihood must be 'bernoulli' .*, got 'gaussian'"):
        model.latent_gradient(z, x)


def test_images_that_are_not_square():
    picture = tile(torch.arange(2 * 560).float().view(2, 560), 1, 2, gap=1)
    assert picture.shape == (28, 41)
    torch.testing.assert_close(picture[:, :20].flatten(), torch.arange(560.0))


def test_run(faces, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["train", "vae", "--data", "frey", *SMALL.split(), "--epochs", "3", "--out", str(out), "--no-progress"]
    assert cli.main([*words, "--device", "cpu"]) == 0
    losses = [float(line.split(",")[2]) for line in (out / "metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    words = ["manifold", str(out / "last.ckpt"), "-o", str(out / "m.png"), "--scatter", str(out / "s.png")]
    assert cli.main(words) == 0
    assert {"m.png", "s.png", "samples.png", "reconstructions.png"} <= {path.name for path in out.iterdir()}


def test_data_and_likelihood_go_together():
    with pytest.raises(ValueError, match="likelihood must be 'gaussian' for data='frey', got 'bernoulli'"):
        VAESettings(training=VAETrainConfig(data="frey"))
    with pytest.raises(ValueError, match="likelihood must be 'bernoulli' for data='dynamic', got 'gaussian'"):
        VAESettings(VAEConfig(likelihood="gaussian"))
    with pytest.raises(ValueError, match="data_features must be 560 for data='frey', got 784"):
        VAESettings(VAEConfig(likelihood="gaussian"), VAETrainConfig(data="frey"))
