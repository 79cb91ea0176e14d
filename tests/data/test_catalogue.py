"""The table of data sets."""

from __future__ import annotations

import inspect

import pytest

from gossamer.data import DATASETS, load
from gossamer.errors import ConfigError


@pytest.mark.parametrize("name", DATASETS)
def test_every_loader_takes_the_common_options(name: str) -> None:
    parameters = inspect.signature(DATASETS[name]).parameters
    assert {"batch_size", "seed", "val"} <= parameters.keys()
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())


def test_unknown_names_and_options_suggest_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load("digit")
    with pytest.raises(ConfigError, match="unknown option of data set 'digits' 'batchsize'; did you mean 'batch_size'"):
        load("digits", batchsize=3)
    with pytest.raises(ConfigError, match="'images' needs the option path"):
        load("images")
