"""The denoising function of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PARAMETERS", "Combinator"]

# Of one unit.
PARAMETERS = 10


class Combinator(nn.Module):
    r"""An estimate of the clean value of every unit, from its noisy value and a guess from above.

    .. math::

        \hat z = (\tilde z - \mu(u))\, v(u) + \mu(u), \qquad
        \mu(u) = a_1\, \sigma(a_2 u + a_3) + a_4 u + a_5, \qquad
        v(u) = a_6\, \sigma(a_7 u + a_8) + a_9 u + a_{10}

    It is the best estimate where z given u is Gaussian. A unit has ten parameters of its own. The slopes
    :math:`a_2, a_7` begin at 1, the others at 0.

    Args:
        units: of the layer.

    Reference:
        *Semi-Supervised Learning with Ladder Networks* (Rasmus, Berglund, Honkala, Valpola, Raiko, 2015).

    Example:
        >>> combinator = Combinator(3)
        >>> combinator(torch.ones(2, 3), torch.zeros(2, 3)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        parameters = torch.zeros(PARAMETERS, units)
        parameters[[1, 6]] = 1.0
        self.parameters_of_units = nn.Parameter(parameters)

    def forward(self, z_tilde: Tensor, u: Tensor) -> Tensor:
        """Estimates ``(N, units)``.

        Args:
            z_tilde: noisy values, ``(N, units)``.
            u: guesses from above, ``(N, units)``.
        """
        a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = self.parameters_of_units
        mu = a1 * torch.sigmoid(a2 * u + a3) + a4 * u + a5
        v = a6 * torch.sigmoid(a7 * u + a8) + a9 * u + a10
        return torch.lerp(mu, z_tilde, v)
