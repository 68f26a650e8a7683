"""Weight normalisation under DistributedDataParallel, and sharded weights on every nesting, in two processes.

Usage: python -m tests.support.replicas_and_shards CASES RANK FILE; the processes meet at FILE. Prints "ok".
"""

import copy
import sys

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from fastvae import nn as layers
from tests.support.subjects import D, Method


class Model(nn.Module):
    """A normalised flow inside a bigger model."""

    def __init__(self):
        super().__init__()
        self.encoder, self.flow = nn.Linear(D, D), layers.InverseAutoregressiveFlow(D, (8,), steps=2, weight_norm=True)

    def forward(self, x):
        return self.flow(self.encoder(x))


NORMALISED = {
    "IAF": lambda: layers.InverseAutoregressiveFlow(D, (8,), steps=2, weight_norm=True),
    "MAF": lambda: Method(layers.MaskedAutoregressiveFlow(D, (8,), weight_norm=True), "inverse"),
    "MADE": lambda: layers.MADE(D, (8,), weight_norm=True),
    "inside": Model,
}


def error_of(call):
    """The words of the error that a call ends with; none where it ends well."""
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def first_of(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def assert_equal_everywhere(module):
    flat = torch.cat([p.detach().flatten() for p in module.parameters()])
    all_of = [torch.empty_like(flat) for _ in range(2)]
    distributed.all_gather(all_of, flat)
    assert flat.isfinite().all()
    assert torch.equal(*all_of)


def replicas(rank, name):
    """After the first batch, and after a step, also where one process was initialised before."""
    for ready in (False, True):
        torch.manual_seed(rank)
        module = NORMALISED[name]()
        before = [p.detach().clone() for p in module.parameters()]
        if ready and rank == 0:
            module.train()
            for part in module.modules():
                if isinstance(part, layers.MADE):
                    part.initialize(torch.randn(16, D))
            before = [p.detach().clone() for p in module.parameters()]
        wrapped = DistributedDataParallel(module)
        optimizer = torch.optim.SGD(module.parameters(), 0.01)
        for step in range(2):
            torch.manual_seed(10 * step + rank)
            first_of(wrapped(torch.randn(16, D))).square().sum().backward()
            assert_equal_everywhere(module)
            if step == 0 and rank == 0:
                changed = any(not torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
                assert changed != ready, "the first batch sets gains once"
            optimizer.step()
            optimizer.zero_grad()
            assert_equal_everywhere(module)


def alone(rank, _):
    """Without DistributedDataParallel nothing would keep processes equal."""
    module = layers.MADE(D, (8,), weight_norm=True)
    for _ in range(2):  # the second batch is no safer than the first
        assert "only DistributedDataParallel keeps them equal" in error_of(lambda: module(torch.randn(16, D)))
    module.eval()(torch.randn(16, D))


def share(rank, name):
    """The block in which a first batch is that of all processes; beyond it modules are refused as before."""
    torch.manual_seed(0)
    module = NORMALISED[name]()
    torch.manual_seed(rank)
    with layers.shared_first_batch():
        module(torch.randn(16, D))
    assert_equal_everywhere(module)
    assert not torch.equal(first_of(module(torch.ones(1, D))), first_of(NORMALISED[name]().eval()(torch.ones(1, D))))
    alone(rank, name)


def make_flow(kind):
    return getattr(layers, kind)(D, (8,), steps=2)


def shard_nested(module, scope):
    """FSDP's recipe: inner modules first, then the root."""
    kinds = {"layers": (nn.Linear, nn.Conv2d), "networks": (layers.MADE, layers.GatedMaskedConv2d), "whole": ()}[scope]
    mesh = init_device_mesh("cpu", (2,))
    for part in module.modules():
        if isinstance(part, kinds):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def shards(rank, scope):
    for kind in ("InverseAutoregressiveFlow", "MaskedAutoregressiveFlow"):
        torch.manual_seed(0)
        plain = make_flow(kind)
        module = shard_nested(copy.deepcopy(plain), scope)
        register_fsdp_forward_method(module, "inverse")
        optimizers = [torch.optim.SGD(m.parameters(), 0.01) for m in (plain, module)]
        for _ in range(2):
            z = torch.randn(6, D)  # the same in both processes: the mean of gradients is each one's
            for direction in ("forward", "inverse"):
                losses = []
                for m in (plain, module):
                    call = m if direction == "forward" else m.inverse
                    out, log_det = call(z)
                    losses.append(out.square().sum() - log_det.sum())
                    losses[-1].backward()
                torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        for p, sharded in zip(plain.parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(sharded.full_tensor(), p.detach(), rtol=1e-4, atol=1e-4)


def pixels(rank, scope):
    """Outputs and gradients equal; samples equal, or an error says what is not supported."""
    torch.manual_seed(0)
    plain = layers.GatedPixelCNN(1, 4, 2).eval()
    module = shard_nested(copy.deepcopy(plain), scope)
    x = torch.bernoulli(torch.full((2, 1, 3, 4), 0.5))
    losses = [m(x).square().sum() for m in (plain, module)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for p, sharded in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(sharded.grad.full_tensor(), p.grad)
    expected = plain.sample(2, (3, 4), generator=torch.Generator().manual_seed(1))
    drawn = []
    error = error_of(lambda: drawn.append(module.sample(2, (3, 4), generator=torch.Generator().manual_seed(1))))
    assert "hooks" in error or "DTensor" in error or torch.equal(drawn[0], expected), error


SCOPES = ("layers", "networks", "whole")
CASES = {
    "replicas": [(alone, ""), *((case, name) for case in (replicas, share) for name in NORMALISED)],
    "shards": [(case, scope) for case in (shards, pixels) for scope in SCOPES],
}


def main(cases, rank, file):
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=int(rank), world_size=2)
    for case, argument in CASES[cases]:
        print(case.__name__, argument, flush=True)
        case(int(rank), argument)
    distributed.barrier()
    distributed.destroy_process_group()
    print("ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
