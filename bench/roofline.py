"""The machine's limits, measured in the same run as the rows that quote them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import environment, timing
from .task import DTYPES, Work

_GIGA = 1e9


@dataclass(frozen=True)
class Limits:
    """Copy bandwidth in bytes read plus bytes written per second; matrix product in operations per second."""

    copy: float
    matmul: float

    def seconds(self, work: Work) -> float:
        """The least time that ``work`` takes on this machine."""
        return max(work.bytes / self.copy, work.flops / self.matmul)

    def bound(self, work: Work) -> str:
        return "memory" if work.bytes / self.copy >= work.flops / self.matmul else "compute"

    def record(self) -> dict[str, float]:
        return {
            "copy_gbps": float(f"{self.copy / _GIGA:.4g}"),
            "matmul_gflops": float(f"{self.matmul / _GIGA:.4g}"),
        }


def measure(device: str, dtype: str, plan: timing.Plan) -> Limits:
    """Times copies between buffers that no cache holds, and square matrix products in ``dtype``."""
    size = _choose_copy_bytes(device)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    width = _choose_width(device)
    a, b = (torch.randn(width, width, dtype=torch.float32, device=device).to(DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(a)
    sampler = timing.EventSampler if device == "cuda" else timing.HostSampler
    with torch.no_grad():
        taken = timing.measure(
            {
                "copy": sampler([lambda: target.copy_(source)]),
                "matmul": sampler([lambda: torch.mm(a, b, out=product)]),
            },
            plan,
        )
    return Limits(2 * size / taken["copy"].p50, 2 * width**3 / taken["matmul"].p50)


def _choose_width(device: str) -> int:
    return 8192 if device == "cuda" else 1536


def _choose_copy_bytes(device: str) -> int:
    """Bytes of each buffer: several times the last cache, and a small part of the memory."""
    wanted = max(256 << 20, 4 * environment.find_last_cache_bytes(device))
    if device == "cuda":
        return min(max(wanted, 1 << 30), torch.cuda.mem_get_info()[0] // 8) // 4 * 4
    return wanted // 4 * 4
