"""A plugin of pytest: every case that compiles or checks an operator's registration, and a sample of the others.

Triton's cases are left out: they need a GPU or take long, and belong to one version of Triton each.
"""

import re
import zlib
from pathlib import Path

import pytest

WHOLE = re.compile(r"compile|opcheck|test_package")
TRITON = re.compile(r"triton")
NEEDS_TRITON = re.compile(r"^(import triton|from fastvae\.kernels)", re.MULTILINE)
# One of so many of the other cases runs, always the same ones.
STEP = 40


def is_in_sample(name: str) -> bool:
    """Whether the case ``name`` runs on other versions of PyTorch."""
    if TRITON.search(name):
        return False
    return WHOLE.search(name) is not None or zlib.crc32(name.encode()) % STEP == 0


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out files that need Triton to be imported."""
    return (collection_path.suffix == ".py" and NEEDS_TRITON.search(collection_path.read_text()) is not None) or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if not is_in_sample(item.nodeid)])
    items[:] = [item for item in items if is_in_sample(item.nodeid)]
