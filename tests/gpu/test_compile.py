"""Whole networks under a compiler: one graph with the numbers of eager, and ops that keep what they promise it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.networks import NETWORKS

ENTRIES = ("made", "flow", "inverse")


def total(outputs):
    return sum(o.square().sum() for o in outputs)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_compile_fullgraph(name, entry):
    form = NETWORKS[name]

    def loss(*p):
        return total(form.problem(entry, []).call("auto", list(p)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 6):
        tensors = [t.detach().cuda().requires_grad_() for t in form.tensors((rows,))]
        expected = torch.autograd.grad(loss(*tensors), tensors)
        torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected, rtol=1e-4, atol=1e-5)


class Record(TorchDispatchMode):
    """Remembers calls of our ops."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastvae":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("entry", ENTRIES)
def test_opcheck(entry):
    form = NETWORKS["everything"]
    tensors = [t.detach().cuda().requires_grad_() for t in form.tensors((64,))]
    with Record() as record:
        torch.autograd.grad(total(form.problem(entry, []).call("auto", tensors)), tensors)
    assert len(record.calls) == 2
    for op, args in record.calls:
        torch.library.opcheck(op, args)
