"""Relaxed Bernoulli units: the concrete distribution, which is biased, and REBAR, which is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as TF
from torch import Tensor

from .. import rng
from ..ops.bernoulli import bernoulli_sample
from . import _checks
from .score_function import score_function

__all__ = ["concrete_sample", "rebar"]


def concrete_sample(
    logits: Tensor,
    temperature: float = 0.5,
    *,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws relaxed Bernoulli units, numbers in (0, 1) with a pathwise gradient.

    .. math::
        s = \sigma\left(\frac{l + \operatorname{logit}(u)}{\tau}\right), \qquad s \to b
        \text{ of } \texttt{bernoulli\_sample} \text{ for } \tau \to 0

    Gradients of a function of s are biased as gradients of the expectation over units.

    Args:
        logits: l, ``(*, D)``.
        temperature: :math:`\tau` > 0.
        uniforms: u in (0, 1), the shape of ``logits``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.

    Returns:
        s, the shape and dtype of ``logits``.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: ``temperature`` is not positive, ``uniforms`` has another shape, or comes with a ``generator``.

    Reference:
        *The Concrete Distribution* (Maddison, Mnih, Teh, 2017).

    Example:
        >>> concrete_sample(torch.tensor([0.0, 3.0]), 0.5, uniforms=torch.tensor([0.5, 0.5]))
        tensor([0.5000, 0.9975])
    """
    (u,) = _draw(logits, temperature, uniforms if uniforms is None else uniforms[None], generator, 1)
    return torch.sigmoid((logits + u.logit()) / temperature)


def rebar(
    function: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    temperature: float = 0.5,
    scale: float = 1.0,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""The value of a function of Bernoulli units, with the gradient of REBAR.

    .. math::
        \left(f(b) - \eta f(\tilde s)\right) \nabla \log q(b) + \eta \nabla f(s) - \eta \nabla f(\tilde s), \qquad
        s = \sigma(z / \tau),\ z = l + \operatorname{logit}(u),\ b = 1[z > 0]

    :math:`\tilde s` is drawn as s is, given b. The control variate has the mean 0, so that the gradient is unbiased.

    Args:
        function: f, maps units ``(*, D)``, also relaxed ones, to ``(*)``, each row by itself. Its dependence on
            ``logits`` other than by the units is not seen: detach it.
        logits: l, ``(*, D)``, with its gradient.
        temperature: :math:`\tau` > 0.
        scale: :math:`\eta`, the weight of the control variate.
        uniforms: numbers in (0, 1), ``(2, *, D)``, instead of drawing them: of z, and of :math:`\tilde z`.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.

    Returns:
        f(b), ``(*)``, with the direct gradient of ``function`` at b, and the gradient of ``logits`` above.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: ``temperature`` is not positive, ``scale`` is not finite, a shape does not fit, or ``uniforms``
            comes with a ``generator``.

    Note:
        ``function`` is called three times.

    Reference:
        *REBAR: Low-Variance, Unbiased Gradient Estimates for Discrete Latent Variable Models* (Tucker, Mnih, Maddison,
        Lawson, Sohl-Dickstein, 2017).

    Example:
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> rebar(lambda b: b.square().sum(-1), logits).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])
    """
    _checks.check_finite(scale=scale)
    u, v = _draw(logits, temperature, uniforms, generator, 2)
    b, log_q = bernoulli_sample(logits, uniforms=u)
    with torch.enable_grad():
        at = logits.detach().requires_grad_()
        sign = 2.0 * b - 1.0
        given_b = sign * TF.softplus(sign * v.logit() - TF.logsigmoid(-sign * at))
        relaxed, conditional = (function(torch.sigmoid(z / temperature)) for z in (at + u.logit(), given_b))
        (gradient,) = torch.autograd.grad((relaxed - conditional).sum(), at)
    signal = function(b)
    by_path = (gradient * (logits - logits.detach())).sum(-1)
    return signal + score_function(log_q, signal, baseline=scale * conditional.detach()) + scale * by_path


def _draw(
    logits: Tensor, temperature: float, uniforms: Tensor | None, generator: torch.Generator | None, draws: int
) -> Tensor:
    """Uniform numbers ``(draws, *, D)``."""
    _checks.check_floating(logits=logits)
    _checks.check_positive(temperature=temperature)
    if logits.dim() == 0:
        raise ValueError("logits must have shape (*, D), got ()")
    shape = (draws, *logits.shape)
    if uniforms is None:
        seed = rng.draw_seed(logits.device, generator)
        rows = logits.shape[:-1].numel() * draws
        return rng.philox_uniform(seed, rows, logits.shape[-1]).view(shape).to(logits.dtype)
    if generator is not None:
        raise ValueError("uniforms and generator exclude each other: uniforms are what generator would draw")
    _checks.check_floating(uniforms=uniforms)
    if uniforms.shape != shape:
        wanted = shape if draws > 1 else shape[1:]
        got = uniforms.shape if draws > 1 else uniforms.shape[1:]
        raise ValueError(f"uniforms must have shape {wanted}, got {tuple(got)}")
    return uniforms.to(logits.dtype)
