"""Random calls of the functions that take the layers of an encoder or a decoder."""

from __future__ import annotations

import itertools

import torch

import fastvae.functional as F
from fastvae.reference.latent_gradient import LIKELIHOODS
from fastvae.reference.masked_linear import ACTIVATIONS as NAMED

from .draw import Draw, Problem

ACTIVATIONS = (None, *NAMED)


def linear_bernoulli_log_prob(draw: Draw) -> Problem:
    samples, points, classes = draw.size(3), draw.size(70), draw.size(3)
    pixels, features = draw.some(20), draw.size(9)
    h, weight = draw.tensor(samples, points, classes, features), draw.tensor(pixels, features)
    bias = [draw.tensor(pixels)] if draw.chance(0.7) else []
    x = (torch.rand(points, 1, pixels, generator=draw.generator) < 0.5).double()
    return Problem(
        lambda _, h, w, *b: F.linear_bernoulli_log_prob(h, w, b[0] if b else None, x.to(h)), [h, weight, *bias]
    )


def linear_tril_gaussian_rsample_with_kl(draw: Draw) -> Problem:
    batch, features, latents = (draw.size(2), draw.size(70)), draw.size(9), draw.some(9)
    if draw.tame:  # the kernel takes no fewer rows
        batch = (2, draw.choice((9, 16, 40)))
    outputs = latents * (latents + 3) // 2
    tensors = [draw.tensor(*batch, features), draw.tensor(outputs, features, scale=0.2)]
    tensors += [draw.tensor(outputs)] if draw.chance(0.7) else []
    options = {
        "tril_scale": draw.choice((1.0, 0.0, 0.1, -3.0)),
        "log_sigma_bounds": draw.choice((None, (-7.0, 7.0), (-0.1, 0.1))),
        "kl": draw.choice(("sum", "dimensions")),
    }
    seed, given = draw.rng.randrange(2**40), draw.chance(0.6)
    eps = draw.values((*batch, latents), 1.0) if given else None

    def call(_, h, weight, *bias):
        noise = {"generator": torch.Generator().manual_seed(seed)} if eps is None else {"eps": eps.to(h)}
        return F.linear_tril_gaussian_rsample_with_kl(h, weight, bias[0] if bias else None, **options, **noise)

    # A seed gives the reference other noise.
    return Problem(call, tensors, compared=given)


def _decoder(draw: Draw, *, many_rows: bool = False):
    """Sizes of the batch, weights, the biases that there are, and a function of the points and these tensors."""
    samples, points = (2, draw.choice((62, 64, 65, 120))) if many_rows else (draw.size(3), draw.size(70))
    widths = [draw.some(9) for _ in range(draw.rng.randint(2, 4))]
    pairs = list(itertools.pairwise(widths))
    has_bias = [draw.chance(0.6) for _ in pairs]
    tensors = [draw.tensor(out, ins) for ins, out in pairs]
    tensors += [draw.tensor(out) for (_, out), there in zip(pairs, has_bias, strict=True) if there]
    x = (torch.rand(points, widths[-1], generator=draw.generator) < 0.5).double()
    options = {"activation": draw.choice(ACTIVATIONS), "likelihood": draw.choice(LIKELIHOODS)}

    def call(function, points, layers):
        biases = iter(layers[len(pairs) :])
        of_layers = [next(biases) if there else None for there in has_bias]
        return function(*points, layers[: len(pairs)], of_layers, x.to(points[0]), **options)

    return (samples, points, widths[0]), tensors, call


def _decoder_problem(draw: Draw, function, points, tensors, call, constants=()) -> Problem:
    """Sums that overflow saturate activations or not, as their order has it: those have no values to compare."""
    count = len(points)
    fits = _reach(points, [t for t in tensors if t.dim() == 2]) <= torch.finfo(draw.dtype).max
    return Problem(
        lambda _, *t: call(function, t[:count], t[count:]), [*points, *tensors], constants=constants, compared=fits,
        ill_conditioned=draw.hostile,
    )  # fmt: skip


def _reach(points, weights) -> float:
    """How large numbers can become on their way through the layers and back, if nothing cancels; NaN: not known."""
    try:
        sizes = torch.cat([torch.where(p.isfinite(), p, 0.0).double().abs().flatten(0, -2) for p in points])
        forward, back = sizes.sum() + 1, sizes.new_ones(())
        for weight in weights:
            forward = (forward + 1e4) * weight.double().abs().sum()
            back = back * weight.double().abs().sum().clamp(min=1.0)
    except RuntimeError:  # shapes that do not fit, which the call refuses
        return 0.0
    return float(forward * back)


def latent_gradient(draw: Draw) -> Problem:
    shape, tensors, call = _decoder(draw)
    # The gradient of the point alone is a kernel's.
    constants = tuple(range(1, 1 + len(tensors))) if draw.chance(0.7) else ()
    return _decoder_problem(draw, F.latent_gradient, [draw.tensor(*shape)], tensors, call, constants)


def mlp_bernoulli_log_prob(draw: Draw) -> Problem:
    # A kernel of gradients takes no fewer rows.
    shape, tensors, call = _decoder(draw, many_rows=draw.chance(0.5))
    # The kernels differ where nothing is differentiated.
    constants = tuple(range(1 + len(tensors))) if draw.chance(0.6) else ()

    def log_prob(*arguments, likelihood, **options):
        return F.mlp_bernoulli_log_prob(*arguments, **options)

    return _decoder_problem(draw, log_prob, [draw.tensor(*shape)], tensors, call, constants)


def latent_hessian_product(draw: Draw) -> Problem:
    shape, tensors, call = _decoder(draw)
    points = [draw.tensor(*shape), draw.tensor(*shape)]
    return _decoder_problem(draw, F.latent_hessian_product, points, tensors, call)
