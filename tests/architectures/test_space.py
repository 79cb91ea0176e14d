"""The search space and its counted evaluation: exact counts, round trips, budgets."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.architectures import BudgetSpentError, Evaluator, OneOf, SearchSpace, Subset
from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError

MIXED = SearchSpace((OneOf("op", ("a", "b", "c")), Subset("units", 5, 2), OneOf("last", ("x", "y"))))


def differing(one, two):
    return sum(a != b for a, b in zip(one, two, strict=True))


def test_all_architectures_are_enumerated_once():
    found = list(MIXED)
    assert len(found) == len(set(found)) == MIXED.size == 3 * math.comb(5, 2) * 2


def test_a_rule_leaves_the_legal_ones():
    space = SearchSpace((OneOf("a", ("0", "1", "2")), OneOf("b", ("0", "1", "2"))), rule=lambda x: x[0] < x[1])
    assert list(space) == [(i, j) for i, j in product(range(3), repeat=2) if i < j]
    assert space.size == 3
    assert all(space.is_legal(space.sample(seed)) for seed in range(20))
    with pytest.raises(ConfigError, match="not legal"):
        space.check((2, 1))


@given(st.integers(0, 10_000))
def test_forms_of_an_architecture_round_trip(seed):
    drawn = MIXED.sample(seed)
    assert drawn == MIXED.sample(seed)
    assert MIXED.decode(MIXED.encode(drawn)) == drawn
    assert MIXED.parse(MIXED.describe(drawn)) == drawn


def test_sampling_is_uniform():
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(MIXED, 0)
    for _ in range(6000):
        counts[MIXED.sample(rng)] += 1
    statistic = sum((n - 100) ** 2 / 100 for n in counts.values())
    assert statistic < 59 + 4 * math.sqrt(2 * 59)  # chi-square with 59 degrees of freedom


def test_neighbours_are_all_one_step_away():
    drawn = MIXED.sample(3)
    near = list(MIXED.neighbours(drawn))
    wanted = [other for other in MIXED if differing(other, drawn) == 1 and len(set(other[1]) - set(drawn[1])) <= 1]
    assert sorted(near) == sorted(wanted)
    assert len(near) == 2 + 2 * 3 + 1


def test_a_large_subset_is_drawn_and_checked_without_enumeration():
    space = SearchSpace((Subset("units", 4000, 100),))
    drawn = space.sample(0)
    assert len(set(drawn[0])) == 100
    assert space.decode(space.encode(drawn)) == drawn


def test_blocks_are_n_of_m():
    slot = Subset("w", 8, 2, blocks=2)
    values = list(slot.values())
    assert values == sorted(set(values))
    assert len(values) == slot.count == math.comb(4, 2) ** 2
    assert all(slot.holds(v) and slot.decode(slot.encode(v)) == v for v in values)
    assert not slot.holds((0, 1, 2, 4))
    assert all(slot.holds(v) for v in slot.neighbours(values[0]))
    assert len(list(slot.neighbours(values[0]))) == 4 * 2
    with pytest.raises(ConfigError, match="3 equal blocks"):
        Subset("w", 8, 2, blocks=3)


def test_the_default_view_is_a_chain():
    view = MIXED.view(MIXED.sample(0))
    assert view.nodes == ("input", "op", "units", "last")
    assert [edge[:2] for edge in view.edges] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("slots", "rule", "message"),
    [
        ((OneOf("a", ("only",)),), None, "one architecture alone"),
        ((Subset("a", 3, 3),), None, "one architecture alone"),
        ((OneOf("a", ("x", "y")),), lambda x: x == (1,), "one architecture alone"),
        ((OneOf("a", ("x", "y")),), lambda x: False, "no legal architecture"),
        ((), None, "different names"),
        ((OneOf("a", ("x", "y")), OneOf("a", ("x", "y"))), None, "different names"),
    ],
)
def test_a_space_with_nothing_to_search_is_refused(slots, rule, message):
    with pytest.raises(ConfigError, match=message):
        SearchSpace(slots, rule)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ((0, (0, 1)), ShapeError),
        ((3, (0, 1), 0), ConfigError),
        ((0, (1, 0), 0), ConfigError),
        ((0, (0, 5), 0), ConfigError),
        ((0, (0, 1, 2), 0), ConfigError),
        ((True, (0, 1), 0), ConfigError),
    ],
)
def test_a_foreign_architecture_is_refused(wrong, error):
    with pytest.raises(error):
        MIXED.check(wrong)


def test_slots_name_what_is_wrong():
    with pytest.raises(ConfigError, match="keep 4 of 3: need 1 to 3"):
        Subset("units", 3, 4)
    with pytest.raises(ConfigError, match="did you mean 'sep_conv'"):
        OneOf("op", ("sep_conv", "pool")).parse("sepconv")
    with pytest.raises(ShapeError, match="ascending"):
        Subset("units", 3, 2).parse([1, 0])
    with pytest.raises(ShapeError, match=r"shape \(10,\)"):
        MIXED.decode(np.zeros(3))


def counted(budget=10, **options):
    calls = []

    def score(architecture):
        calls.append(architecture)
        return sum(architecture[1])

    return Evaluator(MIXED, score, budget, goal=options.pop("goal", "min"), **options), calls


def test_a_known_architecture_costs_nothing():
    evaluator, calls = counted()
    for _ in range(3):
        assert evaluator((0, (1, 3), 0)) == 4
    assert (evaluator.asked, evaluator.spent, evaluator.remaining, len(calls)) == (3, 1, 9, 1)


def test_the_budget_is_a_wall_for_new_ones_only():
    evaluator, calls = counted(budget=2)
    evaluator((0, (0, 1), 0))
    evaluator((0, (0, 2), 0))
    with pytest.raises(BudgetSpentError, match="budget of 2"):
        evaluator((0, (0, 3), 0))
    assert evaluator((0, (0, 1), 0)) == 1
    assert len(calls) == 2


@pytest.mark.parametrize(("goal", "best"), [("min", 1.0), ("max", 7.0)])
def test_best_and_trajectory_agree_with_brute_force(goal, best):
    evaluator, _ = counted(budget=60, goal=goal)
    for architecture in MIXED:
        evaluator(architecture)
    pick = min if goal == "min" else max
    assert evaluator.best.value == best == pick(sum(a[1]) for a in MIXED)
    values = [e.value for e in evaluator.history]
    assert evaluator.trajectory() == [pick(values[: i + 1]) for i in range(60)]


def test_several_objectives_are_kept():
    evaluator = Evaluator(MIXED, lambda a: (a[0], -a[2]), 5, goal=("max", "min"))
    assert evaluator.evaluate((2, (0, 1), 1)).values == (2.0, -1.0)
    with pytest.raises(ShapeError, match="2 goals"):
        evaluator.record((1, (0, 1), 1), 3.0)


def test_nan_is_an_error_or_never_best():
    with pytest.raises(NumericsError, match="units"):
        Evaluator(MIXED, lambda a: math.nan, 5, goal="min")((0, (0, 1), 0))
    patient = Evaluator(MIXED, lambda a: math.nan if a[0] else 2.0, 5, goal="min", allow_nan=True)
    patient((1, (0, 1), 0))
    with pytest.raises(NumericsError, match="all 1"):
        _ = patient.best
    patient((0, (0, 1), 0))
    assert patient.best.value == 2.0
    assert math.isnan(patient.trajectory()[0])


def test_a_search_goes_on_behind_its_file(tmp_path):
    file = tmp_path / "search.json"
    first, _ = counted(file=file)
    for seed in range(4):
        first(MIXED.sample(seed))
    second, calls = counted(file=file)
    assert second.history == first.history
    second(MIXED.sample(0))
    assert not calls
    assert second.spent == first.spent


def test_a_foreign_or_damaged_file_is_refused(tmp_path):
    file = tmp_path / "search.json"
    evaluator, _ = counted(file=file)
    evaluator(MIXED.sample(0))
    other = SearchSpace((OneOf("op", ("a", "b")),))
    with pytest.raises(CheckpointError, match="no evaluations"):
        Evaluator(other, float, 3, goal="min", file=file)
    with pytest.raises(CheckpointError, match="goals"):
        Evaluator(MIXED, float, 3, goal="max", file=file)
    file.write_text("{")
    with pytest.raises(CheckpointError):
        counted(file=file)


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(budget):
    with pytest.raises(ConfigError, match="at least 1"):
        counted(budget=budget)
    with pytest.raises(ConfigError, match="goal"):
        counted(goal="best")
