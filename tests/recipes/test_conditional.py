"""The class-conditional PixelCNN."""

import pytest
import torch

from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.systems.loading import find_system, load_checkpoint
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig, PixelCNNSettings, PixelTrainConfig
from fastvae.recipes.systems.pixelcnn.model import BinaryPixelCNN

SMALL = {"layers": 2, "maps": 4, "filter_size": 3}
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.mark.parametrize("network", ["gated", "plain"])
def test_class_is_the_context(network):
    torch.manual_seed(0)
    model = BinaryPixelCNN(PixelCNNConfig(network, conditional=True, **SMALL))
    x, labels = torch.rand(4, 784).round(), torch.tensor([0, 3, 3, 9])
    found = model.log_prob(x, labels)
    context = model.embedding.weight[labels]
    torch.testing.assert_close(found, model.network.log_prob(x.view(4, 1, 28, 28), context))
    assert (found != model.log_prob(x, labels.flip(0))).any()
    with pytest.raises(ValueError, match="context"):
        model.log_prob(x)


def test_labels_of_the_parts(tiny):
    images = split_mnist(tiny)
    assert (images.y_train == tiny.y_train[:250]).all()
    assert (images.with_validation().y_train == tiny.y_train).all()


def test_static_images_have_no_labels(capsys):
    with pytest.raises(ValueError, match=r"data must be 'dynamic' for a conditional model, .*got 'static'"):
        PixelCNNSettings(PixelCNNConfig(conditional=True))
    assert cli.main(["train", "pixelcnn", "--conditional"]) == 1
    assert "data must be 'dynamic'" in capsys.readouterr().err


def test_run(canonical, tmp_path, capsys):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    settings = PixelCNNSettings(
        PixelCNNConfig(conditional=True, **SMALL), PixelTrainConfig(epochs=2, batch_size=125, data="dynamic")
    )
    system = find_system("pixelcnn")
    run = system.run(settings, tmp_path, images=split_mnist(canonical), accelerator="cpu", progress=False)
    assert run.history[1]["loss"] < run.history[0]["loss"]
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
    _, model, settings = load_checkpoint(run.checkpoint)
    assert settings.model.conditional
    x = torch.rand(2, 784).round()
    torch.testing.assert_close(model.log_prob(x, torch.tensor([1, 2])), run.model.log_prob(x, torch.tensor([1, 2])))
    draw = ["sample", str(run.checkpoint), "-o", str(tmp_path / "s.png"), "--count", "2"]
    assert cli.main([*draw, "--labels", "1"]) == 0
    assert cli.main([*draw, "--labels", "10"]) == 1
    assert "labels must be 0 ... 9, got 10" in capsys.readouterr().err
    assert cli.main([*draw[:4], "--count", "3", "--labels", "1", "2"]) == 1
    assert "labels must be one class, or one for each of the 3 images, got 2" in capsys.readouterr().err
    assert (
        cli.main(["compress", str(tmp_path / "s.png"), "--checkpoint", str(run.checkpoint), "-o", str(tmp_path / "c")])
        == 1
    )
    assert "must be of a pixelcnn that is not conditional" in capsys.readouterr().err
