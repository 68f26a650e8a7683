"""What the tests of ops run over: implementations, dtypes and shapes of rows."""

from __future__ import annotations

import torch

GPU = torch.cuda.is_available()


IMPLEMENTATIONS = ("reference", "cpp", "triton")


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# Batch, features, and why.
SHAPES = [
    ((0,), 5),  # no rows
    ((1,), 1),  # one feature: no triangle at all
    ((3,), 3),  # packed and dense triangles have the same width
    ((5,), 63),  # one short of a full vector
    ((4,), 64),  # quarters aligned to every vector width
    ((3,), 65),  # one more: the last quarter is ragged
    ((2, 3), 18),  # two batch dimensions
    ((), 7),  # no batch dimension
]


def device_of(impl: str) -> str:
    """Where ``impl`` runs here: Triton on the GPU, or interpreted on the CPU."""
    return "cuda" if impl == "triton" and GPU else "cpu"
