"""Posteriors of every kind, and their equals among torch.distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from fastvae.distributions import DiagonalGaussian, TriangularGaussian
from tests.support.gaussians import packed_size
from tests.support.implementations import IMPLEMENTATIONS
from tests.support.oracle import assert_as_close_as_eager

KINDS = ("diagonal", "packed", "dense")


CASES = [((4,), 6), ((2, 3), 5), ((), 3), ((5,), 1), ((4,), 33)]


every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


every_kind = pytest.mark.parametrize("kind", KINDS)


every_case = pytest.mark.parametrize(("batch", "features"), CASES)


def parameters(kind, batch, features, dtype=torch.float32, device="cpu"):
    mu, log_sigma = torch.randn(*batch, features), 0.5 * torch.randn(*batch, features)
    made = [mu, log_sigma]
    if kind == "packed":
        made.append(torch.randn(*batch, packed_size(features)) / math.sqrt(features))
    elif kind == "dense":
        tril = torch.randn(*batch, features, features) / math.sqrt(features)
        made.append(tril.masked_fill(torch.ones(features, features, dtype=torch.bool).triu(), math.nan))
    return [t.to(device, dtype).requires_grad_() for t in made]


def posterior(made, impl="auto", **kwargs):
    return (DiagonalGaussian if len(made) == 2 else TriangularGaussian)(*made, impl=impl, **kwargs)


def scale_tril(made):
    """L by hand, entry by entry of the packed layout."""
    mu, log_sigma, *rest = made
    features = mu.shape[-1]
    factor = torch.diag_embed(log_sigma.exp())
    if rest and rest[0].shape[-2:] == (features, features) and rest[0].dim() == mu.dim() + 1:
        return factor + rest[0].tril(-1)
    if rest:
        rows = []
        for i in range(features):
            start = packed_size(i)
            row = torch.nn.functional.pad(rest[0][..., start : start + i], (0, features - i))
            rows.append(row)
        factor = factor + torch.stack(rows, -2)
    return factor


def of_torch(made):
    if len(made) == 2:
        return Independent(Normal(made[0], made[1].exp(), validate_args=False), 1, validate_args=False)
    return of_torch_full(made)


def of_torch_full(made):
    return MultivariateNormal(made[0], scale_tril=scale_tril(made), validate_args=False)


def assert_same(actual, made, function):
    """As near to torch.distributions in float64 as torch.distributions in the same dtype is."""
    eager = function(of_torch(made), made)
    oracle = function(of_torch([t.double() for t in made]), [t.double() for t in made])
    assert_as_close_as_eager(actual.detach(), eager.detach(), oracle.detach(), "value")
