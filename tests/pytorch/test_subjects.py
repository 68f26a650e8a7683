"""What is public and computes must be a subject of this folder's tests."""

import pytest
import torch
from subjects import NOT_RUN, SUBJECTS

import fastvae.functional as F
from fastvae import backend, distributions, nn


def test_everything_public_is_a_subject():
    public = {*F.__all__, *nn.__all__, *distributions.__all__}
    covered = {name for subject in SUBJECTS for name in subject.covers}
    assert covered | NOT_RUN == public


def test_names_are_unique():
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_and_reference_agree(subject, dtype):
    """The subjects are sound: without any mechanism outputs and gradients are those of the reference."""
    module, inputs = subject.drawn(dtype=dtype)
    wanted = [t for t in (*inputs, *module.parameters()) if t.requires_grad]
    found = []
    for impl in ("auto", "reference"):
        with backend.use(impl):
            outputs = subject.outputs(module, inputs)
            total = sum(o.square().sum() for o in outputs)
            gradients = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else ()
        found.append([*outputs, *(g for g in gradients if g is not None)])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert not any(t.isnan().any() for t in found[0])
