"""Large outputs: kept blocks, and writes past the caches."""

import gc
import os
import threading

import pytest
import torch

import fastvae.functional as F
from fastvae import _C, backend

MIB = 1 << 20


@pytest.fixture(autouse=True)
def blocks():
    """Blocks are used for large outputs unless torch is asked to fill uninitialised memory."""
    torch.use_deterministic_algorithms(False)
    gc.collect()
    backend.release_memory()
    yield
    gc.collect()
    backend.release_memory()


def inputs(rows, features, dense=None):
    made = [torch.randn(rows, features), 0.3 * torch.randn(rows, features)]
    if dense is not None:
        made.append(torch.randn(rows, features, features) / features)
        if not dense:
            row, column = torch.tril_indices(features, features, -1)
            made[-1] = made[-1][:, row, column].contiguous()
    return made


def run(rsample, parameters, upstream, row_offset=0):
    parameters = [p.detach().requires_grad_() for p in parameters]
    generator = torch.Generator().manual_seed(1)
    outputs = rsample(*parameters, generator=generator, row_offset=row_offset, impl="cpp")
    return [o.detach() for o in outputs], torch.autograd.grad(outputs, parameters, upstream[: len(outputs)])


@pytest.mark.parametrize(
    ("rsample", "rows", "features", "dense"),
    [
        (F.diag_gaussian_rsample, 2100, 1024, None),  # written past the caches
        (F.diag_gaussian_rsample, 2100, 1027, None),  # too large for them, but not in whole vectors
        (F.diag_gaussian_rsample, 300, 1024, None),  # a block, cached
        (F.tril_gaussian_rsample, 40, 256, True),
        (F.tril_gaussian_rsample, 40, 250, True),
        (F.tril_gaussian_rsample, 80, 256, False),
        (F.diag_gaussian_rsample_with_kl, 2100, 1024, None),
        (F.tril_gaussian_rsample_with_kl, 40, 256, True),
        (F.tril_gaussian_rsample_with_kl, 40, 250, True),
        (F.tril_gaussian_rsample_with_kl, 80, 256, False),
    ],
)
def test_large_batches_equal_their_shards(rsample, rows, features, dense):
    """Shards are small enough for other memory and other stores; not one bit differs."""
    parameters = inputs(rows, features, dense)
    upstream = [torch.randn(rows, features), *torch.randn(2, rows)]
    outputs, gradients = run(rsample, parameters, upstream)
    for start in range(0, rows, rows // 4):
        part = slice(start, start + rows // 4)
        expected = run(rsample, [p[part] for p in parameters], [u[part] for u in upstream], row_offset=start)
        for got, want in zip((*outputs, *gradients), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(got[part], want)


def test_infinite_upstream_leaves_zeros_above_the_diagonal():
    parameters = inputs(40, 256, dense=True)
    d_z = torch.full((40, 256), float("inf"))
    for rsample in (F.tril_gaussian_rsample, F.tril_gaussian_rsample_with_kl):
        _, (_, _, d_tril) = run(rsample, parameters, [d_z, *torch.zeros(2, 40)])
        assert (d_tril[:, torch.ones(256, 256, dtype=torch.bool).triu()] == 0).all()


def test_blocks_are_used_again_and_released():
    zeros = torch.zeros(1024, 1024)
    z, _ = F.diag_gaussian_rsample(zeros, zeros, impl="cpp")
    address = z.data_ptr()
    assert address % (2 * MIB) == 0
    other, _ = F.diag_gaussian_rsample(zeros, zeros, impl="cpp")
    assert other.data_ptr() != address, "a held block must not be handed out"
    assert backend.release_memory() == 0
    view = z[5]
    del z
    assert backend.release_memory() == 0, "a view holds its block"
    del view
    again, _ = F.diag_gaussian_rsample(zeros, zeros, impl="cpp")
    assert again.data_ptr() == address
    del again, other
    assert backend.release_memory() == 2 * 4 * MIB


def test_a_small_output_takes_no_large_block():
    _C.empty(False, [64 * MIB // 4])
    assert _C.empty(False, [MIB]).untyped_storage().nbytes() == 4 * MIB
    assert backend.release_memory() == 64 * MIB + 4 * MIB


@pytest.mark.parametrize("shape", [[2**62, 4], [2**40, 2**40], [2**61]])
def test_sizes_that_no_address_reaches(shape):
    with pytest.raises(MemoryError):
        _C.empty(False, shape)


def test_kept_blocks_are_bounded():
    """By a sixteenth of the memory, between 512 MiB and 2 GiB."""
    memory = os.sysconf("SC_PHYS_PAGES") // 16 * os.sysconf("SC_PAGE_SIZE")
    most = min(max(memory, 512 * MIB), 2048 * MIB) // (64 * MIB)
    held = [_C.empty(False, [64 * MIB // 4]) for _ in range(most + 4)]
    del held
    assert backend.release_memory() == most * 64 * MIB


def test_threads_share_the_blocks():
    errors = []

    def work(value):
        for _ in range(50):
            block = _C.empty(False, [MIB])
            block.fill_(value)
            if not (block == value).all():
                errors.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_block_tensors_behave_as_tensors():
    zeros = torch.zeros(1024, 1024, requires_grad=True)
    z, _ = F.diag_gaussian_rsample(zeros, zeros, impl="cpp")
    z = z.mul_(2.0)
    (z + 1).sum().backward()
    torch.testing.assert_close(zeros.grad[0], 2.0 + z.detach()[0])
