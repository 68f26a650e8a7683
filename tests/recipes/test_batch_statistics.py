"""Batch norm with collected averages: what they are, and what leaves no trace in them."""

import pytest
import torch
from torch import nn

from fastvae.recipes import RecipeError
from fastvae.recipes.batch_statistics import EPS, CollectedBatchNorm, check_one_process, collect_statistics


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4), CollectedBatchNorm(4), nn.ReLU(), nn.Linear(4, 3), CollectedBatchNorm(3)
    ).double()


def batches(count=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, dtype=torch.float64, generator=generator) + index for index in range(count)]


def test_averages_are_means_over_batches():
    model, drawn = network(), batches()
    collect_statistics(model, drawn)
    means, variances = [], []
    for x in drawn:
        first = model[0](x)
        h = (first - first.mean(0)) / (first.var(0, correction=0) + EPS).sqrt()
        second = model[3](h.relu())
        means.append([first.mean(0), second.mean(0)])
        variances.append([first.var(0), second.var(0)])
    for index, norm in enumerate((model[1], model[4])):
        torch.testing.assert_close(norm.running_mean, torch.stack([each[index] for each in means]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([each[index] for each in variances]).mean(0))


def test_collecting_again_forgets_the_first():
    model, other = network(), network()
    collect_statistics(model, batches())
    collect_statistics(model, batches()[1:])
    collect_statistics(other, batches()[1:])
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_stays(mode):
    model = network().train(mode)
    collect_statistics(model, batches())
    assert all(module.training == mode for module in model.modules())


def test_training_leaves_no_trace():
    model = network()
    collect_statistics(model, batches())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = 100.0 + batches()[0]
    found = model(x)
    torch.testing.assert_close(found.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_evaluation_does_not_depend_on_the_batch():
    model = network()
    collect_statistics(model, batches())
    model.eval()
    x = batches()[0]
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows(rows):
    with pytest.raises(ValueError, match=rf"x must have 2 rows or more, whose statistics .*; got {rows}"):
        network()(torch.zeros(rows, 5, dtype=torch.float64))


def test_several_processes(monkeypatch):
    check_one_process("vat")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"vat takes batch statistics .*: it must run on 1 process, .* started 2"):
        check_one_process("vat")
