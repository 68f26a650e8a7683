"""What is recomputed, packed or offloaded in the meantime gives the same gradients to the bit, noise included."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

import fastvae.functional as F
from fastvae.distributions import DiagonalGaussian, TriangularGaussian
from tests.support.subjects import SUBJECTS, VECTOR, Call, Subject, normal, several, tensors_of

PACKED = normal(3)

# Noise drawn inside: a recomputation must draw it again, from the state of the generator at the first time.
NOISY = [
    Subject("diag_gaussian_rsample drawn", (), lambda: Call(F.diag_gaussian_rsample), several(VECTOR, VECTOR)),
    Subject("tril_gaussian_rsample drawn", (), lambda: Call(F.tril_gaussian_rsample), several(VECTOR, VECTOR, PACKED)),
    Subject("DiagonalGaussian drawn", (), lambda: Call(lambda m, s: DiagonalGaussian(m, s).rsample_with_log_prob()),
            several(VECTOR, VECTOR)),
    Subject("TriangularGaussian drawn", (),
            lambda: Call(lambda m, s, t: TriangularGaussian(m, s, t).rsample_with_log_prob((2,))),
            several(VECTOR, VECTOR, PACKED)),
]  # fmt: skip
every = pytest.mark.parametrize("subject", [*SUBJECTS, *NOISY], ids=str)


def gradients(run, module, inputs):
    """Of a loss that reads every output of ``run``; the same noise each time."""
    torch.manual_seed(3)
    outputs = tensors_of(run(*inputs))
    loss = sum((torch.linspace(-1.0, 2.0, o.numel()).view(o.shape) * o).square().sum() for o in outputs)
    if not loss.requires_grad:
        return [o.detach() for o in outputs]
    torch.rand(7)  # what draws between forward and backward does not reach a recomputation
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    for t in wanted:
        t.grad = None
    loss.backward()
    return [None if t.grad is None else t.grad.clone() for t in wanted]


def recompute_none(ctx, op, *args, **kwargs):
    return CheckpointPolicy.MUST_SAVE


def recompute_some(ctx, op, *args, **kwargs):
    saved = "fastvae" in str(op) or "mm" in str(op)
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


def selective(policy):
    return partial(checkpoint, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy))


def nest(function, *inputs):
    inner = partial(checkpoint, function, use_reentrant=False)
    return checkpoint(inner, *inputs, use_reentrant=False)


def to_the_end(function, *inputs):
    with set_checkpoint_early_stop(False):
        return checkpoint(function, *inputs, use_reentrant=False)


CHECKPOINTS = {
    "without reentry": partial(checkpoint, use_reentrant=False),
    "reentrant": partial(checkpoint, use_reentrant=True),
    "nested": nest,
    "to the end": to_the_end,
    "selective, nothing again": selective(recompute_none),
    "selective, something again": selective(recompute_some),
}


@every
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(subject, name):
    module, inputs = subject.draw()
    if name == "reentrant" and not any(t.requires_grad for t in inputs):
        # Re-entry follows inputs only; that one of them needs a gradient is its own condition.
        inputs = [*inputs, torch.zeros(1, requires_grad=True)]
        run = lambda *tensors: tuple(o + tensors[-1].sum() for o in tensors_of(module(*tensors[:-1])))  # noqa: E731
    else:
        run = module
    expected = gradients(run, module, inputs)
    assert_equal(gradients(partial(CHECKPOINTS[name], run), module, inputs), expected)


def to_double(t: Tensor):
    return t.dtype, t.double() if t.is_floating_point() else t.clone()


def from_double(packed):
    dtype, t = packed
    return t.to(dtype)


HOOKS = {
    "float64": lambda: torch.autograd.graph.saved_tensors_hooks(to_double, from_double),
    "copies": lambda: torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone),
    "save_on_cpu": torch.autograd.graph.save_on_cpu,
}


@every
@pytest.mark.parametrize("name", HOOKS)
def test_saved_tensors_hooks(subject, name):
    module, inputs = subject.draw()
    expected = gradients(module, module, inputs)

    def call_with_hooks(*tensors):
        with HOOKS[name]():
            return module(*tensors)

    assert_equal(gradients(call_with_hooks, module, inputs), expected)


@every
def test_second_derivatives_under_a_checkpoint(subject):
    """create_graph through a recomputation."""
    module, inputs = subject.draw()
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]

    def penalise(run):
        torch.manual_seed(3)
        loss = sum(o.square().sum() for o in tensors_of(run(*inputs)))
        if not loss.requires_grad:
            return [loss]
        first = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
        penalty = sum(g.square().sum() for g in first if g is not None)
        return torch.autograd.grad(penalty, wanted, allow_unused=True)

    assert_equal(penalise(partial(checkpoint, module, use_reentrant=False)), penalise(module))


def assert_equal(found, expected):
    assert [g is None for g in found] == [g is None for g in expected]
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if f is not None]
    assert all(torch.equal(f.nan_to_num(7.0), e.nan_to_num(7.0)) for f, e in pairs)
