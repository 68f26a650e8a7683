"""SVHN and small-NORB, out of tiny files of their formats."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
from scipy.io import savemat

from fastvae.recipes import RecipeError
from fastvae.recipes.data import small_norb, svhn
from fastvae.recipes.data.small_norb import load_small_norb, parse_norb
from fastvae.recipes.data.svhn import load_svhn

RANDOM = np.random.RandomState(0)
HOUSES = {
    name: (RANDOM.randint(0, 256, (count, 3, 32, 32)).astype(np.uint8), np.arange(count) % 10)
    for name, count in (("train", 20), ("test", 11), ("extra", 3))
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def write_houses(folder, monkeypatch, **changes):
    digests = {}
    for name, (images, labels) in HOUSES.items():
        path = folder / f"{name}_32x32.mat"
        arrays = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)}
        savemat(path, arrays | changes)
        digests[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(svhn, "MD5", digests)


def test_houses(folder, monkeypatch):
    write_houses(folder, monkeypatch)
    parts = load_svhn()
    assert np.array_equal(parts.x_train, HOUSES["train"][0])
    assert parts.y_train.tolist() == HOUSES["train"][1].tolist()
    assert (len(parts.test), parts.classes, parts.train.pixels) == (11, 10, 3072)
    both = load_svhn(extra=True)
    assert np.array_equal(both.x_train, np.concatenate([HOUSES["train"][0], HOUSES["extra"][0]]))
    assert both.y_train.tolist() == [*range(10), *range(10), 0, 1, 2]


def test_houses_that_are_others(folder, monkeypatch):
    digests = dict(svhn.MD5)
    write_houses(folder, monkeypatch)
    path = folder / "train_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(RecipeError, match=r"train_32x32.mat is corrupted or not SVHN's .* MD5 \w+, expected \w+"):
        load_svhn()
    path.write_bytes(content)
    monkeypatch.setattr(svhn, "MD5", digests)
    with pytest.raises(RecipeError, match="expected e26dedcc434d2e4c54c9b2d4a06d8373"):
        load_svhn()
    write_houses(folder, monkeypatch, y=np.full((20, 1), 11))
    with pytest.raises(RecipeError, match=r"y must be 1 \.\.\. 10, got 11 \.\.\. 11"):
        load_svhn()
    write_houses(folder, monkeypatch, X=np.zeros((32, 32, 3, 5), np.uint8))
    with pytest.raises(RecipeError, match=r"X must be uint8 of shape \(32, 32, 3, 20\), got uint8 of shape"):
        load_svhn()


@pytest.mark.parametrize(("load", "name"), [(load_svhn, "train_32x32.mat"), (load_small_norb, "smallnorb-5x46789")])
def test_missing_files(load, name, folder, monkeypatch):
    with pytest.raises(RecipeError, match=rf"there is no {name}.* download it from http.* and put it into {folder}"):
        load()
    monkeypatch.delenv("FASTVAE_DATA")
    with pytest.raises(RecipeError, match=r"\$FASTVAE_DATA is not set\. .* and put it into .*cache"):
        load()


def to_norb(array):
    magic = {np.dtype("u1"): 0x1E3D4C55, np.dtype("i4"): 0x1E3D4C54, np.dtype("f8"): 0x1E3D4C53}[array.dtype]
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    return struct.pack(f"<II{len(sizes)}I", magic, array.ndim, *sizes) + array.tobytes()


@pytest.mark.parametrize(
    "array",
    [np.arange(5, dtype=np.int32) - 2, np.arange(48, dtype=np.uint8).reshape(2, 3, 4, 2), np.ones((2, 3)) / 3],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_of_every_type(array, pack):
    found = parse_norb(pack(to_norb(array)), "a file")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file is no file of NORB"),
        (struct.pack("<II3I", 0x1E3D4C50, 1, 1, 1, 1), "its magic number 0x1e3d4c50 is unknown"),
        (struct.pack("<II3I", 0x1E3D4C55, 9, 1, 1, 1), r"it must have 1 \.\.\. 8 dimensions, got 9"),
        (struct.pack("<II3I", 0x1E3D4C55, 2, 2**31, 2**31, 1), "must have 4611686018427387904 bytes, got 0"),
        (to_norb(np.arange(5, dtype=np.int32))[:-1], r"entries of shape \(5,\) must have 20 bytes, got 19"),
        (gzip.compress(to_norb(np.arange(5, dtype=np.int32)))[:-9], "a file is no file of NORB"),
    ],
    ids=["empty", "magic number", "dimensions", "overflow", "cut", "cut and packed"],
)
def test_damaged_format(content, message):
    with pytest.raises(RecipeError, match=message):
        parse_norb(content, "a file")


def write_toys(folder, **changes):
    """Ten pictures of each part: toys 4, 6, 7 for training and 0, 1 for tests."""
    found = {}
    for part, toys in (("train", [4, 6, 7]), ("test", [0, 1])):
        images = np.random.RandomState(len(toys)).randint(0, 256, (10, 2, 96, 96)).astype(np.uint8)
        info = np.zeros((10, 4), np.int32)
        info[:, 0] = np.resize(toys, 10)
        files = {"dat": images, "cat": np.arange(10, dtype=np.int32) % 5, "info": info} | changes
        for kind, array in files.items():
            (folder / f"{small_norb.NAMES[part]}-{kind}.mat.gz").write_bytes(gzip.compress(to_norb(array), 1))
        found[part] = images
    return found


def test_toys(folder, monkeypatch):
    monkeypatch.setattr(small_norb, "IMAGES", 10)
    images = write_toys(folder)
    assert np.array_equal(load_small_norb(shrink=1).x_test, images["test"])
    parts = load_small_norb()
    assert (parts.x_train.shape, parts.classes, parts.y_train.tolist()) == ((10, 2, 32, 32), 5, [0, 1, 2, 3, 4] * 2)
    assert parts.x_train[3, 1, 4, 5] == round(images["train"][3, 1, 12:15, 15:18].mean())
    with pytest.raises(ValueError, match="shrink must divide 96, got 5"):
        load_small_norb(shrink=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dat": np.zeros((10, 96, 96), np.uint8)}, r"must be uint8 of shape \(10, 2, 96, 96\), got uint8 of shape"),
        ({"cat": np.zeros(10, np.int32)}, r"cat.mat.gz must have 2 of each of 5 classes, got \[10  0  0  0  0  0\]"),
        ({"cat": np.arange(10, dtype=np.int32) - 1}, "cat.mat.gz must have 2 of each of 5 classes"),
        ({"info": np.zeros((10, 4), np.int32)}, r"must show other toys, but share \[0\]"),
    ],
)
def test_toys_that_are_others(changes, message, folder, monkeypatch):
    monkeypatch.setattr(small_norb, "IMAGES", 10)
    write_toys(folder, **changes)
    with pytest.raises(RecipeError, match=message):
        load_small_norb()
