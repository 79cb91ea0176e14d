"""The N:M testbed: documented figures, legality that can fail, caching, refusals."""

import pytest
import torch

from gossamer import recipes
from gossamer.claims import cells
from gossamer.claims.mutants import mutate
from gossamer.claims.nm_testbed import train_nm, train_nm_arms
from gossamer.claims.protocol import Context
from gossamer.errors import ConfigError
from gossamer.sparsify.estimators import STE

SHORT = {"steps": 30}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_run_has_the_documented_figures(optimizer):
    row = train_nm(recipes.sr_ste(1, 16, 5e-3), 0, optimizer=optimizer, **SHORT)
    assert row["legal"]
    assert row["kept"] == 1 / 16
    assert 0 < row["sad"] < row["flips"]
    assert row["noise"]["variance"] > 0
    assert ("second_moment" in row["noise"]) is (optimizer == "adam")
    assert 0.12 < row["accuracy"] < 1  # chance is 0.1
    assert train_nm(recipes.sr_ste(1, 16, 5e-3), 0, optimizer=optimizer, **SHORT) == row


def test_dense_runs_and_runs_after_dense_training():
    dense = train_nm(None, 0, **SHORT)
    assert (dense["kept"], dense["flips"], dense["sad"], dense["noise"]) == (1.0, 0.0, 0.0, {})
    after = train_nm(recipes.asp(1, 4), 0, pretrain=60, **SHORT)
    assert after["kept"] == 0.25
    assert after["accuracy"] > train_nm(recipes.asp(1, 4), 0, **SHORT)["accuracy"]


def test_masks_of_ones_are_not_legal():
    broken = train_nm(mutate(recipes.ste(1, 4), "mask_of_ones"), 0, **SHORT)
    assert not broken["legal"]
    assert broken["kept"] == 1.0


def test_the_plain_mutant_is_ste():
    for recipe in (recipes.sr_ste(1, 4, 0.1), recipes.mdgf_exponential(1, 4)):
        assert mutate(recipe, "plain_ste").family == STE()
        assert mutate(recipe, "plain_ste").pattern == recipe.pattern


@pytest.mark.slow
def test_processes_change_no_figure(tmp_path, monkeypatch):
    arms = {"ste": recipes.ste(1, 4), "dense": None}
    alone = train_nm_arms(Context(seeds=2), arms, least=2, steps=5)
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path / "other"))
    together = train_nm_arms(Context(seeds=2, workers=2), arms, least=2, steps=5)
    for row in (row for rows in (alone, together) for arm in rows.values() for row in arm):
        del row["seconds"]
    assert alone == together
    assert [len(rows) for rows in alone.values()] == [2, 2]
    assert alone["ste"][0] != alone["ste"][1]


def test_global_state_is_left_alone():
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train_nm(recipes.ste(1, 4), 0, steps=3)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_refusals():
    with pytest.raises(ConfigError, match="did you mean 'adam'"):
        train_nm(None, 0, optimizer="adan")
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        train_nm(None, 0, data="mnits")
