"""Inverses of affine autoregressive steps by the libraries that people use, each with a network of its own.

They need the packages ``zuko``, ``nflows`` and ``pyro-ppl``; a provider whose package is absent says so in its row.
All of them run the whole network once for each feature.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .task import Case, Function, Inputs, Peer

_PACKAGES = {"zuko": "zuko", "nflows": "nflows", "pyro": "pyro-ppl"}
_SEED = 0


class ZukoInverse(nn.Module):
    def __init__(self, features: int, hidden_features: tuple[int, ...]) -> None:
        super().__init__()
        flows = importlib.import_module("zuko.flows.autoregressive")
        self.flow = flows.MaskedAutoregressiveTransform(features, hidden_features=hidden_features, activation=nn.ELU)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow().inv.call_and_ladj(z)

    def undo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow().call_and_ladj(x)


class NflowsInverse(nn.Module):
    def __init__(self, features: int, hidden_features: tuple[int, ...]) -> None:
        super().__init__()
        transforms = importlib.import_module("nflows.transforms.autoregressive")
        # Its blocks without residuals are one layer each, behind a first layer of the same width.
        width, *others = hidden_features
        self.flow = transforms.MaskedAffineAutoregressiveTransform(
            features, width, num_blocks=len(others), use_residual_blocks=False, activation=nn.functional.elu
        )

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z)

    def undo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow(x)


class PyroInverse(nn.Module):
    def __init__(self, features: int, hidden_features: tuple[int, ...]) -> None:
        super().__init__()
        networks = importlib.import_module("pyro.nn")
        transforms = importlib.import_module("pyro.distributions.transforms")
        network = networks.AutoRegressiveNN(features, list(hidden_features), nonlinearity=nn.ELU())
        self.flow = transforms.AffineAutoregressive(network)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # A new tensor, since the transform takes a second answer for the same one from its cache.
        z = z.view_as(z)
        x = self.flow.inv(z)
        return x, -self.flow.log_abs_det_jacobian(x, z)

    def undo(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.view_as(x)
        z = self.flow(x)
        return z, self.flow.log_abs_det_jacobian(x, z)


MODULES = {"zuko": ZukoInverse, "nflows": NflowsInverse, "pyro": PyroInverse}


def find_module(name: str, case: Case) -> Any:
    """The peer's module, with the same weights at every call.

    Raises:
        RuntimeError: its package is not installed.
    """
    return _build_module(name, case.shape.columns, networks.find_hidden_features(case), case.device, case.torch_dtype)


@functools.lru_cache(maxsize=3)
def _build_module(name: str, features: int, hidden_features: tuple[int, ...], device: str, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        try:
            module = MODULES[name](features, hidden_features)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name:
                raise
            raise RuntimeError(f"{_PACKAGES[name]} is not installed") from None
    return module.to(device, dtype)


def make_inverse(name: str) -> Peer:
    """The provider ``name``: a function of z and of its module's parameters, so that all of them get gradients."""

    def function(case: Case) -> Function:
        module = find_module(name, case)
        names = [key for key, _ in module.named_parameters()]

        def run(z: Tensor, *tensors: Tensor) -> Any:
            return torch.func.functional_call(module, dict(zip(names, tensors, strict=True)), (z,))

        return run

    def adapt(case: Case, inputs: Inputs) -> Inputs:
        return (inputs[0], *find_module(name, case).parameters())

    return Peer(function, adapt, comparable=False)
