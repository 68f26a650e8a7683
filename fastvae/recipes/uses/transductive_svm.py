"""A transductive support vector machine: the convex-concave procedure with the ramp loss."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

__all__ = ["TransductiveSVM"]

# The hinge is a parabola so near to its corner, in units of the margin: then it has a gradient.
CORNER = 0.1


class Parts(NamedTuple):
    """What the objective is made of, after the map into the space of the kernel.

    Args:
        labelled: centred features of the labelled rows, ``(N_l, R)``.
        signs: +1 for the class of a machine, -1 for another, ``(N_l, C)``.
        unlabelled: centred features of the unlabelled rows, ``(N_u, R)``.
        offset: the mean of the outputs, ``(C,)``.
        cost: of a labelled error.
        cost_u: of an unlabelled one.
    """

    labelled: np.ndarray
    signs: np.ndarray
    unlabelled: np.ndarray
    offset: np.ndarray
    cost: float
    cost_u: float


class TransductiveSVM:
    r"""One machine for each class against the others, whose margin also keeps clear of unlabelled rows.

    .. math::
        \min_w\ \tfrac12 |w|^2 + C \sum_l H_1(y_l f_l) + C_u \sum_u R(f_u) + R(-f_u), \qquad
        H_a(t) = \max(0, a - t), \qquad R(t) = H_1(t) - H_s(t)

    R is the ramp: it grows no more below s, so that a row far on the wrong side pulls no longer. Its part
    :math:`-H_s` is concave. Each step of the procedure replaces it by its tangent and solves what is left, which is
    convex. The objective never grows. The mean output on the unlabelled rows is kept at the mean of the labels, without
    which all rows could fall to one side. The kernel is exp(-gamma d^2), approximated by landmarks if there are many
    rows. The corners of the hinges are rounded.

    Args:
        cost: C.
        cost_u: C_u, at the end; it is raised to it in ``stages``, as a start near to the labelled rows needs.
        ramp: s, in (-1, 0].
        gamma: of the kernel; 1 / (columns × variance) if None.
        stages: values of C_u, each twice the one before.
        steps: the most steps of the procedure for each.
        landmarks: the most rows that span the space of the kernel.
        seed: of the choice of the landmarks.

    Raises:
        ValueError: a number is out of its range.

    Reference:
        *Large Scale Transductive SVMs* (Collobert, Sinz, Weston, Bottou, 2006).

    Example:
        >>> x = np.array([[0.0], [1.0], [0.1], [0.2], [0.9], [0.8]])
        >>> machine = TransductiveSVM(gamma=5.0).fit(x[:2], np.array([0, 1]), x[2:], classes=2)
        >>> machine.predict(x).tolist()
        [0, 1, 0, 0, 1, 1]
    """

    def __init__(
        self,
        *,
        cost: float = 10.0,
        cost_u: float = 0.1,
        ramp: float = -0.3,
        gamma: float | None = None,
        stages: int = 4,
        steps: int = 10,
        landmarks: int = 600,
        seed: int = 0,
    ) -> None:
        for name, value in (("cost", cost), ("cost_u", cost_u), ("gamma", 1.0 if gamma is None else gamma)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        if not -1 < ramp <= 0:
            raise ValueError(f"ramp must lie in (-1, 0], got {ramp}")
        for name, number in (("stages", stages), ("steps", steps), ("landmarks", landmarks)):
            if number < 1:
                raise ValueError(f"{name} must be >= 1, got {number}")
        self.cost, self.cost_u, self.ramp, self.gamma = cost, cost_u, ramp, gamma
        self.stages, self.steps, self.landmarks, self.seed = stages, steps, landmarks, seed

    def fit(self, x: np.ndarray, y: np.ndarray, unlabelled: np.ndarray, *, classes: int) -> TransductiveSVM:
        """Learns from labelled rows ``(N_l, D)``, their classes ``(N_l,)``, and unlabelled rows ``(N_u, D)``.

        ``objectives`` then has the objective after every step, a list for each value of C_u.

        Raises:
            ValueError: rows are missing or not as wide, or a class is outside 0 ... ``classes`` - 1.
        """
        if x.ndim != 2 or unlabelled.ndim != 2 or x.shape[1] != unlabelled.shape[1] or not len(x) * len(unlabelled):
            raise ValueError(f"x and unlabelled must be rows of one width, got {x.shape} and {unlabelled.shape}")
        if y.shape != (len(x),) or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"y must be {len(x)} classes in 0 ... {classes - 1}, got shape {y.shape}")
        parts = self._map(x, y, unlabelled, classes)
        weight = np.zeros((parts.labelled.shape[1], classes))
        weight = self._solve(parts._replace(cost_u=0.0), np.zeros((len(unlabelled), classes)), weight)
        self.objectives: list[list[float]] = []
        for stage in range(self.stages):
            parts = parts._replace(cost_u=self.cost_u * 2.0 ** (stage + 1 - self.stages))
            found = [self._objective(parts, weight)]
            for _ in range(self.steps):
                outputs = parts.unlabelled @ weight + parts.offset
                # The slopes of the concave part, for a row as one of the class, and as one of another.
                tangent = slope(self.ramp - outputs) - slope(self.ramp + outputs)
                weight = self._solve(parts, parts.cost_u * tangent, weight)
                found.append(self._objective(parts, weight))
                if found[-2] - found[-1] < 1e-4 * abs(found[-1]):
                    break
            self.objectives.append(found)
        self.weight, self.offset = weight, parts.offset
        return self

    def decide(self, x: np.ndarray) -> np.ndarray:
        """The outputs of the machines, ``(N, C)``."""
        return (self._features(x) - self.centre) @ self.weight + self.offset

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The classes of rows, ``(N,)``."""
        return np.concatenate([self.decide(rows).argmax(1) for rows in np.array_split(x, 1 + len(x) // 5000)])

    def _map(self, x: np.ndarray, y: np.ndarray, unlabelled: np.ndarray, classes: int) -> Parts:
        rows = np.concatenate([x, unlabelled]).astype(np.float64)
        self.scale = 1.0 / (rows.shape[1] * max(rows.var(), 1e-12)) if self.gamma is None else self.gamma
        chosen = np.random.RandomState(self.seed).permutation(len(rows))[: self.landmarks]
        self.marks = rows[chosen]
        values, vectors = np.linalg.eigh(self._kernel(self.marks))
        kept = values > 1e-9 * values[-1]
        self.project = vectors[:, kept] / np.sqrt(values[kept])
        features = self._features(unlabelled)
        # Features without a mean, and an output's mean of its own, keep the balance exactly.
        self.centre = features.mean(0)
        signs = np.where(y[:, None] == np.arange(classes), 1.0, -1.0)
        labelled = self._features(x) - self.centre
        return Parts(labelled, signs, features - self.centre, signs.mean(0), self.cost, self.cost_u)

    def _kernel(self, x: np.ndarray) -> np.ndarray:
        return np.exp(-self.scale * cdist(x, self.marks, "sqeuclidean"))

    def _features(self, x: np.ndarray) -> np.ndarray:
        return self._kernel(x.astype(np.float64)) @ self.project

    def _solve(self, parts: Parts, tangent: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The least of the convex part with the tangent ``(N_u, C)`` of the concave one."""

        def measure(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weight = flat.reshape(start.shape)
            margins = 1.0 - parts.signs * (parts.labelled @ weight + parts.offset)
            value = 0.5 * (weight**2).sum() + parts.cost * hinge(margins).sum()
            gradient = weight - parts.labelled.T @ (parts.cost * parts.signs * slope(margins))
            if parts.cost_u:
                outputs = parts.unlabelled @ weight + parts.offset
                value += parts.cost_u * (hinge(1.0 - outputs) + hinge(1.0 + outputs)).sum() + (tangent * outputs).sum()
                pull = parts.cost_u * (slope(1.0 + outputs) - slope(1.0 - outputs)) + tangent
                gradient += parts.unlabelled.T @ pull
            return value, gradient.ravel()

        options = {"maxiter": 200, "ftol": 1e-7, "gtol": 1e-6}
        found: np.ndarray = minimize(measure, start.ravel(), jac=True, method="L-BFGS-B", options=options).x
        return found.reshape(start.shape)

    def _objective(self, parts: Parts, weight: np.ndarray) -> float:
        margins = 1.0 - parts.signs * (parts.labelled @ weight + parts.offset)
        value = 0.5 * (weight**2).sum() + parts.cost * hinge(margins).sum()
        for outputs in (parts.unlabelled @ weight + parts.offset, -(parts.unlabelled @ weight) - parts.offset):
            value += parts.cost_u * (hinge(1.0 - outputs) - hinge(self.ramp - outputs)).sum()
        return float(value)


def hinge(t: np.ndarray) -> np.ndarray:
    """max(0, t), with a round corner."""
    return np.where(t > CORNER, t, np.clip(t + CORNER, 0.0, None) ** 2 / (4.0 * CORNER))


def slope(t: np.ndarray) -> np.ndarray:
    """The derivative of :func:`hinge`."""
    return np.clip((t + CORNER) / (2.0 * CORNER), 0.0, 1.0)
