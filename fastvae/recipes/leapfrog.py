"""Steps of Hamiltonian dynamics."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["leapfrog"]


def leapfrog(
    z: Tensor, v: Tensor, gradient: Callable[[Tensor], Tensor], step_size: Tensor, mass: Tensor
) -> tuple[Tensor, Tensor]:
    r"""One step of Hamiltonian dynamics, reversible and of unit volume.

    .. math::
        v_{1/2} = v + \tfrac\epsilon2 \nabla \log p(z), \quad z' = z + \epsilon\, v_{1/2} / m, \quad
        v' = v_{1/2} + \tfrac\epsilon2 \nabla \log p(z')

    Args:
        z: positions, ``(*, D)``.
        v: momenta, ``(*, D)``.
        gradient: of the log-density at positions.
        step_size: epsilon of each dimension, ``(D,)``.
        mass: m of each dimension, ``(D,)``.
    """
    v = v + 0.5 * step_size * gradient(z)
    z = z + step_size * v / mass
    return z, v + 0.5 * step_size * gradient(z)
