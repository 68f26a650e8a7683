"""A plugin of pytest: a sample for a processor that is emulated, where a case takes fifty times as long.

Every test of a C++ kernel has a few cases, always the same ones. Tests that compile are left out: the system starts no
programs for the emulated processor.
"""

import re
import zlib
from collections import defaultdict

import pytest

from tests.compat.sample import pytest_ignore_collect

__all__ = ["pytest_ignore_collect"]

KERNELS = re.compile(r"\[(.*-)?cpp(-.*)?\]$")
LEFT_OUT = re.compile(r"compile|opcheck|triton")
NOISE = "test_noise.py::test_known_answers"
# So many cases of each test.
MOST = 3


def choose(names: list[str]) -> set[str]:
    """The cases of ``names`` that run."""
    tests = defaultdict(list)
    for name in sorted(names, key=lambda name: zlib.crc32(name.encode())):
        if KERNELS.search(name) and not LEFT_OUT.search(name):
            tests[name.partition("[")[0]].append(name)
    sample = {name for cases in tests.values() for name in cases[:MOST]}
    return sample | {name for name in names if NOISE in name}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = choose([item.nodeid for item in items])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in chosen])
    items[:] = [item for item in items if item.nodeid in chosen]
