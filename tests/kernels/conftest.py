"""Kernels are tested at every level that this processor has, and as references."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gossamer.kernels import native


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.using(request.param):
        yield request.param
