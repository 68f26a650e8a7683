"""Evaluation in chunks: the likelihood, memory, progress, and processes that share one."""

import json
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tqdm

from fastvae.likelihoods import bernoulli_log_prob
from fastvae.recipes.cli import main as cli
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation import chunks
from fastvae.recipes.evaluation.bounds import evaluate
from fastvae.recipes.evaluation.job import Job, Processes
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.pixelcnn.config import PixelCNNConfig
from fastvae.recipes.systems.vae.config import POSTERIORS, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from tests.recipes.evaluation_support import CONFIG, FEW, WORDS, Bar, cases, count_chunks, flow, small
from tests.recipes.training_support import train

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


# What a model knows: the likelihood without logits


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(60,), (70, 60)])
def test_likelihood_is_that_of_the_logits(posterior, impl, shape, tiny):
    model, x = small(posterior, impl=impl), binarize_fixed(tiny.x_test)
    z = torch.randn(*shape, 3)
    found, logits = model.log_likelihood(x, z), model.decode(z)
    assert found.shape == shape
    torch.testing.assert_close(found, bernoulli_log_prob(x, logits))
    wide = model.double().log_likelihood(x.double(), z.double())
    exact = bernoulli_log_prob(x.double(), model.decode(z.double()))
    torch.testing.assert_close(wide, exact, rtol=1e-12, atol=0)
    parameters = list(model.decoder.parameters()) + list(model.to_logits.parameters())
    gradients = [torch.autograd.grad(log_p.sum(), parameters) for log_p in (wide, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_likelihood_under_autocast(impl, tiny):
    model, x, z = small(impl=impl), binarize_fixed(tiny.x_test), torch.randn(5, 60, 3)
    expected = model.log_likelihood(x, z)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = model.log_likelihood(x, z), bernoulli_log_prob(x, model.decode(z))
    assert found.dtype == plain.dtype == torch.float32
    limit = 2 * (plain - expected).abs().max() + 1e-3
    assert (found - expected).abs().max() <= limit


@pytest.mark.parametrize("make", [small, flow])
def test_weights_and_measure_take_the_likelihood_of_the_model(make, tiny, monkeypatch):
    model, x = make(), binarize_fixed(tiny.x_test)
    monkeypatch.setattr(model, "log_likelihood", lambda x, z: torch.full(z.shape[:-1], 1e6))
    posterior = model.encode(x)
    assert (model.log_weights(x, posterior, 2) > 9e5).all()
    assert (model.measure(x, posterior)[0] == 1e6).all()


# Memory and progress


def test_one_chunk_is_in_memory_whatever_the_number_of_samples(tiny, monkeypatch):
    model, x = small(), binarize_fixed(tiny.x_test)
    log_weights, earlier, most = model.log_weights, [], []

    def watch(rows, posterior, samples, **noise):
        most.append((samples, len(rows), sum(made() is not None for made in earlier)))
        log_w = log_weights(rows, posterior, samples, **noise)
        earlier.append(weakref.ref(log_w))
        return log_w

    monkeypatch.setattr(model, "log_weights", watch)
    evaluate(model, x, samples=5000, log_p_images=20, image_chunk=20, sample_chunk=32)
    assert len(most) == 157
    # Nothing of the chunks before is left.
    assert [max(numbers) for numbers in zip(*most, strict=True)] == [32, 20, 0]
    assert sum(samples for samples, *_ in most) == 5000


@pytest.mark.parametrize("progress", [True, False])
def test_progress_moves_with_every_chunk_of_samples(progress, tiny, monkeypatch):
    model, x = small(), binarize_fixed(tiny.x_test)
    expected = evaluate(model, x, **FEW)
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    assert evaluate(model, x, **FEW, progress=progress) == expected
    bounds, samples = Bar.made
    assert bounds.disable == samples.disable != progress
    # Three chunks of images, each with ceil(7 / 3) chunks of samples.
    assert bounds.n == bounds.total == 3
    assert samples.n == samples.total == 3 * 3
    assert max(bounds.moves + samples.moves) == 1


def test_progress_in_the_terminal(tiny, capsys):
    model, x = small(), binarize_fixed(tiny.x_test)
    evaluate(model, x, **FEW)
    assert capsys.readouterr().err == ""
    evaluate(model, x, **FEW, progress=True)
    assert "bound of test images" in capsys.readouterr().err


# Processes


@pytest.fixture
def one_thread():
    """Teams of threads in each of several threads would wait for each other on few cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Threads(Processes):
    """Processes that are threads of this one."""

    def __init__(self, rank, count, barrier, values):
        super().__init__(rank, count)
        self.__dict__.update(barrier=barrier, values=values)

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait()
        found = [self.values[rank] for rank in range(self.count)]
        self.barrier.wait()
        return found


def run_together(count, function):
    """What a function of its processes returns on each of several."""
    barrier, values, found = threading.Barrier(count, timeout=600), {}, {}
    threads = torch.get_num_threads()

    def run(rank):
        torch.set_num_threads(threads)
        found[rank] = function(Threads(rank, count, barrier, values))

    workers = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[rank] for rank in range(count)]


@pytest.mark.parametrize("name", ["vae", "pixelvae", "pixelcnn"])
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.usefixtures("one_thread")
def test_shared_evaluation_has_the_figures_of_one_process(name, count, tiny, tmp_path):
    make, evaluation, _ = cases()[name]
    model, x, work = make(), binarize_fixed(tiny.x_test), tmp_path / "work"
    expected = evaluation(model, x)
    found = run_together(count, lambda processes: evaluation(model, x, job=Job(processes, work)))
    assert found == [expected] * count
    assert work.exists()


@pytest.fixture
def checkpoint(canonical, tmp_path):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    training = VAETrainConfig(epochs=1, batch_size=60)
    return train("vae", CONFIG, training, tmp_path / "run", images=canonical, finish=False).checkpoint


def test_command_line_goes_on_with_two_processes(checkpoint, canonical, tmp_path, monkeypatch, capsys):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures, work, npz = tmp_path / "figures.json", tmp_path / "work", tmp_path / "images.npz"
    arguments = ["evaluate", str(checkpoint), *WORDS, "--json", str(figures)]
    try:
        assert cli.main(arguments) == 0
        expected = json.loads(figures.read_text())
        figures.unlink()
        with monkeypatch.context() as patch:
            count_chunks(VAE, patch, fail=4)
            assert cli.main([*arguments, "--work", str(work)]) == 130
    finally:
        torch.set_num_threads(threads)
    assert len(chunks.read_content(work)) > 0
    assert not figures.exists()
    printed = capsys.readouterr().out
    np.savez(npz, **{key: getattr(canonical, key) for key in data.NPZ_KEYS.values()})
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("evaluating_processes.py")
    ended = subprocess.run(
        [sys.executable, *launcher, script, npz, *arguments[1:], "--work", work],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert json.loads(figures.read_text()) == expected
    assert ended.stdout == printed
    assert not work.exists()


def test_command_line_refuses_work_that_it_cannot_use(checkpoint, tmp_path, capsys):
    arguments = ["evaluate", str(checkpoint), *WORDS, "--no-progress"]
    foreign = tmp_path / "foreign"
    foreign.write_text("notes")
    assert cli.main([*arguments, "--work", str(foreign)]) == 1
    error = capsys.readouterr().err
    assert error == f"fastvae: error: {foreign} holds no unfinished evaluation: {chunks.REMEDY}\n"
    assert foreign.read_text() == "notes"
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--work", str(foreign), "--json", str(foreign)])
    assert "--work and --json must name two files" in capsys.readouterr().err
    assert cli.main([*arguments, "--work", str(tmp_path)]) == 1
    assert "it is a folder; name a file" in capsys.readouterr().err


def test_speed_of_sampling_is_measured_by_the_first_process(tiny):
    system = find_system("pixelcnn")
    model = system.make_model(PixelCNNConfig(layers=2, maps=4)).eval()
    images = type("Images", (), {"x_test": tiny.x_test[:8], "x_valid": tiny.x_test[:8]})
    settings = system.settings().evaluation
    first, second = run_together(2, lambda processes: system.evaluate(model, images, settings, job=Job(processes)))
    assert second.sampled_images_per_second is None
    assert first.sampled_images_per_second > 0
    assert replace(first, sampled_images_per_second=None) == second
