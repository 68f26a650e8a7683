"""What only a GPU can tell; elsewhere nothing of this folder is collected.

An error that stays on a device makes every later test of its process fail: it ends the process, and only that one.
"""

import os

import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(autouse=True)
def sound_device():
    yield
    end_if_lost(torch.cuda.synchronize)


def end_if_lost(synchronize, leave=os._exit):
    """Ends this worker where an error stays on the device. Another takes its place, and reports what it was running."""
    try:
        synchronize()
    except RuntimeError as error:
        print(f"the device is lost: {error}", flush=True)
        if "PYTEST_XDIST_WORKER" not in os.environ:
            # Without workers the reports would be lost with the process.
            pytest.exit("the device is lost", returncode=70)
        leave(70)


@pytest.fixture(autouse=True)
def unfilled_memory(poisoned_memory):
    """With FASTVAE_UNFILLED=1 new tensors stay as they are, so that a tool can see who reads them unwritten."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = os.environ.get("FASTVAE_UNFILLED") != "1" and before
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
