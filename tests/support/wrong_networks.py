"""Arguments of a masked network that do not fit, with the errors that they must raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support.networks import Network, network


def small_form() -> Network:
    return network(4, (6, 8), context=True)


def right_arguments() -> dict[str, Any]:
    """What every function of a network takes, by name; z is called x where it is the network's input alone."""
    form = small_form()
    z, term, parameters = form.unpack([t.detach() for t in form.tensors((2,))])
    return {"z": z, "context_term": term, "parameters": parameters, "structure": form.structure}


def _change(field: str, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Parameters with one tensor of the second layer replaced."""
    parameters = right_arguments()["parameters"]
    tensors = list(getattr(parameters, field))
    tensors[1] = change(torch.zeros(8) if tensors[1] is None else tensors[1])
    return {"parameters": parameters._replace(**{field: tensors})}


def _shorten(field: str) -> dict[str, Any]:
    parameters = right_arguments()["parameters"]
    return {"parameters": parameters._replace(**{field: list(getattr(parameters, field))[:-1]})}


# Arguments that replace right ones, the error, and how its message may name the argument.
WRONG_NETWORK: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"z": torch.zeros(2, 3)}, ValueError, "x|z"),
    ({"z": torch.tensor(0.0)}, ValueError, "x|z"),
    ({"z": torch.zeros(2, 4).long()}, TypeError, "x|z"),
    ({"z": [0.0]}, TypeError, "x|z"),
    ({"context_term": torch.zeros(2, 5)}, ValueError, "context_term|context"),
    ({"context_term": torch.zeros(3, 6)}, ValueError, "context_term|context"),
    ({"context_term": torch.zeros(2, 6).double()}, TypeError, "context_term|context"),
    ({"context_term": torch.zeros(2, 6, device="meta")}, ValueError, "context_term|context"),
    (_shorten("weights"), ValueError, "weights?"),
    (_change("weights", lambda w: w[:, :3]), ValueError, "weights?"),
    (_change("weights", lambda w: w.T), ValueError, "weights?"),
    (_change("weights", Tensor.half), TypeError, "weights?"),
    (_change("weights", lambda w: w.to("meta")), ValueError, "weights?"),
    (_shorten("biases"), ValueError, "bias(es)?"),
    (_change("biases", lambda b: b[:3]), ValueError, "bias(es)?"),
    (_change("biases", Tensor.double), TypeError, "bias(es)?"),
    (_shorten("weight_scales"), ValueError, "weight_scales?"),
    (_change("weight_scales", lambda s: s[:3]), ValueError, "weight_scales?"),
    (_change("weight_scales", Tensor.double), TypeError, "weight_scales?"),
    ({"impl": "cuda"}, ValueError, "impl"),
]


WRONG_STEP = [
    *WRONG_NETWORK,
    ({"kind": "affine"}, ValueError, "kind"),
    # A network of one parameter per feature has no scale; one of two has a superfluous one for location_only.
    ({"structure": network(4, (6, 8), params=1).structure}, ValueError, "params_per_feature|kind|weights?"),
    ({"kind": "location_only"}, ValueError, "params_per_feature|kind"),
]
