"""Data files that expand beyond reason, or hold anything but arrays of bytes, are refused before they are expanded."""

import gzip
import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest

from fastvae.recipes import RecipeError
from fastvae.recipes.data.array_files import MOST_BYTES, parse_idx, read_npz

MIB = 2**20


def npy_header(shape, descr="|u1", order=False):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": order, "shape": shape})
    return file.getvalue()


def archive(path, content, method=zipfile.ZIP_DEFLATED, name="x.npy"):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as file:
        file.writestr(name, content)
    return path


def read_error(path):
    """What is said of the file, on one line, without memory for its content."""
    tracemalloc.start()
    try:
        with pytest.raises(RecipeError) as error:
            read_npz(path, ["x"], "a test")
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    said = str(error.value)
    assert str(path) in said
    assert "delete it or replace it by a sound copy" in said
    assert "\n" not in said
    return said


def test_arrays_come_back(tmp_path):
    arrays = {"x": np.arange(12, dtype=np.uint8).reshape(3, 4), "y": np.zeros((0, 3), np.uint8)}
    arrays["z"] = np.asfortranarray(arrays["x"])
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz", arrays, "a test")
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert found[name].flags.writeable


def test_bombs(tmp_path):
    path = archive(tmp_path / "bomb.npz", npy_header((2 * MOST_BYTES,)) + bytes(2 * MOST_BYTES))
    assert path.stat().st_size < MIB
    assert f"x must have at most {MOST_BYTES} bytes, got" in read_error(path)
    path = archive(tmp_path / "claim.npz", npy_header((10**6, 10**6)) + bytes(9))
    assert f"x must be uint8 with at most {MOST_BYTES} bytes, got uint8 of shape (1000000, 1000000)" in read_error(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_expand_whole_blocks(method, tmp_path):
    path = tmp_path / "other.npz"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("x.npy", npy_header((9,)) + bytes(9))
    assert "must be stored or deflated" in read_error(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_header((3,), "|O") + b"cos\nsystem\n(S'false'\ntR.", "x must be uint8 .* got object of shape"),
        (npy_header((3,), "<f4") + bytes(12), "x must be uint8 .* got float32 of shape"),
        (npy_header((3,)) + bytes(2), "must have 3 bytes, got 2"),
        (npy_header((3,)) + bytes(4), "must have 3 bytes, got more"),
        (npy_header((-1,)) + bytes(4), "x must be uint8"),
        (npy_header((3,))[:20], "cannot be read"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\x09\x00" + bytes(50), "npy version 1.0 or 2.0, got 9.0"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"[" * 65535, "cannot be read"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "cannot be read"),
    ],
)
def test_members_that_are_no_bytes(content, message, tmp_path):

    assert re.search(message, read_error(archive(tmp_path / "bad.npz", content)))


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "folder", "absent", "no such array", "damaged"])
def test_archives_that_are_none(kind, tmp_path):
    path = archive(tmp_path / "bad.npz", npy_header((900,)) + np.random.RandomState(0).bytes(900))
    content = path.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "truncated":
        path.write_bytes(content[:-30])
    elif kind == "damaged":
        path.write_bytes(content[:300] + b"\0\0\0" + content[303:])
    elif kind == "no such array":
        archive(path, npy_header((1,)) + b"\0", name="y.npy")
    else:
        path.unlink()
        if kind == "folder":
            path.mkdir()
    assert "cannot be read" in read_error(path)


def test_every_damaged_byte_of_an_archive(tmp_path):
    x = np.arange(200, dtype=np.uint8)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x=x)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_npz(path, ["x"], "a test")["x"]
        except RecipeError as error:
            said = str(error)
        else:
            said = "" if np.array_equal(found, x) else "another\narray"
        assert "\n" not in said, place


def test_idx_bombs():
    content = gzip.compress(b"\0\0\x08\1" + (2 * MOST_BYTES).to_bytes(4, "big") + bytes(2 * MOST_BYTES), 1)
    assert len(content) < MIB
    tracemalloc.start()
    with pytest.raises(RecipeError, match=f"bomb is no idx file .it must have at most {MOST_BYTES} bytes, got more"):
        parse_idx(content, "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * MOST_BYTES


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"\0\0\x08", b"\0\0\x08\xff" + bytes(9), b"\0\0\x08\2" + b"\xff" * 8, b"\x1f\x8b\x08" + bytes(9)],
)
def test_idx_files_that_are_none(content):
    with pytest.raises(RecipeError, match="bad is no idx file"):
        parse_idx(content, "bad")
