"""Order, binarisation and sharing out, all functions of the seed."""

import hashlib

import numpy as np
import pytest
import torch

from fastvae.recipes.data.batches import (
    BinarizedImages,
    FixedChunks,
    JointBatches,
    binarize_fixed,
    stream_seed,
)


def test_binarisation_has_the_pixel_as_probability():
    # One image for every pixel value.
    images = np.arange(256, dtype=np.uint8)[:, None].repeat(784, 1)
    draws = 50
    dataset = BinarizedImages(images)
    rows = torch.arange(256)
    mean = sum(dataset[rows, seed] for seed in range(draws)).mean(1) / draws
    p = rows / 255.0
    assert mean[0] == 0
    assert mean[255] == 1
    sigma = (p * (1 - p) / (784 * draws)).sqrt()
    # Of 254 pixel values none lies outside 5 standard errors: probability 1 - 1.5e-4.
    assert ((mean - p).abs() <= 5 * sigma).all()


def test_binarisation_is_new_in_every_batch_and_a_function_of_its_seed(tiny):
    dataset = BinarizedImages(tiny.x_train)
    rows = torch.arange(10)
    assert torch.equal(dataset[rows, 7], dataset[rows, 7])
    assert not torch.equal(dataset[rows, 7], dataset[rows, 8])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_joint_batch(tiny, world_size):
    for rows, seed in JointBatches(len(tiny.x_train), 60, seed=0):
        whole = BinarizedImages(tiny.x_train)[rows, seed]
        shares = [
            BinarizedImages(tiny.x_train, rank=rank, world_size=world_size)[rows, seed] for rank in range(world_size)
        ]
        assert torch.equal(torch.cat(shares), whole)


def test_joint_batches_visit_every_row_once():
    batches = JointBatches(100, 20, seed=0)
    rows = torch.cat([rows for rows, _ in batches])
    assert rows.sort().values.tolist() == list(range(100))
    assert len(batches) == 5


def test_incomplete_last_batch_is_left_out():
    assert [len(rows) for rows, _ in JointBatches(107, 20, seed=0)] == [20] * 5


def test_epochs_differ_and_can_be_had_again():
    batches = JointBatches(100, 20, seed=0)

    def epoch(number):
        batches.set_epoch(number)
        rows, seeds = zip(*batches, strict=True)
        return torch.cat(rows).tolist(), set(seeds)

    assert epoch(0) == epoch(0)
    assert epoch(0)[0] != epoch(1)[0]
    assert len(epoch(0)[1] | epoch(1)[1]) == 10
    assert torch.cat([rows for rows, _ in JointBatches(100, 20, seed=1)]).tolist() != epoch(0)[0]


def test_fixed_binarisation_is_frozen():
    images = (np.arange(60 * 784) % 256).astype(np.uint8).reshape(60, 28, 28)
    x = binarize_fixed(images)
    assert x.dtype == torch.float32
    assert x.shape == (60, 784)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    digest = hashlib.sha256(np.packbits(x.numpy().astype(np.uint8)).tobytes()).hexdigest()
    assert digest == "3bb345f0e8c8d50e1beeb0d450a208e53ce54df2b60b4278b55ee6c16fc30254"
    assert not torch.equal(x, binarize_fixed(images, seed=1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 32])
def test_fixed_chunks_cover_the_rows_once(world_size):
    x = torch.arange(70.0)[:, None]
    seen = {}
    for rank in range(world_size):
        chunks = FixedChunks(x, 8, rank=rank, world_size=world_size)
        assert len(chunks) > 0
        for index in range(len(chunks)):
            rows, first, joint = chunks[index]
            assert rows[0, 0] == first
            assert len(rows) <= 8
            assert joint == 70
            assert first not in seen
            seen[first] = rows
    assert torch.equal(torch.cat([seen[first] for first in sorted(seen)]), x)


def test_stream_seeds_differ():
    seeds = [stream_seed(s, stream, step) for s in range(3) for stream in range(4) for step in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
