"""Flows for, and out of, other libraries: torch.distributions, Pyro, zuko, nflows and normflows; Gaussians for Pyro.

``to_*`` wraps a flow in what the other library expects; ``to_pyro`` wraps a Gaussian too. ``from_*`` builds a flow with
the weights of a flow of the other library. This package itself imports no other library. Each function imports the one
that it needs, and names the package to install if it is missing.
"""

from .nflows import from_nflows, to_nflows
from .normflows import from_normflows
from .pyro import from_pyro, to_pyro
from .torch_distributions import FlowTransform, to_torch_transform
from .zuko import from_zuko, to_zuko

__all__ = [
    "FlowTransform",
    "from_nflows",
    "from_normflows",
    "from_pyro",
    "from_zuko",
    "to_nflows",
    "to_pyro",
    "to_torch_transform",
    "to_zuko",
]
