"""Static binarised MNIST: where it is found, what is refused, and that binarisation leaves it as it is."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.recipes import RecipeError
from fastvae.recipes.data import mnist as data
from fastvae.recipes.data import static_mnist
from fastvae.recipes.data.batches import BinarizedImages, JointBatches, binarize_fixed
from fastvae.recipes.data.static_mnist import load_binary_images, load_static_mnist, split_mnist
from tests.recipes.pixel_support import keep, pack, static_images


@pytest.fixture
def images(tiny, monkeypatch, tmp_path):
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return static_images(tiny)


def assert_same(found, expected):
    for name in ("x_train", "x_valid", "x_test"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == np.uint8
        assert np.array_equal(ours, theirs), name


def test_given_folder_then_cache(images, monkeypatch, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    monkeypatch.setenv("FASTVAE_DATA", str(given))
    keep(images, data.cache_folder(), monkeypatch)
    assert load_static_mnist().source == str(data.cache_folder() / "binarized_mnist.npz")
    keep(images, given, monkeypatch)
    found = load_binary_images("static")
    assert found.source == str(given / "binarized_mnist.npz")
    assert_same(found, images)


def test_static_images_stay_as_they_are(images):
    x = torch.from_numpy(images.x_train.reshape(250, -1)) / 255
    assert torch.equal(binarize_fixed(images.x_train), x)
    rows, seed = next(iter(JointBatches(250, 50, 0)))
    assert torch.equal(BinarizedImages(images.x_train)[rows, seed], x[rows])


def test_validation_images_join(images):
    joint = images.with_validation()
    assert np.array_equal(joint.x_train, np.concatenate([images.x_train, images.x_valid]))
    assert joint.x_test is images.x_test


def test_dynamic_images(canonical):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    found = load_binary_images("dynamic", progress=False)
    assert_same(found, split_mnist(canonical))
    assert [len(x) for x in (found.x_train, found.x_valid, found.x_test)] == [250, 50, 60]
    assert np.array_equal(np.concatenate([found.x_train, found.x_valid]), canonical.x_train)


def test_absent(images, monkeypatch, tmp_path):
    with pytest.raises(RecipeError) as refused:
        load_static_mnist()
    said = str(refused.value)
    assert f"there is no binarized_mnist.npz in {data.cache_folder()} ($FASTVAE_DATA is not set)" in said
    assert f"put binarized_mnist.npz into {data.cache_folder()}" in said
    assert "--data dynamic" in said
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    with pytest.raises(RecipeError, match=f"none in .FASTVAE_DATA, {tmp_path}"):
        load_static_mnist()
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match="FASTVAE_DATA must name a folder"):
        load_static_mnist()


@pytest.mark.parametrize("fault", ["bit", "shape", "dtype", "missing", "no archive"])
def test_unsound_file(images, fault, monkeypatch):
    folder = data.cache_folder()
    keep(images, folder, monkeypatch)
    path, arrays = folder / "binarized_mnist.npz", pack(images)
    if fault == "bit":
        arrays["valid"][3, 5] ^= 1
    elif fault == "shape":
        arrays["valid"] = arrays["valid"][:, :97]
    elif fault == "dtype":
        arrays["valid"] = arrays["valid"].astype(np.int16)
    elif fault == "missing":
        del arrays["valid"]
    np.savez(path, **arrays)
    if fault == "no archive":
        path.write_bytes(b"no archive")
    wanted = "cannot be read" if fault in ("missing", "no archive") else "is corrupted or not static binarised MNIST: v"
    with pytest.raises(RecipeError, match=wanted):
        load_static_mnist()


def test_kind_that_does_not_exist():
    with pytest.raises(ValueError, match="kind must be one of static, dynamic, got 'both'"):
        load_binary_images("both")


def test_the_true_file():
    """Where it is at hand: its checksums, and what is known of it."""
    path = Path(os.environ.get("FASTVAE_DATA", "")) / static_mnist.FILE
    if not path.is_file():
        pytest.skip(f"there is no {static_mnist.FILE} in $FASTVAE_DATA")
    found = load_static_mnist()
    assert [len(x) for x in (found.x_train, found.x_valid, found.x_test)] == [50_000, 10_000, 10_000]
    assert (found.x_train / 255).mean() == pytest.approx(0.13056, abs=1e-5)
