"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastvae.kernels._launch import forget_rules


@pytest.fixture(autouse=True)
def _own_rules() -> Iterator[None]:
    """Tests change tiles and other constants: what rules chose for one test is not for the next."""
    forget_rules()
    yield
    forget_rules()
