"""Peak memory of calls whose allocations are known; torch's allocator takes sizes as they are asked for."""

import numpy as np
import pytest
import torch

from bench import memory

KIB = 1024


def buffer(kib):
    return torch.empty(kib * KIB, dtype=torch.uint8)


def test_peak_counts_what_lives_at_once():
    def call():
        first = buffer(100)
        del first
        second, third = buffer(40), buffer(30)
        del second
        return third, buffer(8)

    assert memory.measure_peak_bytes(call, "cpu") == 100 * KIB


def test_peak_includes_results_and_temporaries():
    def call():
        temporary, result = buffer(64), buffer(16)
        del temporary
        return result

    assert memory.measure_peak_bytes(call, "cpu") == 80 * KIB


def test_peak_sees_temporaries_inside_an_operator():
    x = torch.randn(64, 64, requires_grad=True)

    def call():
        return torch.autograd.grad(x.tril(-1).square().sum(), x)

    assert memory.measure_peak_bytes(call, "cpu") >= 3 * x.nbytes


def test_what_lived_before_the_call_does_not_count():
    kept = buffer(500)
    assert memory.measure_peak_bytes(lambda: buffer(4), "cpu") == 4 * KIB
    assert kept.numel() == 500 * KIB


def test_resident_memory_shows_what_torch_did_not_allocate():
    def call():
        return np.ones(32 << 20, dtype=np.uint8)

    resident = memory.measure_peak_resident_bytes(call)
    if resident is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert memory.measure_peak_bytes(call, "cpu") == 0
    assert 32 << 20 <= resident < 40 << 20


def test_new_bytes_counts_storages_once_and_leaves_out_the_given():
    given, new = buffer(10), buffer(6)
    results = (new, new[:KIB], (given[KIB:], [buffer(2)], None))
    assert memory.count_new_bytes(results, [given]) == 8 * KIB
