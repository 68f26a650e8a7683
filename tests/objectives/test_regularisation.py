"""Free bits: the floor, its gradient, and the mean over processes."""

import math
import os
import subprocess
import sys

import pytest
import torch

import fastvae.functional as F
from fastvae.objectives import free_bits


def by_hand(kl, minimum):
    """The sum of max(minimum, batch mean) and its gradient, for ``(N, groups)``."""
    mean = kl.mean(0)
    above = mean > minimum
    return torch.where(above, mean, minimum).sum(), above / len(kl) * torch.ones_like(kl)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("minimum", [0.0, 0.5, 10.0])
def test_each_dimension(dtype, minimum):
    kl = torch.rand(16, 9, dtype=dtype, requires_grad=True)
    loss = free_bits(kl, minimum)
    expected, d_expected = by_hand(kl.detach(), torch.tensor(minimum, dtype=dtype))
    torch.testing.assert_close(loss.detach(), expected)
    (d_kl,) = torch.autograd.grad(loss, kl)
    torch.testing.assert_close(d_kl, d_expected)


def test_gate_is_on_the_mean_not_on_the_example():
    kl = torch.tensor([[0.0, 0.0], [3.0, 0.9]], requires_grad=True)
    (d_kl,) = torch.autograd.grad(free_bits(kl, 1.0), kl)
    assert torch.equal(d_kl, torch.tensor([[0.5, 0.0], [0.5, 0.0]]))


def test_no_gradient_at_the_floor_itself():
    kl = torch.ones(4, 2, requires_grad=True)
    loss = free_bits(kl, 1.0)
    assert loss.item() == 2.0
    assert torch.equal(torch.autograd.grad(loss, kl)[0], torch.zeros(4, 2))


def test_groups():
    kl = torch.rand(16, 6)
    torch.testing.assert_close(free_bits(kl, 0.9, num_groups=2), by_hand(kl.unflatten(1, (2, 3)).sum(-1), 0.9)[0])
    torch.testing.assert_close(free_bits(kl, 2.5, num_groups=1), kl.sum(1).mean().clamp_min(2.5))
    assert torch.equal(free_bits(kl, 0.5, num_groups=6), free_bits(kl, 0.5))


def test_latent_maps():
    kl = torch.rand(8, 3, 4, 5)
    expected, _ = by_hand(kl.sum((2, 3)), 10.0)
    torch.testing.assert_close(free_bits(kl, 10.0), expected)


def test_samples_and_examples():
    kl = torch.rand(3, 8, 5)
    torch.testing.assert_close(free_bits(kl, 0.5, batch_ndims=2), free_bits(kl.flatten(0, 1), 0.5))


def test_a_floor_for_each_group():
    kl, minimum = torch.rand(8, 4), torch.tensor([0.0, 0.4, 0.6, 2.0])
    torch.testing.assert_close(free_bits(kl, minimum), by_hand(kl, minimum)[0])
    torch.testing.assert_close(free_bits(kl, torch.tensor(0.5)), free_bits(kl, 0.5))


def test_of_a_posterior():
    mu, log_sigma = torch.randn(8, 5), torch.randn(8, 5)
    each = F.diag_gaussian_kl(mu[..., None], log_sigma[..., None])
    torch.testing.assert_close(free_bits(each, 0.0), F.diag_gaussian_kl(mu, log_sigma).mean())


def test_gradcheck():
    kl = torch.rand(6, 8, dtype=torch.float64, requires_grad=True)
    minimum = kl.detach().mean(0).median().item() + 1e-3
    assert torch.autograd.gradcheck(lambda t: free_bits(t, minimum), kl)


def test_half_precision_is_averaged_in_float32():
    kl = torch.full((4096, 2), 0.3, dtype=torch.bfloat16, requires_grad=True)
    loss = free_bits(kl, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.item(), 2 * kl[0, 0].item(), rtol=1e-5, atol=0)
    assert torch.autograd.grad(loss, kl)[0].dtype == torch.bfloat16


def test_nan_and_inf_propagate():
    kl = torch.tensor([[math.nan, 1.0], [0.1, 1.0]])
    assert free_bits(kl, 0.5).isnan()
    assert free_bits(torch.tensor([[math.inf, 1.0]]), 0.5) == math.inf


def test_compile():
    kl = torch.rand(8, 4, requires_grad=True)
    compiled = torch.compile(free_bits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(kl, 0.5), free_bits(kl, 0.5))


WORKER = """
import sys
import torch
import torch.distributed as dist
from fastvae.objectives import free_bits

rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
kl = torch.load(folder + "/kl.pt").split([3, 5])[rank].requires_grad_()
loss = free_bits(kl, 0.5, all_processes=True)
loss.backward()
torch.save((loss.detach(), kl.grad), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_are_one_with_the_joint_batch(tmp_path):
    # In each of the first two groups one process alone would decide otherwise than both together.
    kl = torch.cat([torch.tensor([0.9, 0.2, 0.1, 1.0]).repeat(3, 1), torch.tensor([0.1, 0.9, 0.1, 1.0]).repeat(5, 1)])
    kl += 0.01 * torch.rand(8, 4)
    torch.save(kl, tmp_path / "kl.pt")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), str(tmp_path)], env=environment
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]

    kl.requires_grad_()
    loss = free_bits(kl, 0.5)
    loss.backward()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for value, _ in results:
        torch.testing.assert_close(value, loss.detach())
    # DistributedDataParallel averages: half of each process's gradient.
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]) / 2, kl.grad)
    local = [by_hand(part, 0.5)[1] for part in kl.detach().split([3, 5])]
    assert not torch.equal(torch.cat(local) > 0, kl.grad > 0)


@pytest.mark.parametrize(
    ("kl", "arguments", "error", "match"),
    [
        ([0.0], {}, TypeError, "kl must be a tensor, got list"),
        (torch.zeros(2, 3, dtype=torch.int64), {}, TypeError, "kl must be floating point, got torch.int64"),
        (
            torch.zeros(3),
            {},
            ValueError,
            r"kl must have 1 batch dimensions and at least one of latents, got \(3,\)",
        ),
        (torch.zeros(2, 3), {"batch_ndims": 2}, ValueError, r"kl must have 2 batch dimensions"),
        (torch.zeros(2, 3), {"batch_ndims": 0}, ValueError, "batch_ndims must be >= 1, got 0"),
        (torch.zeros(0, 3), {}, ValueError, r"kl must hold at least one example, got \(0, 3\)"),
        (torch.zeros(2, 6), {"num_groups": 4}, ValueError, "num_groups must divide the 6 latent .*got 4"),
        (torch.zeros(2, 6), {"num_groups": 0}, ValueError, "num_groups must divide"),
        (torch.zeros(2, 3), {"minimum": -0.1}, ValueError, "minimum must be >= 0 and finite, got -0.1"),
        (torch.zeros(2, 3), {"minimum": math.nan}, ValueError, "minimum must be >= 0 and finite, got nan"),
        (
            torch.zeros(2, 3),
            {"minimum": torch.zeros(2)},
            ValueError,
            r"one value for each of 3 groups, got \(2,\)",
        ),
        (torch.zeros(2, 3), {"all_processes": True}, RuntimeError, "torch.distributed to be initialised"),
    ],
)
def test_bad_arguments(kl, arguments, error, match):
    with pytest.raises(error, match=match):
        free_bits(kl, **{"minimum": 0.5, **arguments})
