"""Without a GPU Triton's interpreter runs the kernels; it must be chosen before Triton decorates the first one."""

import gc
import os
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest

# `bench` and `tests` are folders of the checkout. It comes last, where it does not hide an installed fastvae.
sys.path.append(str(Path(__file__).resolve().parents[1]))

# On a GPU: what deterministic products of cuBLAS need, and float32 convolutions that are float32.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.backends.cudnn.allow_tf32 = False

from tests.thorough import find_left_out  # noqa: E402 - sys.path needs the checkout first

hypothesis.settings.register_profile("fastvae", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("fastvae")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in find_left_out(items):
        item.add_marker(pytest.mark.thorough)


# A million objects that stay are not looked through again for every few hundred new ones.
gc.set_threshold(20_000, 20, 100)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills every uninitialised tensor with NaN: an output that a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def seed_torch():
    torch.manual_seed(0)
