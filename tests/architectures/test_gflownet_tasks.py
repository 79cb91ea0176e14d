"""Enumerable problems of samplers: their formulas against independent ones, and what is reported of an answer."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from gossamer.architectures.gflownet import Flow, Training
from gossamer.architectures.gflownet.answer import Answer, solve
from gossamer.architectures.gflownet.tasks import (
    OBJECTIVES,
    SUBSTITUENTS,
    TASKS,
    beale,
    branin,
    currin,
    shubert,
    task,
)
from gossamer.errors import ConfigError


def test_functions_have_their_known_optima():
    minima = torch.tensor([[-math.pi, 12.275], [math.pi, 2.275], [9.42478, 2.475]])
    places = (minima + torch.tensor([5.0, 0.0])) / 15
    torch.testing.assert_close(branin(places), torch.full((3,), 1 - 0.397887 / 308.13, dtype=torch.float64))
    top = currin(torch.tensor([[0.21666666, 0.0]]))  # 13.798650 is its maximum
    assert float(top) == pytest.approx(13.79865 / 13.77, abs=1e-4)


def test_functions_by_numpy():
    points = np.random.default_rng(0).random((50, 2))
    x, y = 2 * points.T - 1
    wanted = ((1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2) / 38.8
    np.testing.assert_allclose(beale(torch.from_numpy(points)).numpy(), wanted)
    waves = [np.sum([i * np.cos((i + 1) * -1.5 * a + i) for i in range(1, 6)], axis=0) for a in (x, y)]
    np.testing.assert_allclose(shubert(torch.from_numpy(points)).numpy(), (waves[0] * waves[1] + 186.8) / 397)
    for name, function in OBJECTIVES.items():
        values = function(torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)))
        assert float(values.min()) > -0.02, name
        assert float(values.max()) < 1.02, name


def test_words_are_counted():
    posed = task("words")
    states = posed.env.all_states()
    full = states[(states >= 0).all(1)]
    wanted = [max(Counter(word).values()) for word in full.tolist()]
    assert posed.oracle(full).tolist() == wanted
    assert int(posed.best(posed.oracle(full)[:, None]).sum()) == 4
    assert posed.describe(torch.tensor([0, 0, 1, 0, 3, 0])) == {"word": "AABADA"}


def test_benzenes_by_hand_and_their_front_by_brute_force():
    posed = task("benzenes")
    names = list(SUBSTITUENTS)
    state = torch.tensor([[names.index("CN"), names.index("NO2"), names.index("H")]])
    torch.testing.assert_close(posed.oracle(state)[0], torch.tensor([0.56 + 0.78, -(2.13 - 0.57 - 0.28)]).double())
    states = torch.tensor(list(posed.env.space))
    scores = posed.oracle(states)
    rows = sorted({tuple(row) for row in scores.tolist()})
    front = {a for a in rows if not any(b[0] >= a[0] and b[1] >= a[1] and b != a for b in rows)}
    assert {tuple(row) for row in scores[posed.best(scores)].tolist()} == front
    assert posed.describe(state[0]) == {"position 3": "CN", "position 4": "NO2", "position 5": "H"}


def test_the_figures_of_an_answer_by_hand():
    mass = np.array([0.5, 0.25, 0.0, 0.25])
    best = np.array([True, True, True, False])
    found = Answer(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), mass, mass[:, None], best, ([], [])).figures()
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3)
    wanted = {"mass": 0.75, "covered": 2 / 3, "entropy": entropy, "share": 0.75}
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("name", TASKS)
def test_every_problem_can_be_solved(name):
    posed = task(name, side=8)
    answer = solve(posed, Flow(), Training(steps=3, batch=8))
    assert answer.mass.sum() == pytest.approx(1, abs=1e-5)
    assert answer.best.any()
    assert not answer.best.all()
    assert len(answer.likeliest(3)) == 3
    if posed.side:
        assert answer.grid(8).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: task("mode"), "did you mean 'modes'"),
        (lambda: task("front", objectives=("branin", "curin")), "did you mean 'currin'"),
        (lambda: task("front", objectives=("branin",)), "at least two different objectives"),
        (lambda: task("modes", side=1), "at least 2 places"),
        (lambda: task("modes", side=5), "none of 5 places"),
    ],
)
def test_bad_problems_are_named(call, text):
    with pytest.raises(ConfigError, match=text):
        call()
