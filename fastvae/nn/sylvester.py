"""Sylvester flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import keep_full_precision
from ..reference.tril_gaussian import strictly_lower
from ..structure.constants import IntegerConstants
from ..structure.integers import integer, integers
from .amortised import AmortisedFlow, check_sizes, log_of_positive, matvec
from .householder import reflect

__all__ = ["SylvesterFlow"]

KINDS = ("orthogonal", "householder", "triangular")


def orthogonalise(matrix: Tensor, iterations: int) -> Tensor:
    r"""Columns brought to orthonormal ones by :math:`A \leftarrow A (I + \frac12 (I - A^\top A))`, ``(*, D, M)``."""
    matrix = matrix / matrix.norm(dim=(-2, -1), keepdim=True)
    for _ in range(iterations):
        matrix = 1.5 * matrix - 0.5 * matrix @ (matrix.mT @ matrix)
    return matrix


class SylvesterFlow(AmortisedFlow):
    r"""Sylvester flow: ``forward``, base noise to sample, is fast; there is no inverse in closed form.

    .. math::
        z' = z + Q R_1 \tanh(R_2 Q^\top z + b), \qquad
        \log|\det| = \sum_i \log\left(1 + (1 - \tanh_i^2)\, (R_1)_{ii} (R_2)_{ii}\right)

    with M orthonormal columns in Q and upper triangular :math:`R_1, R_2`. Their diagonals are tanh of parameters, which
    makes the map invertible.

    Args:
        features: number D of features.
        kind: the form of Q. ``"orthogonal"``: M = ``columns`` columns made orthonormal by ``iterations`` of a
            fixed-point iteration; ``"householder"``: a product of ``reflections`` reflections, M = D; ``"triangular"``:
            the fixed ``permutation``, M = D.
        context_features: width of the context. All parameters are a linear map of it; with 0 they are learned
            themselves.
        columns: M; None: min(D, 32).
        iterations: the count, fixed so that nothing is read back from a GPU. Each multiplies small singular values by
            1.5; 30 are enough for a smallest singular value of 10^-4 of the Frobenius norm.
        reflections: number of reflections.
        permutation: feature that each row of :math:`Q^\top z` takes; None: 0, 1, ... Take the reversed order in every
            other flow of a chain.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)``, dtype of ``z``, and ``log_det``
        ``(*)``, float32 (float64 for float64 inputs); batches broadcast. With ``log_det_map=True`` it is ``(*, D)``:
        the term of each column of Q, spread over the features by the squares of the column's entries.

    Raises:
        ValueError: shapes, sizes or names that do not fit, or a context missing or unexpected.

    Reference:
        *Sylvester Normalizing Flows for Variational Inference* (van den Berg, Hasenclever, Tomczak, Welling, 2018).

    Example:
        >>> flow = SylvesterFlow(8, "orthogonal", 3, columns=4)
        >>> z, log_det = flow(torch.randn(6, 8), torch.randn(6, 3))
        >>> z.shape, log_det.shape
        (torch.Size([6, 8]), torch.Size([6]))
    """

    def __init__(
        self,
        features: int,
        kind: str = "orthogonal",
        context_features: int = 0,
        *,
        columns: int | None = None,
        iterations: int = 30,
        reflections: int = 8,
        permutation: Sequence[int] | Tensor | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        features, context_features = check_sizes(features, context_features)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if kind != "orthogonal" and columns is not None:
            raise ValueError(f"columns must be None with kind={kind!r}, got {columns}")
        if kind != "triangular" and permutation is not None:
            raise ValueError(f"permutation must be None with kind={kind!r}")
        iterations, reflections = integers(1, iterations=iterations, reflections=reflections)
        order = list(range(features)) if permutation is None else [int(place) for place in permutation]
        if sorted(order) != list(range(features)):
            raise ValueError(f"permutation must be one of 0, ..., {features - 1}, got {order}")
        m = features
        if kind == "orthogonal":
            m = min(features, 32) if columns is None else integer("columns", columns)
            if not 1 <= m <= features:
                raise ValueError(f"columns must be between 1 and features, {features}, got {m}")
        basis = {"orthogonal": features * m, "householder": reflections * features, "triangular": 0}[kind]
        triangle = m * (m - 1) // 2
        sizes = [basis, triangle, triangle, m, m, m]
        super().__init__(features, context_features, sum(sizes), device, dtype)
        self.kind, self.columns, self.iterations, self.reflections = kind, m, iterations, reflections
        self._sizes = sizes
        self._constants = IntegerConstants(order)
        self._draw()

    def _start(self, **options: Any) -> Tensor:
        # The diagonal of R1 starts small, and with it the whole step near the identity.
        spreads = (1.0, 0.01, 0.01, 0.01, 1.0, 0.01)
        parts = zip(self._sizes, spreads, strict=True)
        return torch.cat([spread * torch.randn(size, **options) for size, spread in parts])

    @property
    def permutation(self) -> Tensor:
        """The feature at each place, int64."""
        order: Tensor = self._constants.on(self.bias.device)[0]
        return order

    def _basis(self, parameters: Tensor) -> Tensor | list[Tensor]:
        """Q ``(*, D, M)``, or the vectors of its reflections."""
        if self.kind == "orthogonal":
            return orthogonalise(parameters.unflatten(-1, (self.features, self.columns)), self.iterations)
        return list(parameters.unflatten(-1, (self.reflections, self.features)).unbind(-2))

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map."""
        x, parameters = self._prepare(z, context)
        with keep_full_precision(x.device.type):
            basis, upper_1, upper_2, diagonal_1, diagonal_2, b = parameters.split(self._sizes, -1)
            diagonal_1, diagonal_2 = diagonal_1.tanh(), diagonal_2.tanh()
            r1, r2 = (
                strictly_lower(upper, self.columns, packed=True).mT + torch.diag_embed(diagonal)
                for upper, diagonal in ((upper_1, diagonal_1), (upper_2, diagonal_2))
            )
            q = self._basis(basis) if self.kind != "triangular" else None
            h = torch.tanh(matvec(r2, self._into(q, x)) + b)
            out = x + self._out_of(q, matvec(r1, h))
        log_det = log_of_positive(1.0 + (1.0 - h.square()) * diagonal_1 * diagonal_2)
        return out.to(z.dtype), self._shares(q, log_det) if log_det_map else log_det.sum(-1)

    def _into(self, q: Tensor | list[Tensor] | None, x: Tensor) -> Tensor:
        r""":math:`Q^\top x`."""
        if q is None:
            return x[..., self.permutation]
        if isinstance(q, Tensor):
            return matvec(q.mT, x)
        for v in q:
            x = reflect(x, v)
        return x

    def _shares(self, q: Tensor | list[Tensor] | None, terms: Tensor) -> Tensor:
        """The columns' terms of the log-determinant ``(*, M)``, each spread over features by the column's squares."""
        if q is None:
            return self._out_of(None, terms)
        if not isinstance(q, Tensor):
            # Row m of the reflected identity is column m of Q.
            identity = torch.eye(self.features, dtype=terms.dtype, device=terms.device)
            q = self._out_of([v.unsqueeze(-2) for v in q], identity).mT
        squares = q.square()
        # The iteration leaves columns at length 1 up to rounding.
        with keep_full_precision(terms.device.type):
            return matvec(squares / squares.sum(-2, keepdim=True), terms)

    def _out_of(self, q: Tensor | list[Tensor] | None, y: Tensor) -> Tensor:
        """:math:`Q y`."""
        if q is None:
            return y[..., self.permutation.argsort()]
        if isinstance(q, Tensor):
            return matvec(q, y)
        for v in reversed(q):
            y = reflect(y, v)
        return y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kind={self.kind}, columns={self.columns}"
