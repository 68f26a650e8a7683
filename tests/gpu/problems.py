"""Small problems of every op that has gradients: what the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable

import torch

import fastvae.functional as F
from tests.support import mixtures
from tests.support.convolutions import Form
from tests.support.decoders import Decoder
from tests.support.gaussians import problems
from tests.support.masked_layers import DEGREES, layer_inputs, layer_problem, norm_problem
from tests.support.networks import network
from tests.support.oracle import Problem
from tests.support.units import unit_problem
from tests.support.windows import window_problem, written_problem


def _gaussian(stem: str, entry: str, dense: bool = False, samples: tuple[int, ...] = ()) -> Callable[[], Problem]:
    return lambda: problems(stem, (5,), 34, samples, dense)[entry]


def _network(entry: str) -> Problem:
    made = network(8, (64, 32), context=True)
    return made.problem(entry, made.tensors((7,)))


def _layer() -> Problem:
    return layer_problem(layer_inputs((37,), 48, 40), DEGREES["unsorted"](48, 40), activation="elu")


def _affine(inverse: bool) -> Problem:
    inputs = [torch.randn(6, 34, requires_grad=True) for _ in range(3)]
    return Problem(lambda impl, p: F.affine_flow(*p, inverse=inverse, impl=impl), inputs)


def _gate() -> Problem:
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 10, 7, 9), (2, 10, 1, 1))]
    return Problem(lambda impl, p: (F.gated_activation(*p, impl=impl),), inputs)


def _classes(each: bool) -> Problem:
    shapes = ((6, 4, 9) if each else (6, 9), (37, 9), (37, 4), (37,))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def call(impl: str, p: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        labels = torch.arange(4, device=p[0].device) if each else None
        return (F.class_linear(*p, labels=labels, activation="softplus", impl=impl),)

    return Problem(call, inputs)


def _merged(kl: str) -> Problem:
    inputs = [(scale * torch.randn(5, 34)).requires_grad_() for scale in (1.0, 0.5, 1.0, 0.5)]
    noise = torch.randn(5, 34)
    return Problem(lambda impl, p: F.gaussian_merge_rsample(*p, kl=kl, eps=noise.to(p[0]), impl=impl), inputs)


def _dense_decoder(entry: str) -> Problem:
    """A layer's log-likelihood, or that of two layers with its gradient to the latents."""
    decoder, x = Decoder((6, 34) if entry == "layer" else (6, 20, 34)), torch.rand(5, 34) < 0.4
    inputs = [torch.randn(5, 6), *decoder.tensors]

    def call(impl: str, p: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        data = x.to(p[0].device)
        if entry == "layer":
            return (F.linear_bernoulli_log_prob(*p, data, impl=impl),)
        return F.latent_gradient(p[0], *decoder.split(p[1:]), data, **decoder.named, impl=impl)

    return Problem(call, [t.requires_grad_() for t in inputs])


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "attention_window": lambda: window_problem((6,), 3, (28, 28), images=2),
    "attention_window, written": lambda: written_problem((6,), 5, (28, 30)),
    "bernoulli": lambda: unit_problem((5,), 34),
    "bernoulli, pairs": lambda: unit_problem((5,), 34, (3,), True),
    "diag_gaussian": _gaussian("diag_gaussian", "rsample"),
    "diag_gaussian, samples": _gaussian("diag_gaussian", "rsample", samples=(3,)),
    "diag_gaussian log_prob": _gaussian("diag_gaussian", "log_prob"),
    "diag_gaussian kl": _gaussian("diag_gaussian", "kl"),
    "diag_gaussian kl to a prior": _gaussian("diag_gaussian", "kl_prior"),
    "tril_gaussian, packed": _gaussian("tril_gaussian", "rsample"),
    "tril_gaussian, dense": _gaussian("tril_gaussian", "rsample", True),
    "tril_gaussian, samples": _gaussian("tril_gaussian", "rsample", samples=(3,)),
    "tril_gaussian log_prob": _gaussian("tril_gaussian", "log_prob"),
    "tril_gaussian kl": _gaussian("tril_gaussian", "kl", True),
    "masked_linear": _layer,
    "masked_linear norm": lambda: norm_problem(torch.randn(40, 48, requires_grad=True), DEGREES["staircase"](48, 40)),
    "gaussian_merge": lambda: _merged("sum"),
    "gaussian_merge, dimensions": lambda: _merged("dimensions"),
    "linear_bernoulli": lambda: _dense_decoder("layer"),
    "latent_gradient": lambda: _dense_decoder("gradient"),
    "class_linear": lambda: _classes(False),
    "class_linear, cells": lambda: _classes(True),
    "affine_flow": lambda: _affine(False),
    "affine_flow inverse": lambda: _affine(True),
    "autoregressive_flow made": lambda: _network("made"),
    "autoregressive_flow": lambda: _network("flow"),
    "autoregressive_inverse": lambda: _network("inverse"),
    "masked_conv2d": lambda: Form(16, 24, activation="silu").problem(),
    "masked_conv2d, channels last": lambda: Form(18, 36, num_colors=3, channels_last=True).problem(),
    "masked_conv2d, one channel": lambda: Form(1, 8, (7, 7), "A").problem(),
    "gated_activation": _gate,
    "logistic_mixture": lambda: mixtures.problem(2, 3, 4, 5, 6),
}
