"""Run by `make wheel` beside an unpacked wheel: what a user who typed `pip install .` has."""

import sys

# The environment's editable install would come first.
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, ".")

import torch

import fastvae
import fastvae.functional as F

if "wheel-check" not in (fastvae.__file__ or ""):
    raise SystemExit(f"imported {fastvae.__file__}, not the wheel")
mu = torch.randn(4, 8, requires_grad=True)
z, log_q = F.tril_gaussian_rsample(mu, torch.zeros(4, 8), torch.zeros(4, 28), (3,), impl="cpp")
(z.sum() + log_q.sum()).backward()
if mu.grad is None or not torch.equal(mu.grad, torch.full((4, 8), 3.0)):
    raise SystemExit(f"wrong gradient: {mu.grad}")
import fastvae.kernels.aot
from fastvae.kernels._inverse_sweep import read_source

if "autoregressive_inverse_solve" not in read_source():
    raise SystemExit("the sources in CUDA C++ are incomplete")
print(fastvae.backend.report())
