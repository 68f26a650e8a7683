"""All gradients of the inverse of an autoregressive flow step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..structure import MadeStructure
from ..structure.kept_activations import NetworkForm
from .autoregressive_flow import autoregressive_flow_bwd, autoregressive_flow_fwd
from .autoregressive_flow_gradients import Gradients
from .autoregressive_inverse import autoregressive_inverse_solve


def autoregressive_inverse_bwd(
    d_x: Tensor,
    d_log_det: Tensor,
    x: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    structure: MadeStructure,
    form: NetworkForm,
    of_network: bool,
    of_layers: bool,
) -> Gradients:
    """The gradient of z; if `of_network` that of the context's term, and if `of_layers` those of all layers.

    z is the step of x. Let d_z be its gradient. Those of all else are the step's for the upstream gradients -d_z and
    -d_log_det.
    """
    layers = (context_term, weights, biases, weight_scales)
    d_z = autoregressive_inverse_solve(d_x, d_log_det, x, *layers, structure, form.kind)
    if not of_network:
        return Gradients(d_z, d_z, [], [], [])
    has_bias = [bias is not None for bias in biases]
    _, _, saved = autoregressive_flow_fwd(x, *layers, degrees, form, True)
    assert saved is not None
    found = autoregressive_flow_bwd(
        -d_z, -d_log_det, saved, x, weights, has_bias, weight_scales, degrees, form, of_layers
    )
    return found._replace(d_z=d_z)
