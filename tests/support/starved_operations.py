"""Every operation that allocates, run in a process of its own while memory is short: ``limits`` or ``failures``.

``limits MIB...``: each operation runs in a child whose address space may grow by so much. ``failures``: each operation
runs once for every allocation of the extension, which fails there; ``tests/csrc/failing_memory.cpp``, loaded before all
other libraries, sees to it. Both print, as JSON, how many runs of each operation ended in which way.
"""

from __future__ import annotations

import collections
import ctypes
import itertools
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import fastvae.functional as F
from fastvae import backend, nn
from tests.support import mixtures

Operation = Callable[[], list[Tensor]]


def with_gradients(call: Callable[..., object], *inputs: Tensor) -> Operation:
    """Calls on ``inputs``, and the gradients with respect to them."""
    leaves = [t.requires_grad_() for t in inputs]

    def outputs_of() -> list[Tensor]:
        result = call(*leaves)
        return [result] if isinstance(result, Tensor) else list(result)

    # Made beforehand: PyTorch's own threads cannot do without memory.
    upstream = [torch.ones_like(o) for o in outputs_of()]

    def run() -> list[Tensor]:
        outputs = outputs_of()
        return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, upstream)]

    return run


def gaussian(rsample: Callable[..., object]) -> Callable[..., object]:
    return lambda *parameters: rsample(*parameters, (3,), generator=torch.Generator().manual_seed(1))


def operations() -> dict[str, Operation]:
    """Every operation whose kernels allocate, large enough for two threads and for more than the caches of malloc."""
    torch.manual_seed(0)
    rows, d = 512, 96
    mu, log_sigma, z = torch.randn(rows, d), 0.1 * torch.randn(rows, d), torch.randn(3, rows, d)
    tril = 0.1 * torch.randn(rows, d, d)
    degrees = {"in_degrees": torch.arange(256), "out_degrees": torch.arange(256)}
    weight = torch.randn(256, 256) / 16
    flow = nn.InverseAutoregressiveFlow(16, (128, 128), weight_norm=True)
    pixels, levels = nn.PixelCNN(1, 16, 2), mixtures.images(8, 3, 32, 32)
    bits = torch.rand(rows, 300).round()
    image, kernel = torch.randn(8, 16, 28, 28), torch.randn(32, 16, 3, 3) / 12

    @torch.no_grad()
    def sample() -> list[Tensor]:
        return [pixels.sample(8, (8, 8), generator=torch.Generator().manual_seed(1))]

    return {
        "diag_gaussian": with_gradients(gaussian(F.diag_gaussian_rsample), mu, log_sigma),
        "tril_gaussian": with_gradients(gaussian(F.tril_gaussian_rsample), mu, log_sigma, tril),
        "diag_gaussian_density": with_gradients(F.diag_gaussian_log_prob, z, mu, log_sigma),
        "tril_gaussian_density": with_gradients(F.tril_gaussian_log_prob, z, mu, log_sigma, tril),
        "masked_linear": with_gradients(
            lambda x, w, b, s: F.masked_linear(x, w, b, weight_scale=s, activation="elu", **degrees),
            *(torch.randn(rows, 256), weight, torch.randn(256), torch.rand(256)),
        ),
        "autoregressive_flow": with_gradients(lambda x, *_: flow(x), torch.randn(rows, 16), *flow.parameters()),
        "autoregressive_inverse": with_gradients(flow.inverse, torch.randn(rows, 16)),
        "masked_conv2d": with_gradients(
            lambda x, w, b: F.masked_conv2d(x, w, b, mask_type="B", padding=1, activation="elu"),
            *(image, kernel, torch.randn(32)),
        ),
        "class_linear": with_gradients(
            lambda x, w, v: F.class_linear(x, w, v, activation="silu"),
            *(torch.randn(shape) for shape in ((300, 8), (200, 8), (200, 9))),
        ),
        "linear_tril_gaussian": with_gradients(
            lambda h, w, b: F.linear_tril_gaussian_rsample_with_kl(h, w, b, generator=torch.Generator().manual_seed(1)),
            *(torch.randn(rows, 32), torch.randn(560, 32) / 16, torch.randn(560) / 4),
        ),
        "mlp_bernoulli": with_gradients(
            lambda z, w, v, b: F.mlp_bernoulli_log_prob(z, [w, v], [b, None], bits, activation="silu"),
            *(torch.randn(shape) for shape in ((rows, 32), (200, 32), (300, 200), (200,))),
        ),
        "logistic_mixture": with_gradients(
            lambda p: F.logistic_mixture_log_prob(levels, p), mixtures.parameters(8, 3, 5, 32, 32)
        ),
        "causal_sampler": sample,
    }


def outcome(run: Operation, expected: Sequence[Tensor]) -> str:
    """How a run ends; memory is there again when its result is compared."""
    try:
        got = run()
    except MemoryError:
        return "MemoryError"
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            return "PyTorch's error"
        traceback.print_exc()
        return "another error"
    except Exception:
        traceback.print_exc()
        return "another error"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    right = all(torch.allclose(g, e, rtol=1e-3, atol=1e-4) for g, e in zip(got, expected, strict=True))
    return "right" if right else "wrong"


def again(run: Operation, expected: Sequence[Tensor], before: str) -> str:
    """``before``, unless a run with all the memory that it needs is not right after it."""
    return before if outcome(run, expected) == "right" else f"wrong after {before}"


def starve(run: Operation, expected: Sequence[Tensor], mib: float) -> str:
    """The outcome of a run on two threads in a child whose address space grows by ``mib`` at most."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + int(mib * 2**20), resource.RLIM_INFINITY))
        os.write(writer, again(run, expected, outcome(run, expected)).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as end:
        said = end.read()
    code = os.waitstatus_to_exitcode(status)
    return said if code == 0 else f"exit status {code}"


class FailingAllocation:
    """A run in which the n-th allocation of the extension fails, and whether there are so many."""

    def __init__(self, run: Operation, n: int) -> None:
        self.run, self.n, self.happened = run, n, False
        self.library = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def __call__(self) -> list[Tensor]:
        backend.release_memory()
        self.library.fail_allocation(ctypes.c_long(self.n))
        try:
            return self.run()
        finally:
            self.happened = self.library.allocations_left() <= 0
            self.library.fail_allocation(ctypes.c_long(0))


def failures(run: Operation, expected: Sequence[Tensor]) -> Iterator[str]:
    """The outcomes of runs on two threads in which the first, the second, ... allocation fails."""
    torch.set_num_threads(2)
    for n in itertools.count(1):
        starved = FailingAllocation(run, n)
        ended = again(run, expected, outcome(starved, expected))
        if not starved.happened:
            return
        yield ended


def main(mode: str, *mib: str) -> None:
    # Children are forked while no thread has been started; the results to compare with are those of one thread.
    torch.set_num_threads(1)
    todo = [(name, run, run()) for name, run in operations().items()]
    backend.release_memory()
    ended = {}
    for name, run, expected in todo:
        outcomes = failures(run, expected) if mode == "failures" else (starve(run, expected, float(m)) for m in mib)
        ended[name] = collections.Counter(outcomes)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(*sys.argv[1:])
