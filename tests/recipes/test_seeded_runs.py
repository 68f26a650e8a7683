"""Seeded runs of every system give the recorded losses, gradients, weights, samples and figures."""

import json

import pytest
import torch

from tests.recipes import seeded_runs

RECORDED = json.loads(seeded_runs.RECORD.read_text())
# Of another processor, instruction set or torch, whose sums round otherwise: a pixel drawn at a probability next to
# its uniform number may differ, and what is drawn after it.
RELATIVE, OF_SAMPLES = 1e-3, 0.1

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_system_is_recorded():
    assert RECORDED["runs"].keys() == seeded_runs.cases().keys()


@pytest.mark.parametrize("name", seeded_runs.cases())
def test_seeded_run(name, tmp_path):
    found, expected = seeded_runs.cases()[name](tmp_path), RECORDED["runs"][name]
    # Figures that no run was recorded with are left out.
    found["figures"] = {key: found["figures"][key] for key in expected["figures"]}
    if seeded_runs.machine() == RECORDED["machine"]:
        assert found == expected
        return
    assert found.keys() == expected.keys()
    for part, value in found.items():
        assert_close(value, expected[part], OF_SAMPLES if part == "samples" else RELATIVE)


def assert_close(found, expected, relative):
    """Equal plain data but for a relative difference of numbers; digests are not compared."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"digest"}:
            assert_close(found[name], expected[name], relative)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_close(ours, theirs, relative)
    elif expected is None:  # a figure that this system has not
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=relative, abs=relative)
