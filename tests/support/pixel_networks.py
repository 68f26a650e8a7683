"""Pixel networks of every family and their contexts."""

from __future__ import annotations

import pytest
import torch

CONTEXTS = [{}, {"context_features": 4}, {"context_channels": 2}]


contexts = pytest.mark.parametrize("context", CONTEXTS, ids=["plain", "vector", "map"])


def make_net(network, channels=1, layers=2, width=6, **options):
    return network(channels, width, layers, **{"first_kernel_size": 3, "likelihood": "bernoulli"} | options).eval()


def context_of(context, n, h, w):
    if "context_features" in context:
        return torch.randn(n, context["context_features"])
    return torch.randn(n, context["context_channels"], h, w) if context else None
