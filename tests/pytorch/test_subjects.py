"""What is public and computes must be a subject of this folder's tests."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastvae.functional as F
from fastvae import backend, distributions, nn
from tests.support.subjects import NOT_RUN, SUBJECTS


def test_everything_public_is_a_subject():
    public = {*F.__all__, *nn.__all__, *distributions.__all__}
    covered = {name for subject in SUBJECTS for name in subject.covers}
    assert covered | NOT_RUN == public


def test_names_are_unique():
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)


class Recorder(TorchDispatchMode):
    """The names of this package's ops that run."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastvae":
            self.ops.add(func._schema.name)
        return func(*args, **(kwargs or {}))


# They take more rows than a subject has; tests/ops/test_mlp_bernoulli.py also compiles them.
OF_MANY_ROWS = {"fastvae::mlp_bernoulli_fwd", "fastvae::mlp_bernoulli_bwd"}


def test_every_op_is_reached():
    """An op that no subject runs is missing from every test of this folder."""
    registered = {name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    with Recorder() as recorder:
        for subject in SUBJECTS:
            module, inputs = subject.draw()
            total = sum(o.square().sum() for o in subject.outputs(module, inputs))
            if total.requires_grad:
                total.backward()
    assert recorder.ops | OF_MANY_ROWS == {name for name in registered if name.startswith("fastvae::")}


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_and_reference_agree(subject, dtype):
    """The subjects are sound: without any mechanism outputs and gradients are those of the reference."""
    module, inputs = subject.draw(dtype=dtype)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    found = []
    for impl in ("auto", "reference"):
        with backend.use(impl):
            outputs = subject.outputs(module, inputs)
            total = sum(o.square().sum() for o in outputs)
            gradients = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else ()
        found.append([*outputs, *(g for g in gradients if g is not None)])
    for ours, theirs in zip(*found, strict=True):
        # Gradients of logits are differences of numbers as large as the gradient of the output.
        largest = float(theirs.detach().abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, largest / 10))
    assert not any(t.isnan().any() for t in found[0])
