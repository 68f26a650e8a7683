"""Other libraries' inverses beside ours: what is timed is what it claims to be, and their absence is said."""

import pytest
import torch

from bench import peers, registry, roofline, runner, timing
from bench.task import Case, Shape

INSTALLED = {"zuko": "zuko", "nflows": "nflows", "pyro": "pyro"}


def case_of(mode="fwd", variant="512-512"):
    return Case("autoregressive_inverse", "inverse", variant, mode, Shape(5, 6), "float32", "cpu")


@pytest.fixture(autouse=True)
def fresh_modules():
    peers._build_module.cache_clear()
    yield
    peers._build_module.cache_clear()


@pytest.mark.parametrize("name", peers.MODULES)
def test_inverse_is_an_inverse_of_the_same_size(name):
    pytest.importorskip(INSTALLED[name])
    case = case_of()
    module, z = peers.find_module(name, case), torch.randn(5, 6)
    x, log_det = module(z)
    back, minus_log_det = module.undo(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(minus_log_det, -log_det)
    # Weights in the shapes of ours.
    ours = registry.find_task(case).inputs(case, torch.Generator().manual_seed(0))[1:]
    assert sorted(p.shape for p in module.parameters()) == sorted(t.shape for t in ours)


@pytest.mark.parametrize("name", peers.MODULES)
def test_every_call_computes(name, monkeypatch):
    """A transform that kept its last answer would be timed at nothing."""
    pytest.importorskip(INSTALLED[name])
    case = case_of()
    task, sets = registry.find_task(case), [(torch.randn(5, 6),)]
    prepared = runner.prepare(task, case, name, sets)
    calls = []
    monkeypatch.setattr(torch.nn.functional, "linear", count_calls(calls, torch.nn.functional.linear))
    with torch.no_grad():
        for _ in range(2):
            before = len(calls)
            prepared.calls[0]()
            assert len(calls) - before >= 3 * case.shape.columns


def count_calls(calls, function):
    def count(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return count


@pytest.mark.parametrize("name", peers.MODULES)
def test_gradients_reach_the_input_and_every_weight(name):
    pytest.importorskip(INSTALLED[name])
    case = case_of("fwdbwd")
    task = registry.find_task(case)
    prepared = runner.prepare(task, case, name, runner.make_input_sets(task, case))
    _, gradients = prepared.calls[0]()
    assert len(gradients) == 7
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("name", peers.MODULES)
def test_an_absent_package_is_said_and_costs_the_others_nothing(name, monkeypatch):
    real = peers.importlib.import_module

    def refuse_import(module, package=None):
        if module.partition(".")[0] == INSTALLED[name]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, package)

    monkeypatch.setattr(peers.importlib, "import_module", refuse_import)
    limits = roofline.Limits(1e10, 1e11)
    rows = runner.measure(case_of(), ["fastvae", name], limits, runner.Settings(timing.QUICK))
    told = {row["provider"]: row for row in rows}
    assert told[name]["error"] == f"RuntimeError: {peers._PACKAGES[name]} is not installed"
    assert told["fastvae"]["p50_us"] > 0


def test_own_forward_stands_beside_the_inverse():
    limits = roofline.Limits(1e10, 1e11)
    rows = runner.measure(case_of(), ["fastvae", "forward"], limits, runner.Settings(timing.QUICK))
    ours = next(row for row in rows if row["provider"] == "fastvae")
    assert ours["vs_forward"] > 0
