"""The testbeds of iterative shrinkage: what a row says, and that the cache is keyed by what decides it."""

import math

import pytest

from gossamer import recipes
from gossamer.claims import superres_testbed
from gossamer.claims.shrinkage_testbed import HIDDEN_LAYERS, TOTAL, train_shrinkage
from gossamer.claims.superres_testbed import BODY, first_steps, pictures, step_cost, train_superres
from gossamer.sparsify.lowest import kept_count


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))


def test_a_short_training_is_exact_and_reports_its_jump():
    recipe = recipes.iss_p(0.9, 0.8, 0.5, select=HIDDEN_LAYERS)
    row = train_shrinkage(recipe, 0, steps=20)
    assert row["layers"] == {"fc1.weight": kept_count(0.9, 43_200), "fc2.weight": kept_count(0.9, 30_000)}
    assert row["zeros_exact"]
    assert row["jump"]["ratio"] <= 1
    assert math.isfinite(row["jump"]["after"])
    again = train_shrinkage(recipe, 0, steps=20)
    assert again == row  # seconds, too: it was read
    dense = train_shrinkage(None, 0, steps=20)
    assert dense["kept"] == TOTAL
    assert dense["jump"] is None
    hard = train_shrinkage(recipes.iss_h(0.9, 0.5, select=HIDDEN_LAYERS), 0, steps=20)
    assert hard["jump"]["ratio"] == 0
    assert hard["jump"]["before"] == pytest.approx(hard["jump"]["after"])


def test_pretraining_is_another_cell():
    recipe = recipes.scratch(0.9, select=HIDDEN_LAYERS)
    one, two = train_shrinkage(recipe, 0, steps=10), train_shrinkage(recipe, 0, steps=10, pretrained=True)
    assert one["kept"] == two["kept"] == kept_count(0.9, 43_200) + kept_count(0.9, 30_000)
    assert one["accuracy"] != two["accuracy"]


def test_super_resolution_rows():
    row = train_superres(recipes.iss_p(0.5, 0.8, 0.5, select=BODY), 0, steps=4)
    assert all(kept == kept_count(0.5, total) for kept, total in row["layers"].values())
    assert row["zeros_exact"]
    assert row["psnr"] > 20
    train, test = pictures("leaves")
    assert not any((a[1] == b[1]).all() for a in train for b in test)


def test_costs_and_first_steps(monkeypatch):
    cost = step_cost(recipes.iss_p(0.5, select=BODY), "edsr-small", rounds=2)
    assert cost["ratio"] > 0
    assert set(cost) == {"dense", "sparse", "ratio"}
    monkeypatch.setattr(superres_testbed, "PATCH", 16)
    assert 0 < first_steps("edsr-small", recipes.iss_p(0.5)) < 1
