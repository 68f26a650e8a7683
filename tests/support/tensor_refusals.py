"""Calls everything public with tensors that no kernel can read; a program of its own, since a fault may end it.

    python -m tests.support.tensor_refusals KIND

prints the name of each case before it runs, and what came of it after.
"""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from fastvae import backend
from tests.support.subjects import SUBJECTS, tensors_of


def free(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def nest(t: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(t)) if t.dim() > 1 else torch.nested.nested_tensor([t])


def compress(t: Tensor) -> Tensor:
    return (t if t.dim() == 2 else t.reshape(len(t), -1)).to_sparse_csr()


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda t: t.to_sparse(),
    "compressed": compress,
    "nested": nest,
    "jagged": lambda t: torch.nested.nested_tensor(list(t) if t.dim() > 1 else [t], layout=torch.jagged),
    "quantised": lambda t: torch.quantize_per_tensor(t.nan_to_num(0.0), 0.1, 0, torch.qint8),
    "integer": lambda t: t.nan_to_num(0.0).to(torch.int64),
    "complex": lambda t: torch.complex(t, torch.ones_like(t)),
    "meta": lambda t: t.to("meta"),
    "freed": free,
}


# What a tensor of the kind holds, as an ordinary one.
NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "quantised": lambda t: KINDS["quantised"](t).dequantize(),
    "integer": lambda t: KINDS["integer"](t).to(t.dtype),
}


def outcome(call: Callable[[], object], right: Callable[[], object]) -> str:
    """The error that ``call`` raises, or whether its outputs are ``right``."""
    try:
        outputs = tensors_of(call())
    except Exception as error:  # whether it is a refusal in words is for the test to judge
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if all(o.is_meta for o in outputs):
        return "no numbers"
    try:
        outputs = tuple(o.to_dense() if o.layout is not torch.strided else o for o in outputs)
        outputs = tuple(o.dequantize() if o.is_quantized else o for o in outputs)
        torch.testing.assert_close(outputs, tensors_of(right()), check_dtype=False, check_device=False)
    except Exception as error:
        return f"WRONG: {' '.join(str(error).split())}"
    return "right"


# Where PyTorch's own operators come first: they read from the address 0 of a freed storage, whoever calls them.
FREED_BEFORE_ANY_OP = {
    *(f"discretized_logistic_log_prob | {place}" for place in range(3)),
    *(f"{name} | {place}" for name in ("DiagonalGaussian moments", "TriangularGaussian moments") for place in range(2)),
    *(f"TriangularGaussian kl | {place}" for place in range(3)),
    *(f"TriangularGaussian kl to torch's | {place}" for place in range(2)),
    "diag_gaussian_rsample of two samples | 2",
    "diag_gaussian_rsample_with_kl of dimensions | 2",
    "tril_gaussian_rsample dense | 3",
    "tril_gaussian_rsample_with_kl dense | 3",
    "DiagonalGaussian kl | 0",
    "DiagonalGaussian kl | 1",
    "Permutation | 0",
    "AffineTransform | 0",
    "MaskedLinear normalised | weight_gain",
    "CodeEmbedding | 0",
}


def main(kind: str) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    make, numbers = KINDS[kind], NUMBERS.get(kind, lambda t: t)
    for impl in ("auto", "cpp"):
        for subject in SUBJECTS:
            torch.manual_seed(0)
            module, inputs = subject.draw(2)
            inputs = [t.detach() for t in inputs]
            weights = {name: p.detach() for name, p in module.named_parameters()}
            for place in (*range(len(inputs)), *weights):
                case = f"{subject} | {place}"
                if kind == "freed" and case in FREED_BEFORE_ANY_OP:
                    continue
                print(f"{impl} | {case}", flush=True)

                def call(form: Callable[[Tensor], Tensor], place: int | str = place) -> object:
                    given = [form(t) if i == place else t for i, t in enumerate(inputs)]  # noqa: B023
                    others = {name: form(t) if name == place else t for name, t in weights.items()}  # noqa: B023
                    return functional_call(module, others, tuple(given))  # noqa: B023

                with backend.use(impl):
                    print(f"  {outcome(partial(call, make), partial(call, numbers))}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
