"""Qualities of fronts: against pymoo, against counting random points, and by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.architectures.gflownet.quality import hypervolume, igd_plus, r2
from gossamer.errors import ConfigError, ShapeError
from gossamer.maths import pareto


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_volumes_and_distances_are_pymoos(objectives):
    indicators = pytest.importorskip("pymoo.indicators.hv", reason="pymoo is not installed")
    from pymoo.indicators.igd_plus import IGDPlus

    rng = np.random.default_rng(objectives)
    scores, front = rng.random((15, objectives)), rng.random((9, objectives))
    reference = np.full(objectives, 0.1)
    ours = hypervolume(torch.from_numpy(scores), torch.from_numpy(reference))
    assert ours == pytest.approx(indicators.HV(ref_point=-reference)(-scores))
    assert igd_plus(torch.from_numpy(scores), torch.from_numpy(front)) == pytest.approx(IGDPlus(-front)(-scores))


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=8))
def test_the_plane_agrees_with_the_sweep(rows):
    found = hypervolume(torch.tensor(rows).double(), torch.zeros(2))
    assert found == pytest.approx(pareto.hypervolume(rows, (0.0, 0.0), (True, True)))


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=6))
def test_volumes_of_boxes_are_counted(rows):
    cells = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)
    counted = sum(any(all(c < r for c, r in zip(cell, row, strict=True)) for row in rows) for cell in cells.tolist())
    assert hypervolume(torch.tensor(rows).double(), torch.zeros(3)) == pytest.approx(counted)


def test_utilities_by_hand():
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # preferences (0, 1), (1/2, 1/2), (1, 0): the nearest is 0, 1/2 and 0 away
    assert r2(scores, torch.ones(2), parts=2) == pytest.approx(1 / 6)
    assert r2(torch.ones(1, 2), torch.ones(2)) == 0
    assert igd_plus(torch.ones(1, 2), scores) == 0  # better than every point of the front


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match=r"reference \(k,\)"):
        hypervolume(torch.rand(3, 2), torch.zeros(3))
    with pytest.raises(ConfigError, match="at least one score"):
        igd_plus(torch.zeros(0, 2), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="at least one part"):
        r2(torch.rand(3, 2), torch.ones(2), parts=0)
