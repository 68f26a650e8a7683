"""Checkpoints and ``config.json`` files as they were before every system had the same settings.

``earlier_checkpoints.json`` has the settings of one of each system, and the shapes of its weights.
"""

import json
from pathlib import Path

import pytest
import torch

from fastvae.recipes.cli import main as cli
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.loading import find_system, load_checkpoint
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from tests.recipes.training_support import assert_same_weights, train

EARLIER = json.loads(Path(__file__).with_name("earlier_checkpoints.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


@pytest.mark.parametrize("name", EARLIER)
def test_checkpoint_loads(name, tmp_path):
    earlier, path = EARLIER[name], tmp_path / "last.ckpt"
    weights = {key: torch.randn(shape) for key, shape in earlier["shapes"].items()}
    torch.save({"hyper_parameters": earlier["hyper_parameters"], "state_dict": weights}, path)
    system, model, settings = load_checkpoint(path)
    assert system.name == name.split(",")[0]
    prefix = "averaged." if any(key.startswith("averaged.") for key in weights) else "model."
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[prefix + key].to(value.dtype))
    for part in ("model", "training"):
        for key, value in earlier["hyper_parameters"][part].items():
            found = getattr(getattr(settings, part), key)
            assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("name", [name for name, earlier in EARLIER.items() if earlier["config"]])
def test_configuration_file_is_read(name, tmp_path, monkeypatch):
    seen, config = [], EARLIER[name]["config"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    system = find_system(config["recipe"])
    monkeypatch.setattr(type(system), "run", lambda self, settings, *_, **__: seen.append(settings) or 1 / 0)
    assert cli.main(["train", system.name, "--config", str(path)]) == 1
    expected = {part: value for part, value in config.items() if part != "recipe"}
    assert seen == [system.to_settings(expected)]


def test_unfinished_run_of_the_first_system_goes_on(tiny, tmp_path):
    """Its checkpoints named neither a system nor the figures of epochs."""
    model, training = VAEConfig(latent_features=3, hidden_features=(8,)), VAETrainConfig(epochs=2, batch_size=60)
    few = {"images": tiny, "evaluation": EvaluationConfig(samples=2)}
    whole = train("vae", model, training, tmp_path / "whole", **few)
    checkpoint = train("vae", model, training, tmp_path / "part", limit_epochs=1, **few).checkpoint
    content = torch.load(checkpoint, weights_only=True)
    del (
        content["history"],
        content["hyper_parameters"]["recipe"],
        content["hyper_parameters"]["training"]["check_every"],
    )
    torch.save(content, checkpoint)
    found = train("vae", model, training, tmp_path / "part", resume=checkpoint, **few)
    assert_same_weights(found, whole)
    assert found.figures == whole.figures
    assert [row["epoch"] for row in found.history] == [2]
