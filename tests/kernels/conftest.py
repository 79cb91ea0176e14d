"""Kernels are tested at every level that this processor has, and as references."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossamer.kernels import native

sys.path.insert(0, str(Path(__file__).parent))  # kernel_products.py


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param
