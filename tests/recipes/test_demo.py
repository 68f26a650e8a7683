"""The demonstration on a few synthetic images, through the command line and from Python."""

import json

import pytest
import torch

from fastvae.__main__ import main
from fastvae.recipes.data import mnist as data
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.uses import demo_speed
from fastvae.recipes.uses.demo import DemoConfig, DemoSettings, format_table, run_demo

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")
ARGUMENTS = (
    "--epochs 2 --batch-size 60 --hidden 16 --latent 4 --samples 6 --images 50 --manifold-epochs 1 --no-compiler"
)


@pytest.fixture
def keep_images(canonical):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)


def test_demo(keep_images, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["demo", "--out", str(folder), "--accelerator", "cpu", *ARGUMENTS.split()]) == 0
    printed = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    assert list(results["posteriors"]) == ["diagonal", "triangular", "iaf"]
    for row in results["posteriors"].values():
        assert row["elbo"] < row["log_p"] < 0
        assert (row["samples"], row["elbo_images"], row["log_p_images"]) == (6, 60, 50)
        for name in ("images_per_second", "step_ms", "reference_step_ms", "evaluation_ms", "reference_evaluation_ms"):
            assert row[name] > 0
        assert f"{row['elbo']:.2f}" in printed
        assert f"{row['log_p']:.2f}" in printed
        assert (folder / row["checkpoint"]).is_file()
    assert results["config"]["training"]["epochs"] == 2
    for name in ("samples", "reconstructions", "manifold", "learning_curves"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "K = 6, 50 images" in printed
    assert str(folder) in printed


def test_demo_checkpoint_evaluates_to_the_printed_figures(canonical, keep_images, tmp_path, capsys):
    config = DemoSettings(
        model=VAEConfig(latent_features=4, hidden_features=(16,)),
        training=VAETrainConfig(epochs=1, batch_size=60),
        evaluation=EvaluationConfig(samples=6),
        demonstration=DemoConfig(manifold_epochs=1, timed_steps=2, compiler=False),
    )
    results = run_demo(tmp_path / "out", config, mnist=canonical, accelerator="cpu", progress=False)
    capsys.readouterr()
    for name, row in results["posteriors"].items():
        checkpoint, figures = tmp_path / "out" / row["checkpoint"], tmp_path / f"{name}.json"
        arguments = ["--samples", "6", "--accelerator", "cpu", "--json", str(figures)]
        assert main(["evaluate", str(checkpoint), *arguments]) == 0
        found = json.loads(figures.read_text())
        assert found == {key: row[key] for key in found}
        assert f"{row['log_p']:.2f} nats (K = 6, 60 images" in capsys.readouterr().out


def test_demo_can_be_repeated(canonical, tmp_path):
    config = DemoSettings(
        model=VAEConfig(latent_features=4, hidden_features=(16,)),
        training=VAETrainConfig(epochs=1, batch_size=60),
        evaluation=EvaluationConfig(samples=2),
        demonstration=DemoConfig(manifold_epochs=1, timed_steps=1, compiler=False),
    )
    first, second = (
        run_demo(tmp_path / "out", config, mnist=canonical, accelerator="cpu", progress=False) for _ in "12"
    )
    for name in ("elbo", "log_p"):
        assert first["posteriors"]["triangular"][name] == second["posteriors"]["triangular"][name]


@pytest.mark.parametrize("compiler", [False, True])
def test_times_of_every_way(compiler):
    config, x = VAEConfig(latent_features=4, hidden_features=(16,)), torch.rand(6, 784).round()
    for times in (
        demo_speed.measure_steps(config, VAETrainConfig(), x, 3, compiler=compiler),
        demo_speed.measure_evaluation(config, EvaluationConfig(), x, 3, compiler=compiler),
    ):
        assert times.keys() == demo_speed.WAYS.keys()
        assert all(times[name] > 0 for name in ("fastvae", "reference"))
        assert (times["compile"] is None) == (not compiler)


def test_table():
    row = {
        "elbo": -95.125,
        "kl": 25.0,
        "elbo_images": 10000,
        "log_p": -91.0,
        "log_p_images": 1000,
        "samples": 128,
        "images_per_second": 15000.4,
        "step_ms": 4.0,
        "reference_step_ms": 5.0,
        "compile_step_ms": 3.0,
        "evaluation_ms": 2.0,
        "reference_evaluation_ms": 4.0,
        "compile_evaluation_ms": None,
    }
    lines = format_table({"diagonal": row, "triangular": row | {"elbo": -94.0}}).splitlines()
    assert lines[0].split() == ["diagonal", "triangular"]
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split()[-2:] == ["-95.12", "-94.00"]
    assert "K = 128, 1000 images" in lines[4]
    assert [line.split()[-1] for line in lines[-6:]] == ["4.00", "(1.25x)", "(0.75x)", "2.00", "(2.00x)", "-"]
