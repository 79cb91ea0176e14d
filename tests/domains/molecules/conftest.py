"""Skips this folder where the extra `molecules` is not installed."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside e3nn
    pytest.importorskip("e3nn", reason="needs the extra 'molecules'")
    pytest.importorskip("pyscf", reason="needs the extra 'molecules'")
