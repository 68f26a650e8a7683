"""Discrete features: a masked network's outputs are their logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..precision import check_dtype, compute_dtype, is_integral, keep_full_precision
from ..reference.autoregressive_inverse import sweep
from ..rng import draw_seed, philox_uniform
from ..structure import MadeStructure
from ..structure.integers import integers
from ._hooks import has_hooks

__all__ = ["DiscreteFeatures"]


def levels_of(params_per_feature: int) -> int:
    """Number of values of a feature: one parameter is the logit of 1, several are the logits of 0, 1, ..."""
    return max(params_per_feature, 2)


def to_values(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Features as the network reads them, k / (levels - 1), from such numbers or from the integers k."""
    if is_integral(x):
        return x.to(dtype) / (levels - 1)
    check_dtype("x", x.dtype, levels, symmetric=False)
    return x.to(dtype)


def to_codes(x: Tensor, levels: int) -> Tensor:
    """The integers k, int64.

    Raises:
        ValueError: a number of ``x`` is none of the values.
    """
    wide = x.double()
    codes = (wide if is_integral(x) else wide * (levels - 1)).round()
    if not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active() and not x.is_meta:
        off = torch.zeros_like(wide) if is_integral(x) else (wide * (levels - 1) - codes).abs()
        slack = 1e-2 if is_integral(x) else max(1e-2, (levels - 1) * torch.finfo(x.dtype).eps)
        wrong = x[(off > slack) | (codes < 0) | (codes >= levels) | wide.isnan()]
        if wrong.numel():
            raise ValueError(
                f"x must hold integers 0 to {levels - 1} or the values k / {levels - 1}, got {wrong[0].item():g}"
            )
    return codes.long()


def log_prob_of(codes: Tensor, logits: Tensor) -> Tensor:
    """Log-probability ``(*)``, nats, of ``codes`` ``(*, D)`` under ``logits`` ``(*, P, D)``."""
    wide = logits.to(compute_dtype(logits.dtype))
    if wide.shape[-2] == 1:
        sign = 1.0 - 2.0 * codes.to(wide.dtype)
        return -functional.softplus(sign * wide[..., 0, :]).sum(-1)
    batch = torch.broadcast_shapes(codes.shape[:-1], wide.shape[:-2])
    codes = codes.expand(*batch, codes.shape[-1]).unsqueeze(-2)
    log_p = functional.log_softmax(wide, -2).expand(*batch, *wide.shape[-2:])
    return log_p.gather(-2, codes).squeeze(-2).sum(-1)


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """Codes ``(*, 1)`` from ``logits`` ``(*, P)`` of one feature and ``uniforms`` ``(*, 1)`` in (0, 1)."""
    logits = logits / temperature
    if logits.shape[-1] == 1:
        return (uniforms < torch.sigmoid(logits)).long()
    cumulated = (logits - logits.amax(-1, keepdim=True)).exp().cumsum(-1)
    return (cumulated <= uniforms * cumulated[..., -1:]).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)


class DiscreteFeatures(nn.Module):
    """A masked network as a model of discrete features. Its outputs are their logits."""

    structure: MadeStructure
    features: int
    context_features: int
    masked_layers: Any
    context_term: Any
    fused_parameters: Any

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        r"""Log-probability of discrete features. The network's outputs are their logits.

        .. math::
            \log p(x) = \sum_i \log p(x_i \mid x_{<i})

        With ``params_per_feature=1`` a feature is 0 or 1, and its parameter the logit of 1. With P >= 2 it is one of P
        categories, and parameter k the logit of category k; the network reads the number k / (P - 1).

        Args:
            x: features, ``(*, D)``: integers 0, ..., P - 1, or the numbers k / (P - 1).
            context: ``(*, context_features)``, if the network has one.

        Returns:
            ``(*)``, nats, float32 (float64 for float64 networks).

        Raises:
            ValueError: ``x`` holds something else, its dtype does not tell the values apart, or shapes do not fit.

        Example:
            >>> from fastvae.nn import MADE
            >>> net = MADE(4, (16,), params_per_feature=3)
            >>> net.log_prob(torch.tensor([[0, 2, 1, 1]])).shape
            torch.Size([1])
        """
        levels = levels_of(self.structure.params_per_feature)
        values = to_values(x, levels, self.masked_layers()[0].weight.dtype)
        return log_prob_of(to_codes(x, levels), self(values, context))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> Tensor:
        """Draws discrete features in one sweep; :meth:`log_prob` gives their log-probability.

        Args:
            n: number of samples.
            context: of each sample, ``(n, context_features)``, or one for all; if the network has one.
            temperature: divides logits; 1 draws from the network's distribution.
            generator: source of the seed; the default generator of the device when None.
            row_offset: number of the first sample, so that shards of a batch draw the noise of the whole.

        Returns:
            ``(n, D)``, the numbers k / (P - 1) that the network reads, 0 or 1 for P = 1; float32 (float64 for float64
            networks). No gradients are recorded.

        Raises:
            ValueError: ``n``, ``temperature`` or ``context`` does not fit.

        Note:
            Plain PyTorch, which uses every weight once. A network with hooks, or with a call of its own, is called once
            for every feature.

        Example:
            >>> from fastvae.nn import MADE
            >>> net = MADE(4, (16,), params_per_feature=1)
            >>> x = net.sample(5, generator=torch.Generator().manual_seed(0))
            >>> x.shape, bool(((x == 0) | (x == 1)).all())
            (torch.Size([5, 4]), True)
        """
        n, row_offset = integers(0, n=n, row_offset=row_offset)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be a finite number > 0, got {temperature!r}")
        levels, like = levels_of(self.structure.params_per_feature), self.masked_layers()[0].weight
        device = like.device
        uniforms = philox_uniform(draw_seed(device, generator), n, self.features, row_offset)
        x = torch.zeros(n, self.features, dtype=like.dtype, device=device)
        if context is not None and context.shape[:-1] not in ((n,), (1,), ()):
            raise ValueError(
                f"context must have shape ({n}, {self.context_features}) or that of one, got {tuple(context.shape)}"
            )

        def find(feature: int, params: Tensor) -> Tensor:
            codes = draw(params, uniforms[:, feature : feature + 1].to(params.dtype), temperature)
            return codes.to(x.dtype) / (levels - 1)

        parameters = None if has_hooks(self) else self.fused_parameters()
        if parameters is not None:
            term = self.context_term(x, context)
            term = None if term is None else term.expand(n, -1)
            with keep_full_precision(device.type):
                x = sweep(x, term, parameters, self.structure, find)
        else:
            for feature in self.structure.features_in_order:
                x[:, feature : feature + 1] = find(feature, self(x, context)[..., feature])
        return x.to(compute_dtype(x.dtype))
