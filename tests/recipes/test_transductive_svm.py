"""The transductive support vector machine."""

import itertools

import numpy as np
import pytest
from sklearn.svm import SVC

from fastvae.recipes.uses.transductive_svm import TransductiveSVM, hinge, slope


def moons(count=200, seed=0, noise=0.05):
    random = np.random.RandomState(seed)
    angle, labels = random.uniform(0, np.pi, count), np.arange(count) % 2
    x = np.where(labels, 1.0 - np.cos(angle), np.cos(angle)), np.where(labels, 0.5 - np.sin(angle), np.sin(angle))
    return np.stack(x, 1) + noise * random.randn(count, 2), labels


X, Y = moons()
FEW = np.array([0, 2, 4, 1, 3, 5])
MACHINE = {"gamma": 8.0, "cost": 10.0, "cost_u": 1.0}


@pytest.fixture(scope="module")
def machine():
    return TransductiveSVM(**MACHINE).fit(X[FEW], Y[FEW], X[6:], classes=2)


def test_two_moons_with_six_labels(machine):
    """The labels alone do not tell the moons apart."""
    alone = SVC(C=10.0, gamma=8.0).fit(X[FEW], Y[FEW]).predict(X)
    assert (alone != Y).mean() > 0.05
    fresh, classes = moons(seed=1)
    assert (machine.predict(X) == Y).all()
    assert (machine.predict(fresh) == classes).all()


def test_objective_never_grows(machine):
    assert len(machine.objectives) == 4
    for found in machine.objectives:
        assert len(found) > 1
        assert all(after <= before + 1e-9 * abs(before) for before, after in itertools.pairwise(found))


def test_balance_is_kept(machine):
    outputs = machine.decide(X[6:])
    assert np.abs(outputs.mean(0)).max() < 1e-9
    assert np.abs(outputs.sum(1)).max() < 1e-3


def test_without_pull_of_unlabelled_rows_it_is_a_support_vector_machine():
    machine = TransductiveSVM(gamma=0.5, cost=1.0, cost_u=1e-6, landmarks=500).fit(X, Y, X, classes=2)
    expected = SVC(C=1.0, gamma=0.5).fit(X, Y).decision_function(X)
    found = machine.decide(X)[:, 1]
    assert np.abs(found - expected).max() < 0.1
    assert np.corrcoef(found, expected)[0, 1] > 0.999


def test_convex_part_has_its_gradient(monkeypatch):
    """The gradient that the solver gets, against differences."""
    calls = []

    def watch(measure, start, **options):
        random = np.random.RandomState(0)
        at, direction = random.randn(len(start)), random.randn(len(start))
        value = [measure(at + step * direction)[0] for step in (1e-5, -1e-5)]
        calls.append((np.subtract(*value) / 2e-5, measure(at)[1] @ direction))
        return type("Found", (), {"x": at})

    monkeypatch.setattr("fastvae.recipes.uses.transductive_svm.minimize", watch)
    TransductiveSVM(**MACHINE, stages=1, steps=2).fit(X[FEW], Y[FEW], X[6:], classes=2)
    assert len(calls) >= 2
    for found, expected in calls:
        assert found == pytest.approx(expected, rel=1e-6)


def test_hinge_and_its_slope():
    t = np.linspace(-1, 1, 401)
    assert (hinge(t)[t > 0.1] == t[t > 0.1]).all()
    assert (hinge(t)[t < -0.1] == 0).all()
    assert np.abs((hinge(t + 1e-6) - hinge(t - 1e-6)) / 2e-6 - slope(t)).max() < 1e-5


def test_three_classes():
    random = np.random.RandomState(0)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    y = np.arange(90) % 3
    x = centres[y] + 0.5 * random.randn(90, 2)
    machine = TransductiveSVM(cost_u=1.0, landmarks=50).fit(x[:6], y[:6], x[6:], classes=3)
    assert machine.decide(x).shape == (90, 3)
    assert (machine.predict(x) == y).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cost": 0.0}, "cost must be > 0 and finite, got 0.0"),
        ({"gamma": np.inf}, "gamma must be > 0 and finite, got inf"),
        ({"ramp": 0.5}, r"ramp must lie in \(-1, 0\], got 0.5"),
        ({"stages": 0}, "stages must be >= 1, got 0"),
    ],
)
def test_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TransductiveSVM(**options)


@pytest.mark.parametrize(
    ("x", "y", "unlabelled", "message"),
    [
        (X[:4], Y[:4], X[:0], "x and unlabelled must be rows of one width"),
        (X[:4], Y[:4], X[:4, :1], "x and unlabelled must be rows of one width"),
        (X[:4], Y[:3], X, r"y must be 4 classes in 0 \.\.\. 1, got shape \(3,\)"),
        (X[:4], Y[:4] + 1, X, r"y must be 4 classes in 0 \.\.\. 1"),
    ],
)
def test_rows_that_do_not_fit(x, y, unlabelled, message):
    with pytest.raises(ValueError, match=message):
        TransductiveSVM().fit(x, y, unlabelled, classes=2)
