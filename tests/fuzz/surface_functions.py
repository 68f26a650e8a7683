"""Random calls of every function of ``fastvae.functional`` and of the distributions."""

from __future__ import annotations

import torch
from torch.distributions import kl_divergence

import fastvae.functional as F
from fastvae import backend
from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from fastvae.ops._checks import check_triangular
from fastvae.precision import compute_dtype
from fastvae.reference import affine_flow as affine
from fastvae.reference import gated_activation as gates
from fastvae.reference.tril_gaussian import strictly_lower

from .draw import Draw, Problem
from .surface_decoders import (
    ACTIVATIONS,
    latent_gradient,
    latent_hessian_product,
    linear_bernoulli_log_prob,
    linear_tril_gaussian_rsample_with_kl,
    mlp_bernoulli_log_prob,
)
from .surface_windows import attention_filters, attention_read, attention_write


def _gaussian(draw: Draw, count: int = 2) -> tuple[list[torch.Tensor], tuple[int, ...], int]:
    """Parameters of one batch, which some of them only broadcast to, or the very same tensor."""
    batch, features = draw.batch(), draw.size(zero=0.02)
    tensors: list[torch.Tensor] = []
    for _ in range(count):
        own = batch
        if not draw.tame and draw.chance(0.15):
            own = tuple(1 if draw.chance(0.4) else size for size in batch)[draw.rng.randint(0, 1) :]
        alias = tensors and not draw.tame and draw.chance(0.08)
        tensors.append(draw.choice(tensors) if alias else draw.tensor(*own, features))
    return tensors, batch, features


def _tril(draw: Draw, batch: tuple[int, ...], features: int) -> torch.Tensor:
    if not draw.tame and draw.chance(0.15):
        batch = tuple(1 if draw.chance(0.5) else size for size in batch)
    if draw.chance(0.5):
        return draw.tensor(*batch, features * (features - 1) // 2, scale=0.3)
    values = draw.values((*batch, features, features), 0.3)
    if draw.chance(0.5):
        values = values.masked_fill(torch.ones(features, features, dtype=torch.bool).triu(), float("nan"))
    return draw.tensor(*values.shape, values=values)


def _samples(draw: Draw) -> tuple[int, ...]:
    return tuple(draw.size(3, zero=0.1) for _ in range(draw.rng.choices((0, 1, 2), (3, 3, 1))[0]))


def _noise(draw: Draw, shape: tuple[int, ...]) -> tuple[list[torch.Tensor], dict[str, object]]:
    """Noise as a tensor, or a seed for it."""
    if draw.chance(0.5):
        return [draw.tensor(*shape, scale=1.0)], {}
    offset = 0 if draw.tame or draw.chance(0.7) else draw.choice((1, 7, 2**31, 2**32 - 1, 2**40))
    return [], {"seed": draw.rng.randrange(2**40), "row_offset": offset}


def _sample_with(function, samples, more, **options):
    def call(module, *tensors):
        *parameters, eps = tensors if not more else (*tensors, None)
        if not more:
            # Noise comes in the parameters' dtype or in float32; both are that of the copies in float64.
            return function(*parameters, samples, eps=eps, **options)
        generator = torch.Generator().manual_seed(more["seed"])
        return function(*parameters, samples, generator=generator, row_offset=more["row_offset"], **options)

    return call


def diag_gaussian_rsample(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    samples = _samples(draw)
    noise, more = _noise(draw, (*samples, *batch, features))
    call = _sample_with(F.diag_gaussian_rsample, samples, more)
    # A seed gives the reference other noise.
    return Problem(call, [*parameters, *noise], constants=(2,) if noise else (), compared=bool(noise))


def bernoulli_sample(draw: Draw) -> Problem:
    (logits,), batch, features = _gaussian(draw, 1)
    samples, antithetic, (_, more) = _samples(draw), draw.chance(0.5), _noise(draw, ())

    def call(_, logits, uniforms=None):
        noise = dict(more) if uniforms is None else {}
        if "seed" in noise:
            noise["generator"] = torch.Generator().manual_seed(noise.pop("seed"))
        return F.bernoulli_sample(logits, samples, antithetic=antithetic, uniforms=uniforms, **noise)

    if more:
        return Problem(call, [logits], compared=False)
    # Beyond all thresholds: no rounding turns a unit.
    shape = (*samples, *batch, features)
    uniforms = torch.where(draw.values(shape, 1.0) > 0, 2.0, -1.0)
    return Problem(call, [logits, draw.tensor(*shape, values=uniforms)], constants=(1,))


def diag_gaussian_rsample_with_kl(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    samples = _samples(draw)
    noise, more = _noise(draw, (*samples, *batch, features))
    call = _sample_with(F.diag_gaussian_rsample_with_kl, samples, more, kl=draw.choice(("sum", "dimensions")))
    return Problem(call, [*parameters, *noise], constants=(2,) if noise else (), compared=bool(noise))


def diag_gaussian_log_prob(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    z = draw.tensor(*_samples(draw), *batch, features)
    return Problem(lambda _, *t: F.diag_gaussian_log_prob(*t), [z, *parameters])


def diag_gaussian_kl(draw: Draw) -> Problem:
    return Problem(lambda _, *t: F.diag_gaussian_kl(*t), _gaussian(draw, draw.choice((2, 4)))[0])


def gaussian_merge(draw: Draw) -> Problem:
    return Problem(lambda _, *t: F.gaussian_merge(*t), _gaussian(draw, 4)[0])


def gaussian_merge_rsample(draw: Draw) -> Problem:
    (mu, log_sigma, *prior), batch, features = _gaussian(draw, 4)
    samples = _samples(draw)
    if samples:
        prior = [draw.tensor(*samples, *batch, features), draw.tensor(*samples, *batch, features)]
    noise, more = _noise(draw, (*samples, *batch, features))
    kl = draw.choice(("sum", "dimensions"))

    def call(module, *tensors):
        *parameters, eps = tensors if not more else (*tensors, None)
        if not more:
            return F.gaussian_merge_rsample(*parameters, kl=kl, eps=eps)
        generator = torch.Generator().manual_seed(more["seed"])
        return F.gaussian_merge_rsample(*parameters, kl=kl, generator=generator, row_offset=more["row_offset"])

    inputs = [mu, log_sigma, *prior, *noise]
    return Problem(call, inputs, constants=(4,) if noise else (), compared=bool(noise))


def _tril_rsample(mu, log_sigma, tril, samples, *, eps=None, **more):
    """The reference multiplies infinite noise by the zeros above the diagonal; here, as in the kernels, it does not."""
    z, log_q = F.tril_gaussian_rsample(mu, log_sigma, tril, samples, eps=eps, **more)
    return _leave_noise_out(z, mu, log_sigma, tril, eps), log_q


def _tril_rsample_with_kl(mu, log_sigma, tril, samples, *, eps=None, **more):
    z, *others = F.tril_gaussian_rsample_with_kl(mu, log_sigma, tril, samples, eps=eps, **more)
    return _leave_noise_out(z, mu, log_sigma, tril, eps), *others


def _leave_noise_out(z, mu, log_sigma, tril, eps):
    if eps is None or eps.isfinite().all() or backend.resolve("auto", mu) != "reference":
        return z
    mu, log_sigma, tril, packed = check_triangular(mu, log_sigma, tril, alike=True)
    mu, log_sigma, tril, eps = (t.to(compute_dtype(z.dtype)) for t in (mu, log_sigma, tril, eps))
    lower, below = strictly_lower(tril, mu.shape[-1], packed), torch.ones(mu.shape[-1], mu.shape[-1]).tril(-1) > 0
    mixed = torch.where(below, lower * eps.unsqueeze(-2), 0.0).sum(-1)
    return torch.where(z.isnan(), (mu + mixed + log_sigma.exp() * eps).to(z.dtype), z)


def tril_gaussian_rsample(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    samples = _samples(draw)
    noise, more = _noise(draw, (*samples, *batch, features))
    inputs = [*parameters, _tril(draw, batch, features), *noise]
    call = _sample_with(_tril_rsample, samples, more)
    return Problem(call, inputs, constants=(3,) if noise else (), compared=bool(noise))


def tril_gaussian_rsample_with_kl(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    samples = _samples(draw)
    noise, more = _noise(draw, (*samples, *batch, features))
    inputs = [*parameters, _tril(draw, batch, features), *noise]
    call = _sample_with(_tril_rsample_with_kl, samples, more, kl=draw.choice(("sum", "dimensions")))
    return Problem(call, inputs, constants=(3,) if noise else (), compared=bool(noise))


def tril_gaussian_log_prob(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    z = draw.tensor(*_samples(draw), *batch, features)
    inputs = [z, *parameters, _tril(draw, batch, features)]
    return Problem(lambda _, *t: F.tril_gaussian_log_prob(*t), inputs, ill_conditioned=features > 9)


def tril_gaussian_kl(draw: Draw) -> Problem:
    parameters, batch, features = _gaussian(draw)
    return Problem(lambda _, *t: F.tril_gaussian_kl(*t), [*parameters, _tril(draw, batch, features)])


def affine_flow(draw: Draw) -> Problem:
    kind = draw.choice(affine.KINDS)
    inputs, _, _ = _gaussian(draw, 2 if kind == "location_only" else 3)
    inverse = draw.chance(0.5)
    return Problem(lambda _, *t: F.affine_flow(*t, kind=kind, inverse=inverse), inputs)


def masked_linear(draw: Draw) -> Problem:
    ins, outs, largest = draw.size(), draw.size(), draw.size(5)
    in_degrees, out_degrees = (torch.tensor(draw.degrees(n, largest), dtype=torch.int64) for n in (ins, outs))
    activation, has_bias, has_scale = draw.choice(ACTIVATIONS), draw.chance(0.6), draw.chance(0.4)
    inputs = [draw.tensor(*draw.batch(), ins), draw.tensor(outs, ins)]
    inputs += [draw.tensor(outs) for given in (has_bias, has_scale) if given]

    def call(_, x, weight, *others):
        others = list(others)
        bias = others.pop(0) if has_bias else None
        return F.masked_linear(
            x, weight, bias, in_degrees=in_degrees, out_degrees=out_degrees, activation=activation,
            weight_scale=others.pop(0) if has_scale else None,
        )  # fmt: skip

    return Problem(call, inputs, cuts=True)


def class_linear(draw: Draw) -> Problem:
    """One or more inputs, for all classes, for a label of each row, or for inputs that differ from class to class."""
    batch, classes, width = draw.batch(), draw.some(5), draw.some()
    sizes = [draw.size() for _ in range(draw.choice((1, 1, 2, 3)))]
    count, has_bias, activation = len(sizes), draw.chance(0.6), draw.choice(ACTIVATIONS)
    form = draw.choice(("all", "all", "row", "each"))
    labels, batches = None, [batch] * count
    if form == "row":
        labels = torch.randint(classes, batch, generator=draw.generator)
    elif form == "each":
        labels = torch.arange(classes)
        batches = [(*batch, draw.choice((1, classes))) for _ in sizes]
    if draw.chance(0.3):
        batches[0] = batches[0][1:]
    inputs = [draw.tensor(*own, size) for own, size in zip(batches, sizes, strict=True)]
    inputs += [draw.tensor(width, size) for size in sizes]
    inputs += [draw.tensor(width, classes)] + ([draw.tensor(width)] if has_bias else [])

    def call(_, *tensors):
        x, weights, (class_weight, *bias) = tensors[:count], tensors[count : 2 * count], tensors[2 * count :]
        return F.class_linear(x, weights, class_weight, *bias, labels=labels, activation=activation)

    # At NaN PyTorch's elu passes a gradient on, the kernels' does not. PyTorch's gelu and softplus have no tails. Large
    # weights multiply the rounding of a saturated activation's slope.
    compared = not (draw.hostile and activation in ("gelu", "softplus"))
    return Problem(call, inputs, cuts=activation == "elu", ill_conditioned=draw.hostile, compared=compared)


def masked_conv2d(draw: Draw) -> Problem:
    groups = draw.choice((1, 1, 1, 2, 3))
    ins, outs = groups * draw.some(4), groups * draw.some(4)
    size = [draw.choice((1, 2, 3, 5)) for _ in range(2)]
    options: dict[str, object] = {
        "mask_type": draw.choice("AB"),
        "groups": groups,
        "activation": draw.choice(ACTIVATIONS),
        "dilation": draw.choice((1, 1, 2, (1, 2))),
        "padding": draw.choice((0, 1, 2, (2, 1), "same", "valid")),
        "order": draw.choice(("raster", "raster", "reversed")),
    }
    if draw.chance(0.4):
        options["num_colors"] = draw.choice([n for n in (1, 2, 3) if (ins % n == 0 and outs % n == 0) or n == 2])
        options["color_layout"] = draw.choice(("contiguous", "interleaved"))
    elif draw.chance(0.4):
        options |= {"in_degrees": draw.degrees(ins, 3), "out_degrees": draw.degrees(outs, 3)}
    if draw.chance(0.3):
        options["origin"] = (draw.rng.randrange(size[0]), draw.rng.randrange(size[1]))
    x = draw.tensor(draw.size(3), ins, draw.size(zero=0.04), draw.size(zero=0.04))
    inputs = [x, draw.tensor(outs, ins // groups, *size, scale=0.3)]
    if draw.chance(0.6):
        inputs.append(draw.tensor(outs))
    return Problem(lambda _, *t: F.masked_conv2d(*t, **options), inputs, cuts=True)


def gated_activation(draw: Draw) -> Problem:
    images, features, height, width = draw.size(4), draw.some(6), draw.size(), draw.size()
    x = draw.tensor(images, 2 * features, height, width)
    inputs = [x]
    if draw.chance(0.6):
        shapes = (
            (images, 2 * features, height, width), (images, 2 * features), (1, 2 * features),
            (images, 2 * features, 1, 1), (2 * features, height, width), (1, 2 * features, height, 1),
        )  # fmt: skip
        alias = not draw.tame and draw.chance(0.1)
        inputs.append(x if alias else draw.tensor(*draw.choice(shapes)))
    kind = draw.choice(gates.KINDS)
    return Problem(lambda _, *t: F.gated_activation(*t, kind=kind), inputs)


def levels_image(draw: Draw, shape: tuple[int, ...], levels: int, symmetric: bool) -> torch.Tensor:
    level = torch.randint(levels, shape, generator=draw.generator).double() / (levels - 1)
    return 2 * level - 1 if symmetric else level


def _levels(draw: Draw) -> int:
    """As many as the dtype tells apart."""
    return {torch.bfloat16: 16, torch.float16: 64}.get(draw.dtype, draw.choice((2, 4, 256)))


def logistic_mixture_log_prob(draw: Draw) -> Problem:
    channels, mixtures, levels = draw.choice((1, 3)), draw.some(4), _levels(draw)
    images, height, width = draw.size(4), draw.size(), draw.size()
    image = levels_image(draw, (images, channels, height, width), levels, True)
    x = draw.tensor(*image.shape, values=image)
    params = draw.tensor(images, mixtures * (3 if channels == 1 else 10), height, width, scale=2.0)
    return Problem(lambda _, *t: F.logistic_mixture_log_prob(*t, levels=levels), [x, params], constants=(0,))


def logistic_mixture_sample(draw: Draw) -> Problem:
    channels = draw.choice((1, 3))
    params = draw.tensor(draw.size(4), draw.some(4) * (3 if channels == 1 else 10), draw.size(), draw.size())
    seed, temperature, levels = draw.rng.randrange(2**40), draw.choice((1.0, 0.5, 1e-3)), _levels(draw)

    def call(_, p):
        generator = torch.Generator().manual_seed(seed)
        return F.logistic_mixture_sample(
            p, channels=channels, temperature=temperature, levels=levels, generator=generator
        )

    return Problem(call, [params], constants=(0,), compared=False)


def discretized_logistic_log_prob(draw: Draw) -> Problem:
    levels, shape = _levels(draw), (draw.size(4), draw.choice((1, 3)), draw.size(), draw.size())
    x = draw.tensor(*shape, values=levels_image(draw, shape, levels, True))
    inputs = [x, draw.tensor(*shape), draw.tensor(*shape)]
    return Problem(lambda _, *t: F.discretized_logistic_log_prob(*t, levels=levels), inputs, constants=(0,))


def _moments(q, others):
    return q.entropy(), q.mean, q.variance, q.stddev, *others


def diagonal_gaussian(draw: Draw) -> Problem:
    inputs, _, features = _gaussian(draw, 5)

    def call(_, mu, log_sigma, other_mu, other_log_sigma, z):
        q, p = (DiagonalGaussian(m, s, validate_args=False) for m, s in ((mu, log_sigma), (other_mu, other_log_sigma)))
        to_standard = kl_divergence(q, StandardNormal(features, dtype=mu.dtype))
        return _moments(q, (q.log_prob(z), kl_divergence(q, p), to_standard))

    return Problem(call, inputs)


def triangular_gaussian(draw: Draw) -> Problem:
    (mu, log_sigma, z), batch, features = _gaussian(draw, 3)

    def call(_, mu, log_sigma, tril, z):
        q = TriangularGaussian(mu, log_sigma, tril, validate_args=False)
        return _moments(q, (q.log_prob(z), kl_divergence(q, StandardNormal(features, dtype=mu.dtype))))

    inputs = [mu, log_sigma, _tril(draw, batch, features), z]
    return Problem(call, inputs, ill_conditioned=features > 9)


# By name, with the public names that each calls.
FUNCTIONS = {
    name: (make, (name,))
    for name, make in (
        ("diag_gaussian_rsample", diag_gaussian_rsample),
        ("diag_gaussian_rsample_with_kl", diag_gaussian_rsample_with_kl),
        ("attention_filters", attention_filters),
        ("attention_read", attention_read),
        ("attention_write", attention_write),
        ("bernoulli_sample", bernoulli_sample),
        ("diag_gaussian_log_prob", diag_gaussian_log_prob),
        ("diag_gaussian_kl", diag_gaussian_kl),
        ("tril_gaussian_rsample", tril_gaussian_rsample),
        ("tril_gaussian_rsample_with_kl", tril_gaussian_rsample_with_kl),
        ("tril_gaussian_log_prob", tril_gaussian_log_prob),
        ("tril_gaussian_kl", tril_gaussian_kl),
        ("gaussian_merge", gaussian_merge),
        ("gaussian_merge_rsample", gaussian_merge_rsample),
        ("affine_flow", affine_flow),
        ("class_linear", class_linear),
        ("masked_linear", masked_linear),
        ("masked_conv2d", masked_conv2d),
        ("gated_activation", gated_activation),
        ("mlp_bernoulli_log_prob", mlp_bernoulli_log_prob),
        ("latent_gradient", latent_gradient),
        ("latent_hessian_product", latent_hessian_product),
        ("linear_bernoulli_log_prob", linear_bernoulli_log_prob),
        ("linear_tril_gaussian_rsample_with_kl", linear_tril_gaussian_rsample_with_kl),
        ("logistic_mixture_log_prob", logistic_mixture_log_prob),
        ("logistic_mixture_sample", logistic_mixture_sample),
        ("discretized_logistic_log_prob", discretized_logistic_log_prob),
    )
} | {
    "DiagonalGaussian": (diagonal_gaussian, ("DiagonalGaussian", "StandardNormal")),
    "TriangularGaussian": (triangular_gaussian, ("TriangularGaussian",)),
}
