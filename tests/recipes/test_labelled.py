"""Labelled images, the choice of labels, and batches of few labelled images beside many unlabelled ones."""

import json

import numpy as np
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.data.batches import BinarizedImages
from fastvae.recipes.data.labelled import LabelledImages, draw_labels, load_labelled, split_labelled
from fastvae.recipes.data.semi_supervised import (
    LabelledChunks,
    SemiSupervisedImages,
    SemiSupervisedRows,
    check_pixels,
)
from fastvae.recipes.evaluation.classification import count_classes, measure_classes, predict_classes
from fastvae.recipes.training.labelled_config import LabelledAveragedTrainConfig, LabelledTrainConfig
from tests.recipes.labelled_support import Linear, LinearConfig, LinearSettings, LinearSystem, spots
from tests.recipes.training_support import assert_same_run, metrics, train_on_one_and_two_processes

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")

LABELS = np.random.RandomState(1).randint(0, 4, 200)


@pytest.mark.parametrize("count", [4, 40, 100])
def test_draw_has_equally_many_of_each_class(count):
    rows = draw_labels(LABELS, count, 3, 4)
    assert np.bincount(LABELS[rows]).tolist() == [count // 4] * 4
    assert len(set(rows.tolist())) == count


def test_draw_is_a_function_of_its_seed_and_few_labels_are_among_many():
    assert draw_labels(LABELS, 40, 3, 4).tolist() == draw_labels(LABELS, 40, 3, 4).tolist()
    assert draw_labels(LABELS, 40, 3, 4).tolist() != draw_labels(LABELS, 40, 4, 4).tolist()
    assert set(draw_labels(LABELS, 8, 3, 4)) < set(draw_labels(LABELS, 40, 3, 4))


def test_draws_take_every_image_equally_often():
    draws = 2000
    counts = np.zeros(200)
    for seed in range(draws):
        counts[draw_labels(LABELS, 40, seed, 4)] += 1
    share = 10 / np.bincount(LABELS)[LABELS]
    z = (counts / draws - share) / np.sqrt(share * (1 - share) / draws)
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize(
    ("count", "classes", "message"),
    [
        (10, 4, "labels must be a multiple of the 4 classes and above 0, got 10"),
        (0, 4, "labels must be a multiple of the 4 classes and above 0, got 0"),
        (400, 4, r"labels must leave 100 images of each class, as 400 are asked for; class 0 has \d+"),
        (50, 5, "labels must leave 10 images of each class, as 50 are asked for; class 4 has 0"),
        (3, 3, r"labels must be 0 \.\.\. 2, got 3"),
        (0, 0, "classes must be >= 1, got 0"),
    ],
)
def test_draws_that_cannot_be(count, classes, message):
    with pytest.raises(ValueError, match=message):
        draw_labels(LABELS, count, 0, classes)


def test_labelled_images_are_checked():
    images = np.zeros((2, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"labels must be 0 \.\.\. 9, got -1"):
        LabelledImages(images, np.array([0, -1]), 10)
    with pytest.raises(TypeError, match="labels must be whole numbers, got float64"):
        LabelledImages(images, np.zeros(2), 10)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(3,\)"):
        LabelledImages(images, np.zeros(3, int), 10)
    with pytest.raises(TypeError, match="images must be uint8, got float64"):
        LabelledImages(images / 1.0, np.zeros(2, int), 10)
    with pytest.raises(ValueError, match=r"images must have 3 or 4 dimensions, got shape \(2, 16\)"):
        LabelledImages(images.reshape(2, 16), np.zeros(2, int), 10)


def test_digits():
    train, test = parts = load_labelled("digits")
    assert train.images.shape == (900, 8, 8)
    assert np.bincount(train.labels).tolist() == [90] * 10
    assert (len(test), train.images.max(), train.images.min(), parts.classes) == (897, 255, 0, 10)
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    with pytest.raises(ValueError, match="name must be one of mnist, digits, got 'mnits'"):
        load_labelled("mnits")


def test_mnist(canonical, monkeypatch):
    monkeypatch.setattr("fastvae.recipes.data.labelled.load_mnist", lambda progress: canonical)
    parts = load_labelled("mnist", progress=False)
    assert np.array_equal(parts.x_train, canonical.x_train)
    assert np.array_equal(parts.y_test, canonical.y_test)
    assert (parts.source, parts.classes, parts.train.pixels) == ("synthetic", 10, 784)
    with pytest.raises(RecipeError, match=r"data_features must be 784, .* got 64: --data-features 784"):
        check_pixels(64, parts)


def rows_of(epochs, labelled_batch_size, count=24, seed=0):
    rows = SemiSupervisedRows(np.arange(100, 100 + count), 60, 20, labelled_batch_size, seed)
    found = []
    for epoch in epochs:
        rows.set_epoch(epoch)
        found += list(rows)
    return found


def test_all_labelled_images_are_in_every_batch():
    batches = rows_of([0, 1], 30)
    assert len(batches) == 6
    assert all(batch.labelled.tolist() == list(range(100, 124)) for batch in batches)
    unlabelled = torch.cat([batch.unlabelled for batch in batches[:3]])
    assert unlabelled.sort().values.tolist() == list(range(60))


def test_few_labelled_images_pass_in_turn():
    """Batches of 7 of 24, over the ends of the passes."""
    joint = torch.cat([batch.labelled for batch in rows_of(range(8), 7)])
    passes = joint[: 24 * 7].reshape(7, 24)
    assert (passes.sort(1).values == torch.arange(100, 124)).all()
    assert len({tuple(order.tolist()) for order in passes}) == 7


def test_epochs_can_be_had_again():
    first, again = rows_of([2, 3], 7), rows_of(range(5), 7)[6:12]
    for one, other in zip(first, again, strict=True):
        assert one.labelled.tolist() == other.labelled.tolist()
        assert one.unlabelled.tolist() == other.unlabelled.tolist()
        assert one[1::2] == other[1::2]
    assert len({batch.labelled_seed for batch in first} | {batch.unlabelled_seed for batch in first}) == 12
    assert rows_of([2], 7, seed=1)[0].labelled.tolist() != first[0].labelled.tolist()


@pytest.mark.parametrize("binarize", [True, False])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_labelled_batches(binarize, world_size):
    train = spots(124).train
    for rows in rows_of([1], 8):
        whole = SemiSupervisedImages(train.images, train.labels, binarize=binarize)[rows]
        shares = [
            SemiSupervisedImages(train.images, train.labels, binarize=binarize, rank=rank, world_size=world_size)[rows]
            for rank in range(world_size)
        ]
        assert all(len(share.x_u) == 20 // world_size for share in shares)
        assert all(torch.equal(torch.cat(parts), joint) for joint, *parts in zip(whole, *shares, strict=True))


def test_images_keep_their_labels():
    train = spots().train
    (rows,) = rows_of([0], 24)[:1]
    rows = rows._replace(labelled=rows.labelled - 100)
    x_l, y_l, x_u = SemiSupervisedImages(train.images, train.labels, binarize=False)[rows]
    assert x_l.dtype == torch.float32
    assert x_l.unflatten(1, (4, 4)).sum(2).argmax(1).tolist() == y_l.tolist()
    assert np.array_equal((255 * x_u).round().numpy(), train.images[rows.unlabelled].reshape(20, 16))
    binary = SemiSupervisedImages(train.images, train.labels, binarize=True)[rows]
    expected = BinarizedImages(train.images)[rows.unlabelled, rows.unlabelled_seed]
    assert torch.equal(binary.x_u, expected)


def test_chunks_of_test_images_have_their_labels():
    x, labels = torch.arange(70.0)[:, None], np.arange(70)
    for rank in range(3):
        chunks = LabelledChunks(x, labels, 8, rank=rank, world_size=3)
        for index in range(len(chunks)):
            part, y, first, rows = chunks[index]
            assert part[:, 0].tolist() == y.tolist()
            assert (y[0], rows) == (first, 70)


def test_confusion_and_its_error():
    labels, found = np.array([0, 0, 1, 2, 2, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 2, 0, 0])
    figures = count_classes(found, labels, 3)
    assert figures.confusion == ((1, 1, 0), (0, 1, 0), (2, 0, 3))
    assert (figures.error, figures.test_images) == (37.5, 8)
    assert figures.standard_error == pytest.approx(100 * (0.375 * 0.625 / 8) ** 0.5)


class Guess(Linear):
    """A model that draws its classes."""

    def predict(self, x, *, noise):
        rows = len(x) if noise.rows is None else noise.rows
        found = torch.randint(0, self.config.classes, (rows,), generator=noise.generator)
        return found[noise.first : noise.first + len(x)]


def test_drawn_classes_do_not_depend_on_what_was_measured_before():
    model, parts = Guess(LinearConfig()), spots()
    x, options = torch.zeros(30, 16), {"image_chunk": 8}
    first = measure_classes(model, x, parts.y_test, 3, **options)
    assert measure_classes(model, x, parts.y_test, 3, **options) == first
    assert measure_classes(model, x, parts.y_test, 3, seed=1, **options) != first


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_error_in_training_does_not_depend_on_the_chunks(world_size, tmp_path, monkeypatch):
    """Each number of processes has chunks of its own."""
    model, labels, found = Guess(LinearConfig()), np.arange(30) % 3, torch.zeros(30, dtype=torch.bool)
    task = LinearSystem().make_task(model, TRAINING, tmp_path)
    for rank in range(world_size):
        chunks = LabelledChunks(torch.zeros(30, 16), labels, 16, rank=rank, world_size=world_size)
        for index in range(len(chunks)):
            x, y, first, rows = chunks[index]
            logged = {}
            monkeypatch.setattr(task, "log", lambda name, value, logged=logged, **_: logged.update({name: value}))
            task.validation_step((x, y, first, rows), index)
            drawn = predict_classes(model, torch.zeros(30, 16), TRAINING.seed)[first : first + len(x)]
            assert logged["test_error"] == pytest.approx(100.0 * (drawn != y).double().mean().item())
            found[first : first + len(x)] = True
    assert found.all()


def test_settings_are_checked():
    for kind in (LabelledTrainConfig, LabelledAveragedTrainConfig):
        with pytest.raises(ValueError, match="label_seed must be >= 0, got -1"):
            kind(label_seed=-1)
        with pytest.raises(ValueError, match="label_seed must be <= 2147483647"):
            kind(label_seed=2**31)
        with pytest.raises(ValueError, match="data must be one of mnist, digits, got 'cifar'"):
            kind(data="cifar")
        with pytest.raises(ValueError, match="labelled_batch_size must be >= 1, got 0"):
            kind(labelled_batch_size=0)
    with pytest.raises(ValueError, match="decay_from must lie in"):
        LabelledAveragedTrainConfig(decay_from=2.0)


TRAINING = LabelledTrainConfig(4, 20, learning_rate=1.0, labels=6, label_seed=5, labelled_batch_size=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    settings = LinearSettings(training=TRAINING)
    return LinearSystem().run(settings, folder, images=spots(), accelerator="cpu", progress=False), folder


def test_run_writes_errors_and_labels(whole):
    run, folder = whole
    assert run.figures.error < 20
    result = json.loads((folder / "result.json").read_text())
    assert (result["labels"], result["label_seed"]) == (6, 5)
    assert result["error"] == run.figures.error
    assert np.array(result["confusion"]).sum() == result["test_images"] == 30
    rows = metrics(folder)
    assert float(rows[-1]["test_error"]) == pytest.approx(run.figures.error)
    assert float(rows[0]["train_error"]) >= float(rows[-1]["train_error"])
    assert (folder / "learning_curves.png").exists()


def test_resumed_run_is_the_whole_one(whole, tmp_path):
    settings, options = LinearSettings(training=TRAINING), {"accelerator": "cpu", "progress": False}
    part = LinearSystem().run(settings, tmp_path, images=spots(), limit_epochs=2, **options)
    assert part.figures is None
    found = LinearSystem().run(settings, tmp_path, images=spots(), resume=part.checkpoint, **options)
    assert_same_run(found, whole[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 7}, "labels must be a multiple of the 3 classes"),
        ({"labels": 300}, "labels must leave 100 images of each class"),
        ({"batch_size": 61}, "a batch of 61 is more than the 60 images"),
    ],
)
def test_runs_that_cannot_be(changes, message, tmp_path):
    training = LabelledTrainConfig(epochs=1, **{"batch_size": 20, "labels": 6} | changes)
    with pytest.raises(RecipeError, match=message):
        LinearSystem().run(
            LinearSettings(training=training), tmp_path, images=spots(), accelerator="cpu", progress=False
        )


def test_images_of_another_width(tmp_path, tiny):
    settings = LinearSettings(training=LabelledTrainConfig(epochs=1, batch_size=20, labels=6))
    with pytest.raises(RecipeError, match="data_features must be 784, the pixels of an image of synthetic, got 16"):
        LinearSystem().run(settings, tmp_path, images=split_labelled(tiny, 3), accelerator="cpu", progress=False)


@pytest.mark.thorough
def test_two_processes_train_as_one(tmp_path):
    folders = train_on_one_and_two_processes("labelled_two_processes.py", spots(), tmp_path)
    one, two = (json.loads((folder / "losses.json").read_text()) for folder in folders)
    assert one.keys() == two.keys() == {"m1", "linear"}
    for name, losses in one.items():
        assert len(losses["train"]) == 6
        assert two[name]["train"] == pytest.approx(losses["train"], rel=1e-9)
        assert two[name]["test"] == pytest.approx(losses["test"], rel=1e-6)
