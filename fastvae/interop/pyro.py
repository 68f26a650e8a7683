"""Flows for and from Pyro, Gaussians for Pyro."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..distributions import DiagonalGaussian, TriangularGaussian
from ..nn.flows import InverseAutoregressiveFlow
from ..nn.sequence import takes_context
from ..reference.affine_flow import CLAMPED_EXP
from ._networks import Layer, activation_name, flow_of, made_of, split_context
from ._peers import peer

__all__ = ["from_pyro", "to_pyro"]


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


def from_pyro(transform: Any) -> InverseAutoregressiveFlow:
    """Pyro's ``AffineAutoregressive``, or ``ConditionalAffineAutoregressive``, as a flow with the same weights.

    Both map base noise to sample in ``forward``. The plain transform becomes the kind ``"clamped_exp"``, whose gradient
    ends at the clamp where Pyro's passes it; ``stable=True`` becomes ``"gated"``, its ``sigmoid_bias`` part of the last
    layer's bias.

    Args:
        transform: the transform; its network an ``AutoRegressiveNN`` or ``ConditionalAutoRegressiveNN`` with the
            parameters (mean, log-scale), without skip connections.

    Returns:
        A flow with copies of the weights, on their device and of their dtype.

    Raises:
        ImportError: Pyro is not installed.
        TypeError: another type of transform or network.
        ValueError: a setting or a mask that cannot be expressed; the error names it.
    """
    transforms, networks = peer("pyro.distributions.transforms", "pyro-ppl"), peer("pyro.nn", "pyro-ppl")
    if isinstance(transform, transforms.ConditionalAffineAutoregressive):
        network, settings = transform.nn, dict(transform.kwargs)
    elif isinstance(transform, transforms.AffineAutoregressive):
        names = ("log_scale_min_clip", "log_scale_max_clip", "sigmoid_bias", "stable")
        network, settings = transform.arn, {name: getattr(transform, name) for name in names}
    else:
        raise TypeError(
            "transform must be Pyro's AffineAutoregressive or ConditionalAffineAutoregressive, got "
            f"{type(transform).__name__}"
        )
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
    made = made_of(layers, features, activation_name(network.f), context_weight=context_weight)
    if stable:
        with torch.no_grad():
            made.masked_layers()[-1].bias[features:] += settings.get("sigmoid_bias", 2.0)
    return flow_of(InverseAutoregressiveFlow, [made], "gated" if stable else "clamped_exp", network.training)
