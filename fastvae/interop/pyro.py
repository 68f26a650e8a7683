"""Flows for and from Pyro, Gaussians for Pyro."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributions import AffineTransform, ComposeTransform, Independent, Normal, TransformedDistribution
from torch.distributions.transforms import _InverseTransform

from ..distributions import DiagonalGaussian, TriangularGaussian
from ..nn.sequence import takes_context
from ..reference.affine_flow import CLAMPED_EXP
from ._chains import Affine, ConvertedFlow, Part, Reordering, Step, cannot_express, chain_of, inside, name_layer
from ._networks import Layer, activation_name, build_made, split_context
from ._peers import peer

__all__ = ["from_pyro", "to_pyro"]

KNOWN = (
    "Pyro's AffineAutoregressive or ConditionalAffineAutoregressive, Permute, AffineTransform, their inv, or a "
    "composition of such"
)


def to_pyro(flow: nn.Module | DiagonalGaussian | TriangularGaussian, *, cache_size: int = 1) -> Any:
    """A flow as one of Pyro's transforms, or a Gaussian as one of Pyro's distributions.

    Args:
        flow: one of

            - a module with ``forward(z, context=None) -> (z, log_det)`` and ``inverse`` alike. It becomes a
              ``TransformModule`` from base noise to sample. If its ``context_features`` is not 0 it becomes a
              ``ConditionalTransformModule``: call ``condition(context)``.
            - a :class:`fastvae.distributions.DiagonalGaussian`, a ``StandardNormal`` or a ``TriangularGaussian``, with
              batch shape ``(*)`` and event shape ``(D,)``. It becomes a distribution for ``pyro.sample``.
        cache_size: of a flow: 1, as Pyro's own flows have it, so that the density of one's own sample needs no inverse;
            see :func:`to_torch_transform`. A Gaussian ignores it.

    Returns:
        From a flow, a module with the flow's parameters, for ``pyro.distributions.TransformedDistribution`` or
        ``ConditionalTransformedDistribution``, and for ``pyro.module``.

        From a Gaussian, a Gaussian of the same class that is also a ``TorchDistributionMixin``: call it to draw a
        reparameterised sample, use it in plates, ``to_event`` and ``mask``. Gradients reach the parameters of the
        original. ``TraceMeanField_ELBO`` takes the divergences that ``kl_divergence`` knows in closed form.

    Raises:
        ImportError: Pyro is not installed.
        TypeError: ``flow`` is neither a module nor a Gaussian of fastvae.

    Example:
        >>> import pyro
        >>> from fastvae.distributions import StandardNormal, TriangularGaussian
        >>> mu, log_sigma, tril = torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 3)
        >>> def model():
        ...     with pyro.plate("data", 4):
        ...         pyro.sample("z", to_pyro(StandardNormal(3)))
        >>> def guide():
        ...     with pyro.plate("data", 4):
        ...         pyro.sample("z", to_pyro(TriangularGaussian(mu, log_sigma, tril)))
        >>> pyro.infer.TraceMeanField_ELBO().loss(model, guide)
        0.0
    """
    peer("pyro", "pyro-ppl")
    if isinstance(flow, DiagonalGaussian | TriangularGaussian):
        from ._pyro_distributions import pyro_distribution

        return pyro_distribution(flow)
    if not isinstance(flow, nn.Module):
        raise TypeError(
            "flow must be a module with forward(z, context=None) -> (z, log_det), a DiagonalGaussian or a "
            f"TriangularGaussian, got {type(flow).__name__}"
        )
    from ._pyro_transforms import ConditionalFlowTransformModule, FlowTransformModule

    if takes_context(flow):
        return ConditionalFlowTransformModule(flow, cache_size)
    return FlowTransformModule(flow, cache_size=cache_size)


def from_pyro(transform: Any) -> ConvertedFlow:
    """Pyro's ``AffineAutoregressive``, its conditional counterpart, or a composition with such, as a flow with the same
    weights.

    Both map base noise to sample in ``forward``. The plain transform becomes the kind ``"clamped_exp"``. Its gradient
    ends at the clamp; Pyro's gradient passes the clamp. A transform with ``stable=True`` becomes ``"gated"``; its
    ``sigmoid_bias`` becomes part of the last layer's bias.

    Args:
        transform: an ``AffineAutoregressive`` or ``ConditionalAffineAutoregressive``, its network an
            ``AutoRegressiveNN`` or ``ConditionalAutoRegressiveNN`` with the parameters (mean, log-scale), without skip
            connections; a ``Permute`` or an ``AffineTransform``; the ``inv`` of one; a list or a composition,
            conditional or not, of such; or a ``TransformedDistribution``, conditional or not, with a standard normal
            base, whose transforms are taken.

    Returns:
        A flow with copies of the weights, on their device and of their dtype: an
        :class:`~fastvae.nn.InverseAutoregressiveFlow`, or for inverted transforms a
        :class:`~fastvae.nn.MaskedAutoregressiveFlow`. The ``order`` of its networks expresses the permutations. A
        :class:`~fastvae.nn.FlowSequence` holds it together with the other parts of a composition: a last permutation,
        affine maps.

    Raises:
        ImportError: Pyro is not installed.
        TypeError: another type of transform or network.
        ValueError: a part of a composition, a setting, a mask or a base that cannot be expressed; the error names it.
    """
    distributions = peer("pyro.distributions", "pyro-ppl")
    if isinstance(transform, TransformedDistribution | distributions.ConditionalTransformedDistribution):
        _check_base(transform.base_dist)
        transform = transform.transforms
    return chain_of(_parts(transform, "", inverted=False))


def _check_base(base: Any) -> None:
    conditional = peer("pyro.distributions.conditional", "pyro-ppl")
    if isinstance(base, conditional.ConstantConditionalDistribution):
        base = base.base_dist
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise ValueError(f"the base distribution must be a standard normal one, got {type(base).__name__}")
    if bool((base.loc != 0).any()) or bool((base.scale != 1).any()):
        raise ValueError(
            "the base distribution must have loc 0 and scale 1: put an AffineTransform in front of the transforms"
        )


def _parts(transform: Any, path: str, inverted: bool) -> list[Part]:
    """The parts of ``transform``, as maps from noise to data, in the order in which noise passes them."""
    transforms = peer("pyro.distributions.transforms", "pyro-ppl")
    conditional = peer("pyro.distributions.conditional", "pyro-ppl")
    inner: Any = None
    if isinstance(transform, list | tuple):
        inner = transform
    elif isinstance(transform, ComposeTransform):
        inner = transform.parts
    elif isinstance(transform, conditional.ConditionalComposeTransformModule):
        inner = transform.transforms
    if inner is not None:
        numbered = list(enumerate(inner))
        return [
            part
            for index, t in (reversed(numbered) if inverted else numbered)
            for part in _parts(t, inside(path, index), inverted)
        ]
    if isinstance(transform, conditional.ConstantConditionalTransform):
        return _parts(transform.transform, path, inverted)
    if isinstance(transform, conditional._ConditionalInverseTransformModule):
        return _parts(transform._transform, path, not inverted)
    if isinstance(transform, _InverseTransform):
        return _parts(transform.inv, path, not inverted)
    with name_layer(path):
        if isinstance(transform, transforms.AffineAutoregressive | transforms.ConditionalAffineAutoregressive):
            return [_step(transform, inverted)]
        if isinstance(transform, transforms.Permute):
            if transform.dim != -1:
                raise ValueError(f"dim of Permute must be -1, the features, got {transform.dim}")
            reordering = Reordering(transform.permutation)
            return [reordering.inverse() if inverted else reordering]
        if isinstance(transform, AffineTransform):
            affine = Affine.of(transform.loc, transform.scale)
            return [affine.inverse() if inverted else affine]
    raise cannot_express(transform, path, KNOWN)


def _step(transform: Any, inverted: bool) -> Step:
    transforms, networks = peer("pyro.distributions.transforms", "pyro-ppl"), peer("pyro.nn", "pyro-ppl")
    if isinstance(transform, transforms.ConditionalAffineAutoregressive):
        network, settings = transform.nn, dict(transform.kwargs)
    else:
        names = ("log_scale_min_clip", "log_scale_max_clip", "sigmoid_bias", "stable")
        network, settings = transform.arn, {name: getattr(transform, name) for name in names}
    if not isinstance(network, networks.ConditionalAutoRegressiveNN):
        raise TypeError(
            "transform's network must be Pyro's AutoRegressiveNN or ConditionalAutoRegressiveNN, got "
            f"{type(network).__name__}"
        )
    if network.skip_layer is not None:
        raise ValueError("skip_connections=True cannot be expressed: a MADE has none")
    if list(network.param_dims) != [1, 1]:
        raise ValueError(f"param_dims must be [1, 1], mean and log-scale, got {list(network.param_dims)}")
    stable = settings.get("stable", False)
    low, high = CLAMPED_EXP
    clip = settings.get("log_scale_min_clip", low), settings.get("log_scale_max_clip", high)
    if not stable and clip != CLAMPED_EXP:
        raise ValueError(f"log_scale_min_clip and log_scale_max_clip must be {CLAMPED_EXP}, got {clip}")
    if not network.hidden_dims:
        raise ValueError("hidden_dims must name one or more layers: a MADE has at least one")

    features, width = network.input_dim, network.context_dim
    layers = [Layer(f"layers.{i}", lin.weight, lin.bias, lin.mask) for i, lin in enumerate(network.layers)]
    layers[0], context_weight = split_context(layers[0], slice(0, width), slice(width, None))
    made = build_made(layers, features, activation_name(network.f), context_weight=context_weight)
    if stable:
        with torch.no_grad():
            made.masked_layers()[-1].bias[features:] += settings.get("sigmoid_bias", 2.0)
    return Step(made, "gated" if stable else "clamped_exp", inverted, network.training)
