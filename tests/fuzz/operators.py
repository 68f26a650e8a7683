"""Calls of the registered operators, recorded from calls of the public surface and then spoilt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from . import surface
from .draw import Draw
from .failure import FuzzError
from .mutations import mutate

# Which public call runs an operator; a new operator needs a line.
SOURCES = {
    "affine_flow_bwd": "affine_flow",
    "affine_flow_fwd": "affine_flow",
    "autoregressive_flow_bwd": "InverseAutoregressiveFlow",
    "autoregressive_flow_fwd": "InverseAutoregressiveFlow",
    "autoregressive_inverse_bwd": "InverseAutoregressiveFlow",
    "autoregressive_inverse_fwd": "InverseAutoregressiveFlow",
    "class_linear_bwd": "class_linear",
    "class_linear_fwd": "class_linear",
    "attention_read_bwd": "attention_read",
    "attention_read_fwd": "attention_read",
    "attention_write_bwd": "attention_write",
    "attention_write_fwd": "attention_write",
    "bernoulli_bwd": "bernoulli_sample",
    "bernoulli_fwd": "bernoulli_sample",
    "diag_gaussian_bwd": "diag_gaussian_rsample",
    "diag_gaussian_bwd_samples": "diag_gaussian_rsample",
    "diag_gaussian_fwd": "diag_gaussian_rsample",
    "diag_gaussian_kl_bwd": "diag_gaussian_kl",
    "diag_gaussian_kl_fwd": "diag_gaussian_kl",
    "diag_gaussian_kl_prior_bwd": "diag_gaussian_kl",
    "diag_gaussian_kl_prior_fwd": "diag_gaussian_kl",
    "diag_gaussian_log_prob_bwd": "diag_gaussian_log_prob",
    "diag_gaussian_log_prob_fwd": "diag_gaussian_log_prob",
    "diag_gaussian_with_kl_bwd": "diag_gaussian_rsample_with_kl",
    "diag_gaussian_with_kl_fwd": "diag_gaussian_rsample_with_kl",
    "gated_activation_bwd": "gated_activation",
    "gated_activation_fwd": "gated_activation",
    "gaussian_merge_bwd": "gaussian_merge_rsample",
    "gaussian_merge_fwd": "gaussian_merge_rsample",
    "latent_gradient_bwd": "latent_gradient",
    "latent_gradient_fwd": "latent_gradient",
    "latent_hessian_product_fwd": "latent_hessian_product",
    "linear_bernoulli_bwd": "linear_bernoulli_log_prob",
    "linear_bernoulli_fwd": "linear_bernoulli_log_prob",
    "linear_tril_gaussian_bwd": "linear_tril_gaussian_rsample_with_kl",
    "linear_tril_gaussian_fwd": "linear_tril_gaussian_rsample_with_kl",
    "logistic_mixture_bwd": "logistic_mixture_log_prob",
    "logistic_mixture_fwd": "logistic_mixture_log_prob",
    "mlp_bernoulli_bwd": "mlp_bernoulli_log_prob",
    "mlp_bernoulli_fwd": "mlp_bernoulli_log_prob",
    "masked_conv2d_bwd": "masked_conv2d",
    "masked_conv2d_fwd": "masked_conv2d",
    "masked_linear_bwd": "masked_linear",
    "masked_linear_fwd": "masked_linear",
    "masked_norm_bwd": "MaskedLinear",
    "masked_norm_fwd": "MaskedLinear",
    "tril_gaussian_bwd": "tril_gaussian_rsample",
    "tril_gaussian_fwd": "tril_gaussian_rsample",
    "tril_gaussian_kl_bwd": "tril_gaussian_kl",
    "tril_gaussian_kl_fwd": "tril_gaussian_kl",
    "tril_gaussian_log_prob_bwd": "tril_gaussian_log_prob",
    "tril_gaussian_log_prob_fwd": "tril_gaussian_log_prob",
    "tril_gaussian_with_kl_bwd": "tril_gaussian_rsample_with_kl",
    "tril_gaussian_with_kl_fwd": "tril_gaussian_rsample_with_kl",
}
ATTEMPTS = 60
# What a wrong call may raise.
ERRORS = (ValueError, TypeError, RuntimeError, MemoryError)


def list_operators() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("fastvae::").partition(".")[0] for name in names if name.startswith("fastvae::")}


class _Recording(TorchDispatchMode):
    """Keeps the arguments of the operator that it waits for."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.found = f"fastvae::{name}", []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name == self.name and not kwargs:
            self.found.append(args)
        return function(*args, **kwargs or {})


def record_call(name: str, case: str) -> tuple[Draw, list[Any]]:
    """The arguments of a sound call of the operator."""
    for attempt in range(ATTEMPTS):
        draw = Draw(f"{case}/{attempt}", tame=True)
        torch.manual_seed(draw.rng.randrange(2**31))
        problem = surface.TARGETS[SOURCES[name]][0](draw)
        recording = _Recording(name)
        with recording:
            found = surface.outcome(problem, "auto", surface.Upstream(draw))
        if recording.found:
            return draw, list(draw.choice(recording.found))
        if isinstance(found, Exception) and not isinstance(found, surface.CLEAN):
            raise found
    raise FuzzError(f"{ATTEMPTS} calls of {SOURCES[name]} do not reach {name}")


def run(name: str, case: str) -> None:
    """Spoils a sound call of the operator ``name``.

    Raises:
        FuzzError: it raises none of the documented errors, or returns what is not of the shapes and dtypes that its
            shape inference tells.
    """
    draw, args = record_call(name, case)
    operator = getattr(torch.ops.fastvae, name).default
    types = [str(argument.type) for argument in operator._schema.arguments]
    described = f"{operator._schema}"
    # One in twenty calls stays as it was: it must not be refused.
    sound = draw.chance(0.05)
    if not sound:
        for _ in range(draw.choice((1, 1, 2))):
            args = mutate(draw, args, types)
    described += "\n" + "\n".join(f"{t}: {_describe(a)}" for t, a in zip(types, args, strict=True))
    torch.set_num_threads(draw.choice((1, 2)))
    try:
        with torch.no_grad():
            found = operator(*args)
    except ERRORS as error:
        if sound:
            raise FuzzError(f"a sound call raises {error!r}\n{described}") from None
        return
    except Exception as error:
        raise FuzzError(f"it raises {error!r}, which is none of the documented errors\n{described}") from None
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            expected = operator(*[_fake(mode, a) for a in args])
    except Exception:
        # Shape inference sees no values, and so knows less of what is wrong; where it knows more, nothing is claimed.
        return
    if _forms(found) != _forms(expected):
        raise FuzzError(f"it returns {_forms(found)}, its shape inference says {_forms(expected)}\n{described}")


def _fake(mode: FakeTensorMode, argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return mode.from_tensor(argument)
    return [_fake(mode, a) for a in argument] if isinstance(argument, (list, tuple)) else argument


def _forms(found: Any) -> list[Any]:
    if isinstance(found, (list, tuple)):
        return [_forms(f) for f in found]
    return [None if found is None else (tuple(found.shape), found.dtype)]


def _describe(argument: Any) -> str:
    if isinstance(argument, Tensor):
        if argument.is_nested:
            return f"{argument.dtype} nested"
        small = f" {argument.tolist()}" if argument.numel() <= 8 and argument.is_cpu and not argument.is_sparse else ""
        strides = "" if argument.layout is not torch.strided else f" strides {argument.stride()}"
        return f"{argument.dtype} {tuple(argument.shape)}{strides} {argument.device}{small}"
    if isinstance(argument, (list, tuple)) and any(isinstance(a, Tensor) for a in argument):
        return "[" + ", ".join(_describe(a) for a in argument) + "]"
    return repr(argument)[:200]
