"""Classifiers on features of a trained model, with few labels: how well the latents separate the classes."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.labelled import LabelledParts, draw_labels
from ..data.semi_supervised import prepare_test_images
from ..errors import RecipeError
from ..evaluation.classification import count_classes
from ..evaluation.features import features
from ..settings import check_choices, check_positive, check_whole
from .transductive_svm import TransductiveSVM

__all__ = ["CLASSIFIERS", "ClassifyFigures", "ClassifySettings", "Data", "classify", "extract"]

# Of SelfTrainingClassifier: the least probability of a label of its own.
CERTAIN = 0.75


@dataclass(frozen=True)
class ClassifySettings:
    """The classifier, as plain data.

    Args:
        classifier: a support vector machine on the labelled images; the same that labels what it is certain of, and
            learns again (self-training); or a transductive one (tsvm).
        input: what is classified: the means of the active latents, or the pixels.
        labels: how many images have one, equally many of each class.
        label_seed: of the first choice of these; the next has the next number.
        draws: how many choices.
        unlabelled: images without label that self-training and tsvm get, too.
        cost: of an error of a labelled image.
        cost_u: of an unlabelled image near to a border, for tsvm.

    Raises:
        ValueError: a value is none of its choices, or a number is out of its range.
    """

    classifier: Literal["svm", "self-training", "tsvm"] = "svm"
    input: Literal["features", "pixels"] = "features"
    labels: int = 100
    label_seed: int = 0
    draws: int = 5
    unlabelled: int = 5000
    cost: float = 10.0
    cost_u: float = 0.3

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, labels=1, label_seed=0, draws=1, unlabelled=1)
        check_positive(self, "cost", "cost_u")


@dataclass(frozen=True)
class ClassifyFigures:
    """Errors on test images, in %.

    Args:
        error: the mean over the choices of labels.
        deviation: the standard deviation over them; None for one.
        standard_error: of the first choice's error, over images.
        errors: of each choice.
        test_images: how many there are.
        features: numbers of an image that are classified.
        confusion: of the first choice, a row for each class.
    """

    error: float
    deviation: float | None
    standard_error: float
    errors: tuple[float, ...]
    test_images: int
    features: int
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Data:
    """What is classified, ``(N, F)``, and the classes."""

    train: np.ndarray
    y_train: np.ndarray
    test: np.ndarray
    y_test: np.ndarray
    classes: int


def extract(model: Any, parts: LabelledParts, kind: str) -> Data:
    """Features of all images, from their intensities.

    Args:
        model: its ``encode`` returns a diagonal Gaussian.
        parts: the images.
        kind: ``"features"``: the means of the latents that are active on the training images; or ``"pixels"``.

    Raises:
        RecipeError: no latent is active.
    """
    train, test = (prepare_test_images(part.images, binarize=False) for part in parts)
    if kind == "features":
        found = features(model, train)
        if not found.mean.shape[1]:
            raise RecipeError("the model has no active latent: its posterior means are the same for all images")
        train, test = found.mean, features(model, test, active=found.active).mean
    return Data(train.numpy(), parts.y_train, test.numpy(), parts.y_test, parts.classes)


def classify(
    data: Data, settings: ClassifySettings, *, report: Callable[[int, float, float], Any] = lambda *_: None
) -> ClassifyFigures:
    """Trains and tests a classifier for each choice of labels.

    Args:
        data: what is classified.
        settings: the classifier.
        report: is called after each choice with its seed, its error and its seconds.

    Raises:
        RecipeError: the labels cannot be chosen so.
    """
    found = []
    for seed in range(settings.label_seed, settings.label_seed + settings.draws):
        try:
            labelled = draw_labels(data.y_train, settings.labels, seed, data.classes)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        began = time.perf_counter()
        unlabelled = draw_unlabelled(data, labelled, settings, seed)
        predicted = CLASSIFIERS[settings.classifier](data, labelled, unlabelled, settings)
        found.append(count_classes(predicted, data.y_test, data.classes))
        report(seed, found[-1].error, time.perf_counter() - began)
    errors = [figures.error for figures in found]
    return ClassifyFigures(
        error=float(np.mean(errors)),
        deviation=float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        standard_error=found[0].standard_error,
        errors=tuple(errors),
        test_images=found[0].test_images,
        features=data.train.shape[1],
        confusion=found[0].confusion,
    )


def draw_unlabelled(data: Data, labelled: np.ndarray, settings: ClassifySettings, seed: int) -> np.ndarray:
    """Rows of unlabelled training images, none of them labelled."""
    others = np.setdiff1d(np.arange(len(data.train)), labelled)
    return np.random.RandomState(seed).permutation(others)[: settings.unlabelled]


def fit_svm(data: Data, labelled: np.ndarray, unlabelled: np.ndarray, settings: ClassifySettings) -> np.ndarray:
    from sklearn.svm import SVC

    machine = SVC(C=settings.cost).fit(data.train[labelled], data.y_train[labelled])
    found: np.ndarray = machine.predict(data.test)
    return found


def fit_self_training(
    data: Data, labelled: np.ndarray, unlabelled: np.ndarray, settings: ClassifySettings
) -> np.ndarray:
    from sklearn.semi_supervised import SelfTrainingClassifier
    from sklearn.svm import SVC

    if len(labelled) < 2 * data.classes:
        raise RecipeError(
            f"labels must be >= {2 * data.classes} for self-training, which takes half of them to judge its own "
            f"certainty, got {len(labelled)}"
        )
    rows = np.concatenate([labelled, unlabelled])
    known = np.concatenate([data.y_train[labelled], np.full(len(unlabelled), -1)])
    with warnings.catch_warnings():
        # scikit-learn 1.9 advises CalibratedClassifierCV, whose probabilities are never as certain as CERTAIN.
        warnings.filterwarnings("ignore", category=FutureWarning)
        machine = SVC(C=settings.cost, probability=True, random_state=0)
        taught = SelfTrainingClassifier(machine, threshold=CERTAIN).fit(data.train[rows], known)
    found: np.ndarray = taught.predict(data.test)
    return found


def fit_transductive(
    data: Data, labelled: np.ndarray, unlabelled: np.ndarray, settings: ClassifySettings
) -> np.ndarray:
    machine = TransductiveSVM(cost=settings.cost, cost_u=settings.cost_u)
    machine.fit(data.train[labelled], data.y_train[labelled], data.train[unlabelled], classes=data.classes)
    return machine.predict(data.test)


CLASSIFIERS = {"svm": fit_svm, "self-training": fit_self_training, "tsvm": fit_transductive}
