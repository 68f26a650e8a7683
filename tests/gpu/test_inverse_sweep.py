"""The sweeps of the inverse in CUDA C++, as NVRTC compiles them here, at the sizes that they are made for."""

import pytest
import torch

from fastvae.kernels import autoregressive_inverse as launchers
from fastvae.kernels._inverse_sweep import find_sweep
from fastvae.kernels.sorted_units import sorted_structure
from tests.support.networks import network
from tests.support.oracle import check, run_with_gradients


@pytest.mark.parametrize("launcher", ["autoregressive_inverse_fwd", "autoregressive_inverse_solve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sweeps_serve_usual_networks(launcher, dtype):
    structure = network(64, (512, 512)).structure
    z = torch.empty(1024, 64, dtype=dtype, device="cuda")
    assert find_sweep(launcher, (z, None), structure, 2, sorted_structure(structure, 2, z.device)) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "hidden", "residual"), [(1024, (512, 512), False), (300, (256,) * 3, True)])
def test_close_to_the_reference(rows, hidden, residual, dtype):
    made = network(64, hidden, context=True, residual=residual, weight_scale=True)
    check(lambda: made.problem("inverse", made.tensors((rows,))), "triton", dtype)


def test_close_to_the_triton_kernels(monkeypatch):
    made = network(63, (500, 1300), context=True)
    problem = made.problem("inverse", made.tensors((2000,))).to(torch.float64, "cuda")
    upstream = [torch.randn_like(o) for o in problem.outputs("triton")]
    results = run_with_gradients(problem, "triton", upstream)
    monkeypatch.setattr(launchers, "find_sweep", lambda *_: None)
    for result, expected in zip(results, run_with_gradients(problem, "triton", upstream), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
