"""Running usage of units."""

import pytest
import torch

from gossamer.errors import ConfigError, ShapeError
from gossamer.sparsify.usage import Usage


def test_the_average_is_the_weighted_one():
    usage = Usage(1, decay=0.9)
    values = [4, 0, 2, 3]
    for value in values:
        usage.update(torch.tensor([value]), 4)
    weights = [0.1 * 0.9 ** (3 - i) for i in range(4)]
    wanted = sum(w * v / 4 for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert float(usage.density) == pytest.approx(wanted, rel=1e-5)


def test_silence_is_counted_in_samples_and_ranks_are_stable():
    usage = Usage(3)
    usage.update(torch.tensor([1, 0, 1]), 8)
    usage.update(torch.tensor([0, 0, 4]), 8)
    assert usage.silent.tolist() == [8, 16, 0]
    assert usage.dead(16).tolist() == [False, True, False]
    assert usage.ranks().tolist() == [1, 2, 0]
    usage.reset(torch.tensor([1]))
    assert usage.silent.tolist() == [8, 0, 0]


def test_it_travels_in_a_state_dict():
    usage, other = Usage(2), Usage(2)
    usage.update(torch.tensor([1, 0]), 2)
    other.load_state_dict(usage.state_dict())
    assert torch.equal(other.density, usage.density)
    assert int(other.batches) == 1


def test_misuse_is_named():
    with pytest.raises(ConfigError, match="at least one unit and 0 <= decay < 1"):
        Usage(0)
    with pytest.raises(ShapeError, match="usage of 2 units got counts of shape"):
        Usage(2).update(torch.zeros(3), 1)
