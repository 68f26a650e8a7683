"""Every op whose results are sums over rows, samples, pixels or features, as problems whose sums are long.

Inputs and upstream gradients have non-zero means: the sums grow with their length, and so does the error of numbers
that are added one after another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastvae.functional as F
from tests.support.convolutions import Form
from tests.support.decoders import Decoder
from tests.support.gaussians import packed_size
from tests.support.masked_layers import layer_problem, spread
from tests.support.mixtures import problem as mixture
from tests.support.networks import network
from tests.support.oracle import Problem, run_with_gradients
from tests.support.units import unit_problem


def positive(*shape: int) -> Tensor:
    return torch.rand(*shape).requires_grad_()


def lift(problem: Problem, count: int = 1) -> Problem:
    """The problem with uniform numbers in the first inputs."""
    for t in problem.inputs[:count]:
        t.data.uniform_()
    return problem


def sampled(function: Callable[..., tuple[Tensor, Tensor]], samples: int, *parameters: Tensor) -> Problem:
    """Many samples of each row."""
    noise = torch.rand(samples, *parameters[0].shape)
    return Problem(lambda impl, p: function(*p, (samples,), eps=noise.to(p[0]), impl=impl), list(parameters))


def density(function: Callable[..., Tensor], samples: int, *parameters: Tensor) -> Problem:
    z = 2 + torch.rand(samples, *parameters[0].shape)
    return Problem(lambda impl, p: (function(*p, impl=impl),), [z.requires_grad_(), *parameters])


def gaussian(rows: int, features: int) -> list[Tensor]:
    return [positive(rows, features), positive(rows, features)]


def factor(rows: int, features: int, dense: bool) -> Tensor:
    tril = torch.rand(rows, features, features) if dense else torch.rand(rows, packed_size(features))
    return (0.1 * tril).requires_grad_()


def layer(rows: int, inputs: int, outputs: int, ordered: bool = True, **options: object) -> Problem:
    degrees = spread(inputs, 6), spread(outputs, 6)
    if not ordered:
        degrees = degrees[0].flip(0), degrees[1]
    scaled = bool(options.get("weight_scale"))
    tensors = [torch.rand(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.rand(outputs)]
    tensors += [0.5 + torch.rand(outputs)] if scaled else []
    return layer_problem([t.requires_grad_() for t in tensors], degrees, **options)


def flow(entry: str, rows: int, features: int = 4, **options: object) -> Problem:
    form = network(features, (20,), **options)
    return lift(form.problem(entry, form.tensors((rows,))))


def likelihood(samples: int, points: int, pixels: int, features: int) -> Problem:
    x = (torch.rand(points, pixels) < 0.9).float()
    inputs = [positive(samples, points, features), (0.1 * torch.randn(pixels, features)).requires_grad_(),
              (-1 - torch.rand(pixels)).requires_grad_()]  # fmt: skip

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        return (F.linear_bernoulli_log_prob(*p, x, impl=impl),)

    return Problem(call, inputs)


def gaussian_head(rows: int, features: int, latents: int) -> Problem:
    weight = torch.rand(latents * (latents + 3) // 2, features) / features
    inputs = [positive(rows, features), weight.requires_grad_()]
    eps = torch.rand(rows, latents)

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        return F.linear_tril_gaussian_rsample_with_kl(*p, None, tril_scale=0.1, eps=eps.to(p[0]), impl=impl)

    return Problem(call, inputs)


def decoder_likelihood(rows: int, widths: tuple[int, ...], *, differentiated: bool = False) -> Problem:
    """Values alone, unless ``differentiated``."""
    decoder, x = Decoder(widths, "tanh"), (torch.rand(rows, widths[-1]) < 0.9).float()

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        layers = decoder.split(p[1:])
        return (F.mlp_bernoulli_log_prob(p[0], *layers, x, activation="tanh", impl=impl),)

    inputs = [positive(rows, widths[0]).detach(), *decoder.tensors]
    return Problem(call, [t.detach().requires_grad_(differentiated) for t in inputs])


def latent(rows: int, widths: tuple[int, ...]) -> Problem:
    """Values and Hessian product of a decoder, which the backward pass of the gradient sums up alike."""
    decoder, x = Decoder(widths, "tanh"), (torch.rand(rows, widths[-1]) < 0.9).float()

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        layers = decoder.split([t.to(p[0]) for t in decoder.tensors])
        return F.latent_gradient(p[0], *layers, x, activation="tanh", impl=impl)

    return Problem(call, [positive(rows, widths[0])])


def convolution(inputs: int, outputs: int, size: int, images: int, **options: object) -> Problem:
    return lift(Form(inputs, outputs, image=(size, size), batch=images, **options).problem())


def gate(images: int, size: int) -> Problem:
    tensors = [positive(images, 4, size, size), positive(1, 4)]
    return Problem(lambda impl, p: (F.gated_activation(*p, impl=impl),), tensors)


def classes(rows: int, count: int, width: int, *, each: bool) -> Problem:
    """A layer of a class, of inputs that differ from class to class or do not. Its product changes no bit."""
    x, identity = positive(rows, count, width) if each else positive(rows, width), torch.eye(width)

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        labels = torch.arange(count, device=p[0].device) if each else None
        inputs, *others = p
        return (F.class_linear(inputs, identity.to(inputs), *others, labels=labels, activation="softplus", impl=impl),)

    return Problem(call, [x, positive(width, count), positive(width)])


def pointwise(function: Callable[..., object], *shapes: tuple[int, ...], **options: object) -> Problem:
    """Sums over features alone."""

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = function(*p, impl=impl, **options)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return Problem(call, [positive(*shape) for shape in shapes])


ROWS: dict[str, Callable[[], Problem]] = {
    "masked_linear": lambda: layer(20000, 24, 30),
    "masked_linear, factors": lambda: layer(20000, 24, 30, False, weight_scale=True, activation="silu"),
    "autoregressive_flow": lambda: flow("flow", 20000),
    "autoregressive_flow, context": lambda: flow("flow", 20000, context=True, weight_scale=True),
    "autoregressive_flow, parameters": lambda: flow("made", 20000),
    "autoregressive_inverse": lambda: flow("inverse", 20000),
    "class_linear": lambda: classes(20000, 3, 24, each=False),
    "class_linear, cells": lambda: classes(20000, 3, 24, each=True),
    "class_linear, classes": lambda: classes(3, 20000, 24, each=False),
    "linear_bernoulli": lambda: likelihood(300, 100, 40, 20),
    "linear_bernoulli, few points": lambda: likelihood(8000, 4, 40, 20),
    "linear_tril_gaussian": lambda: gaussian_head(20000, 24, 4),
    "masked_conv2d, groups": lambda: convolution(8, 12, 28, 60, groups=2),
    "masked_conv2d, one image": lambda: convolution(8, 12, 40, 1),
    "masked_conv2d, small images": lambda: convolution(3, 5, 7, 1000, activation="gelu"),
    "gated_activation": lambda: gate(500, 14),
}
SAMPLES: dict[str, Callable[[], Problem]] = {
    "diag_gaussian": lambda: sampled(F.diag_gaussian_rsample, 4096, *gaussian(3, 18)),
    "diag_gaussian, density": lambda: density(F.diag_gaussian_log_prob, 4096, *gaussian(3, 18)),
    "tril_gaussian": lambda: sampled(F.tril_gaussian_rsample, 4096, *gaussian(3, 18), factor(3, 18, False)),
    "tril_gaussian, dense": lambda: sampled(F.tril_gaussian_rsample, 4096, *gaussian(3, 18), factor(3, 18, True)),
    "tril_gaussian, density": lambda: density(F.tril_gaussian_log_prob, 4096, *gaussian(3, 18), factor(3, 18, False)),
}
FEATURES: dict[str, Callable[[], Problem]] = {
    "bernoulli": lambda: unit_problem((2,), 200000, (2,)),
    "bernoulli, many samples": lambda: lift(unit_problem((3,), 18, (4096,))),
    "diag_gaussian, kl": lambda: pointwise(F.diag_gaussian_kl, *[(3, 200000)] * 4),
    "diag_gaussian, wide density": lambda: density(F.diag_gaussian_log_prob, 2, *gaussian(2, 200000)),
    "tril_gaussian, kl": lambda: pointwise(F.tril_gaussian_kl, (3, 1000), (3, 1000), (3, packed_size(1000))),
    "affine_flow": lambda: pointwise(F.affine_flow, *[(8, 200000)] * 3, kind="gated"),
    "autoregressive_flow, wide": lambda: flow("flow", 200, 400),
    "masked_linear, wide inputs": lambda: layer(64, 5000, 30),
    "masked_linear, wide outputs": lambda: layer(64, 30, 5000),
    "linear_bernoulli, wide": lambda: likelihood(2, 10, 30, 5000),
    "linear_bernoulli, many pixels": lambda: likelihood(2, 10, 5000, 30),
    "linear_tril_gaussian, wide": lambda: gaussian_head(3, 4, 600),
    "linear_tril_gaussian, wide inputs": lambda: gaussian_head(64, 5000, 4),
    "mlp_bernoulli, wide": lambda: decoder_likelihood(70, (20, 5000, 30)),
    "mlp_bernoulli, many pixels": lambda: decoder_likelihood(70, (20, 30, 9000)),
    "mlp_bernoulli, gradients of many rows": lambda: decoder_likelihood(8192, (3, 6, 5), differentiated=True),
    "mlp_bernoulli, gradients of wide layers": lambda: decoder_likelihood(128, (4, 3000, 3000), differentiated=True),
    "latent_gradient, wide": lambda: latent(3, (20, 5000, 30)),
    "latent_gradient, wide lanes": lambda: latent(30, (20, 5000, 30)),
    "latent_gradient, many pixels": lambda: latent(3, (20, 30, 9000)),
    "latent_gradient, many pixels in lanes": lambda: latent(30, (20, 30, 9000)),
    "masked_conv2d, wide": lambda: convolution(5000, 4, 5, 2),
    "logistic_mixture": lambda: mixture(2, 1, 2, 200, 200),
}
PROBLEMS = ROWS | SAMPLES | FEATURES


def errors(problem: Problem, impl: str, dtype: torch.dtype = torch.float32) -> list[tuple[float, float, float]]:
    """Of every output and gradient: the errors of ``impl`` and of eager PyTorch, and one rounding."""
    rounded = problem.to(dtype, "cpu")
    upstream = [torch.rand(o.shape).to(o) for o in rounded.outputs("reference")]
    oracle = run_with_gradients(rounded.to(torch.float64, "cpu"), "reference", upstream)
    eager, ours = (run_with_gradients(rounded, i, upstream) for i in ("reference", impl))
    found = []
    for a, e, o in zip(ours, eager, oracle, strict=True):
        rounding = torch.finfo(a.dtype).eps * o.abs().max().item()
        found.append(((a.double() - o).abs().max().item(), (e.double() - o).abs().max().item(), rounding))
    return found
