"""Random modules of ``fastvae.nn``, with calls of every method that computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastvae import nn as layers
from fastvae.reference.affine_flow import KINDS
from fastvae.sampling import Categorical, CausalSampler

from .draw import Draw, Problem
from .surface_decoders import ACTIVATIONS
from .surface_functions import levels_image

NAMED = tuple(ACTIVATIONS[1:])


def _problem(draw: Draw, module: nn.Module, inputs: list[Any], method: str = "__call__", **more: Any) -> Problem:
    """A call of a module in the case's dtype, whose parameters now and then have other layouts and hostile values."""
    module = module.to(draw.dtype).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if draw.chance(0.5):
                parameter.copy_(draw.values(tuple(parameter.shape), 0.4).to(draw.dtype))
            if draw.chance(0.2):
                parameter.data = draw.lay_out(parameter.data.clone())
    return Problem(lambda m, *t: getattr(m, method)(*t), inputs, module, cuts=True, **more)


def _flow(draw: Draw, module: nn.Module, features: int, context: int = 0, *, inverse: bool = False) -> Problem:
    batch = draw.batch()
    inputs = [draw.tensor(*batch, features)] + ([draw.tensor(*batch, context)] if context else [])
    method = "inverse" if inverse and draw.chance(0.5) else "__call__"
    problem = _problem(draw, module, inputs, method, ill_conditioned=method == "inverse")
    if not isinstance(module, layers.MADE) and draw.chance(0.3):
        problem.call = lambda m, *t: getattr(m, method)(*t, log_det_map=True)
    return problem


def _order(draw: Draw, features: int) -> list[int] | None:
    return draw.rng.sample(range(features), features) if draw.chance(0.3) else None


def _network_options(draw: Draw) -> tuple[list[int], dict[str, Any]]:
    """Hidden widths, equal ones where layers are added to each other, and options of a masked network."""
    residual = draw.chance(0.3)
    width = draw.some()
    widths = [
        width if residual else draw.some() for _ in range(draw.choice((1, 3)) if residual else draw.rng.randint(1, 3))
    ]
    options = {
        "residual": residual, "weight_norm": draw.chance(0.3), "activation": draw.choice(NAMED),
        "context_features": draw.choice((0, 0, 2)),
    }  # fmt: skip
    return widths, options


def autoregressive_network(draw: Draw) -> Problem:
    features = draw.some()
    widths, options = _network_options(draw)
    module = layers.MADE(
        features, widths, params_per_feature=draw.rng.randint(1, 3), order=_order(draw, features),
        layout=draw.choice(("blocked", "interleaved")), **options,
    )  # fmt: skip
    return _flow(draw, module, features, options["context_features"])


def _steps(kind: type[nn.Module]) -> Callable[[Draw], Problem]:
    def make(draw: Draw) -> Problem:
        features = draw.some()
        widths, options = _network_options(draw)
        module = kind(
            features, widths, steps=draw.rng.randint(1, 2), kind=draw.choice(KINDS), reverse=draw.chance(0.5),
            order=_order(draw, features), **options,
        )  # fmt: skip
        return _flow(draw, module, features, options["context_features"], inverse=True)

    return make


def flow_sequence(draw: Draw) -> Problem:
    features = draw.some()
    parts = [layers.InverseAutoregressiveFlow(features, (draw.some(),)), layers.Permutation(range(features)[::-1])]
    if draw.chance(0.5):
        parts.append(layers.HouseholderFlow(features, 1))
    return _flow(draw, layers.FlowSequence(*parts), features)


def householder(draw: Draw) -> Problem:
    features, context = draw.some(), draw.choice((0, 2))
    return _flow(draw, layers.HouseholderFlow(features, draw.some(3), context), features, context)


def linear_iaf(draw: Draw) -> Problem:
    features, context = draw.some(), draw.choice((0, 2))
    return _flow(draw, layers.LinearInverseAutoregressiveFlow(features, context), features, context)


def planar(draw: Draw) -> Problem:
    features, context = draw.some(), draw.choice((0, 2))
    module = layers.PlanarFlow(features, context, activation=draw.choice(("tanh", "leaky_relu")))
    return _flow(draw, module, features, context)


def sylvester(draw: Draw) -> Problem:
    features, kind = draw.some(), draw.choice(("orthogonal", "householder", "triangular"))
    module = layers.SylvesterFlow(features, kind, draw.choice((0, 2)) if draw.chance(0.5) else 0)
    problem = _flow(draw, module, features, getattr(module, "context_features", 0))
    # Orthogonalisation iterates until it has converged, by the dtype.
    problem.ill_conditioned = True
    return problem


def permutation(draw: Draw) -> Problem:
    features = draw.some()
    return _flow(draw, layers.Permutation(draw.rng.sample(range(features), features)), features, inverse=True)


def affine_transform(draw: Draw) -> Problem:
    features = draw.some()
    scale = torch.rand(features, generator=draw.generator) + 0.5
    module = layers.AffineTransform(torch.arange(features) * 0.1, scale, learnable=draw.chance(0.5))
    return _flow(draw, module, features, inverse=True)


def _images(draw: Draw, channels: int) -> list[int]:
    return [draw.size(3), channels, draw.size(6, zero=0.04), draw.size(6, zero=0.04)]


def conv_network(draw: Draw) -> Problem:
    channels, context = draw.some(3), draw.choice((0, 2))
    shape = _images(draw, channels)
    module = layers.ConvMADE(
        channels, [draw.some(5) for _ in range(draw.rng.randint(1, 2))], params_per_channel=draw.rng.randint(1, 2),
        context_channels=context, order=draw.choice(("raster", "reversed")), activation=draw.choice(NAMED),
    )  # fmt: skip
    inputs = [draw.tensor(*shape)] + ([draw.tensor(shape[0], context, *shape[2:])] if context else [])
    return _problem(draw, module, inputs)


def conv_iaf(draw: Draw) -> Problem:
    channels, context = draw.some(3), draw.choice((0, 2))
    shape = _images(draw, channels)
    module = layers.ConvInverseAutoregressiveFlow(
        channels, (draw.some(5),), steps=draw.rng.randint(1, 2), context_channels=context, kind=draw.choice(KINDS)
    )
    inputs = [draw.tensor(*shape)] + ([draw.tensor(shape[0], context, *shape[2:])] if context else [])
    return _problem(draw, module, inputs)


def masked_linear(draw: Draw) -> Problem:
    ins, outs, largest = draw.some(), draw.some(), draw.size(5)
    module = layers.MaskedLinear(
        ins, outs, draw.degrees(ins, largest), draw.degrees(outs, largest), draw.chance(0.7),
        activation=draw.choice(ACTIVATIONS), weight_norm=draw.chance(0.4),
    )  # fmt: skip
    return _problem(draw, module, [draw.tensor(*draw.batch(), ins)])


def masked_conv2d(draw: Draw) -> Problem:
    groups = draw.choice((1, 1, 2))
    ins, outs = groups * draw.some(3), groups * draw.some(3)
    module = layers.MaskedConv2d(
        ins, outs, draw.choice((1, 3, (1, 3), 5)), padding=draw.choice((0, 1, "same", (2, 1))), groups=groups,
        dilation=draw.choice((1, 1, 2)), bias=draw.chance(0.6), mask_type=draw.choice("AB"),
        activation=draw.choice(ACTIVATIONS), weight_norm=draw.chance(0.3),
    )  # fmt: skip
    return _problem(draw, module, [draw.tensor(*_images(draw, ins))])


def _shifted_conv(kind: type[nn.Module]) -> Callable[[Draw], Problem]:
    def make(draw: Draw) -> Problem:
        ins = draw.some(3)
        size = (draw.rng.randint(1, 3), draw.choice((1, 3)))
        module = kind(ins, draw.some(4), size, activation=draw.choice(ACTIVATIONS))
        return _problem(draw, module, [draw.tensor(*_images(draw, ins))])

    return make


def gated_activation(draw: Draw) -> Problem:
    features = draw.some(4)
    shape = _images(draw, 2 * features)
    inputs = [draw.tensor(*shape)] + ([draw.tensor(*shape[:2])] if draw.chance(0.5) else [])
    return _problem(draw, layers.GatedActivation(draw.choice(("tanh", "linear"))), inputs)


def class_linear(draw: Draw) -> Problem:
    sizes, batch = [draw.some() for _ in range(draw.choice((1, 2)))], draw.batch()
    module = layers.ClassLinear(sizes, draw.some(4), draw.some(), draw.chance(0.6), activation=draw.choice(ACTIVATIONS))
    return _problem(draw, module, [draw.tensor(*batch, size) for size in sizes])


def gated_masked_conv2d(draw: Draw) -> Problem:
    channels, context = draw.some(3), draw.choice((0, 2))
    module = layers.GatedMaskedConv2d(channels, channels, 3, context_features=context, first=draw.chance(0.3))
    shape = _images(draw, channels)
    inputs = [draw.tensor(*shape), draw.tensor(*shape)] + ([draw.tensor(shape[0], context)] if context else [])
    return _problem(draw, module, inputs)


def code_embedding(draw: Draw) -> Problem:
    levels = draw.choice((2, 5))
    shape = (draw.size(3), 1, draw.size(6), draw.size(6))
    x = draw.tensor(*shape, values=levels_image(draw, shape, levels, False))
    return _problem(draw, layers.CodeEmbedding(levels, draw.some(4)), [x], constants=(0,))


def _pixel_network(draw: Draw) -> tuple[nn.Module, list[Tensor], dict[str, Any]]:
    """A small network over pixels, an image and perhaps a context."""
    kind = draw.choice(("PixelCNN", "GatedPixelCNN", "PixelCNNpp"))
    channels = draw.choice((1, 3)) if kind == "PixelCNNpp" else draw.rng.randint(1, 2)
    options: dict[str, Any] = {"context_features": 2} if draw.chance(0.3) else {}
    options["weight_norm"] = draw.chance(0.3)
    levels = 2
    if kind == "PixelCNNpp":
        levels = 256
        options["dropout"] = 0.0
        # Half precision does not tell 256 levels apart.
        draw.dtype = draw.dtype if draw.dtype in (torch.float32, torch.float64) else torch.float32
    elif draw.chance(0.4):
        levels = 4
        options["likelihood"] = Categorical(4)
    module = getattr(layers, kind)(channels, 2 * draw.some(3), draw.rng.randint(1, 2), **options)
    shape = (draw.size(3), channels, draw.rng.randint(1, 6), draw.rng.randint(1, 6))
    x = draw.tensor(*shape, values=levels_image(draw, shape, levels, kind == "PixelCNNpp"))
    inputs = [x] + ([draw.tensor(shape[0], 2)] if "context_features" in options else [])
    return module, inputs, {"constants": (0,)}


def pixel_network(draw: Draw) -> Problem:
    module, inputs, more = _pixel_network(draw)
    return _problem(draw, module, inputs, draw.choice(("__call__", "log_prob")), **more)


def causal_sampler(draw: Draw) -> Problem:
    module, (x, *context), more = _pixel_network(draw)
    temperature, seed = draw.choice((1.0, 0.3)), draw.rng.randrange(2**40)

    def call(m: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        sampler = CausalSampler(m, m.likelihood, in_channels=m.in_channels)
        return sampler.sample(
            x.shape[0], tuple(x.shape[2:]), context=context, temperature=temperature, generator=generator
        )

    problem = _problem(draw, module, [x, *context], **more)
    problem.call, problem.compared = call, False
    return problem


def _head(kind: type[nn.Module], **options: Any) -> Callable[[Draw], Problem]:
    def make(draw: Draw) -> Problem:
        ins, latent = draw.some(), draw.some()
        module = kind(ins, latent, **options)

        def call(m: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            q = m(x)
            return q.log_prob(z), *m.posterior_parameters(x)

        batch = draw.batch()
        problem = _problem(draw, module, [draw.tensor(*batch, ins), draw.tensor(*batch, latent)])
        problem.call, problem.ill_conditioned = call, latent > 9
        return problem

    return make


def input_baseline(draw: Draw) -> Problem:
    ins = draw.some()
    module = layers.InputBaseline(ins, draw.some())
    return _problem(draw, module, [draw.tensor(*draw.batch(), ins)])


# By name, with the public names that each calls.
MODULES = {
    "MADE": (autoregressive_network, ("MADE",)),
    "InverseAutoregressiveFlow": (_steps(layers.InverseAutoregressiveFlow), ("InverseAutoregressiveFlow",)),
    "MaskedAutoregressiveFlow": (_steps(layers.MaskedAutoregressiveFlow), ("MaskedAutoregressiveFlow",)),
    "FlowSequence": (flow_sequence, ("FlowSequence",)),
    "HouseholderFlow": (householder, ("HouseholderFlow",)),
    "LinearInverseAutoregressiveFlow": (linear_iaf, ("LinearInverseAutoregressiveFlow",)),
    "PlanarFlow": (planar, ("PlanarFlow",)),
    "SylvesterFlow": (sylvester, ("SylvesterFlow",)),
    "Permutation": (permutation, ("Permutation",)),
    "AffineTransform": (affine_transform, ("AffineTransform",)),
    "ConvMADE": (conv_network, ("ConvMADE",)),
    "ConvInverseAutoregressiveFlow": (conv_iaf, ("ConvInverseAutoregressiveFlow",)),
    "ClassLinear": (class_linear, ("ClassLinear",)),
    "MaskedLinear": (masked_linear, ("MaskedLinear",)),
    "MaskedConv2d": (masked_conv2d, ("MaskedConv2d",)),
    "DownShiftedConv2d": (_shifted_conv(layers.DownShiftedConv2d), ("DownShiftedConv2d",)),
    "DownRightShiftedConv2d": (_shifted_conv(layers.DownRightShiftedConv2d), ("DownRightShiftedConv2d",)),
    "GatedActivation": (gated_activation, ("GatedActivation",)),
    "GatedMaskedConv2d": (gated_masked_conv2d, ("GatedMaskedConv2d",)),
    "CodeEmbedding": (code_embedding, ("CodeEmbedding",)),
    "PixelNetwork": (pixel_network, ("PixelCNN", "GatedPixelCNN", "PixelCNNpp")),
    "CausalSampler": (causal_sampler, ()),
    "InputBaseline": (input_baseline, ("InputBaseline",)),
    "DiagonalGaussianHead": (_head(layers.DiagonalGaussianHead), ("DiagonalGaussianHead",)),
    "TriangularGaussianHead": (_head(layers.TriangularGaussianHead, tril_init_scale=1.0), ("TriangularGaussianHead",)),
}
# Nothing that computes: errors, reports and a check that runs a module on its own terms.
NOT_RUN = {
    "AutoregressiveError",
    "AutoregressiveReport",
    "check_autoregressive",
    "initialize_from_data",
    "shared_first_batch",
}
