"""The testbed trains as documented, caches, controls, and its faults are real faults."""

import pytest
import torch

from gossamer import recipes
from gossamer.claims import cells, testbeds
from gossamer.claims.mutants import MUTANTS, mutate
from gossamer.claims.protocol import Context
from gossamer.errors import ConfigError, NumericsError
from gossamer.sparsify import Recipe
from gossamer.sparsify.regularizers import BNL1
from gossamer.sparsify.scores import Random
from gossamer.sparsify.weight_ops import HardZero

SMALL = {"steps": 60, "hidden": (32,)}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_sparse_run_has_the_documented_figures():
    row = testbeds.train_digits(recipes.rigl(0.9, every=10), 0, **SMALL)
    total = 144 * 32 + 32 * 10
    assert (row["total"], row["kept"]) == (total, round(0.1 * total))
    assert row["zeros_exact"]
    assert row["peak_density"] == pytest.approx(0.1, abs=1e-3)
    assert 0.1 < row["itop_rate"] < 1
    assert row["flips"] > 0
    assert row["dense_gradient_steps"] > 0
    assert set(row["layers"]) == {"fc1.weight", "head.weight"}
    for name in ("accuracy", "worst_class", "ece", "auroc", "fgsm_accuracy"):
        assert 0 <= row[name] <= 1
    assert row["fgsm_accuracy"] < row["accuracy"]
    assert row["accuracy"] > 0.12  # chance is 0.1


def test_the_cache_answers_the_second_time_and_bits_repeat(folder):
    first = testbeds.train_digits(None, 1, **SMALL)
    files = list((folder / "cells").iterdir())
    again = testbeds.train_digits(None, 1, **SMALL)
    assert again == first
    assert list((folder / "cells").iterdir()) == files
    files[0].unlink()
    rerun = testbeds.train_digits(None, 1, **SMALL)
    del first["seconds"], rerun["seconds"]
    assert rerun == first
    assert testbeds.train_digits(None, 2, **SMALL)["accuracy"] != first["accuracy"]


def test_training_leaves_global_state_alone():
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    testbeds.train_digits(recipes.random(0.9), 0, **SMALL)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_shuffle_control_keeps_counts_and_moves_positions():
    plain = testbeds.train_digits(recipes.random(0.9), 0, **SMALL)
    moved = testbeds.train_digits(recipes.random(0.9), 0, control="shuffle", **SMALL)
    assert moved["layers"] == plain["layers"]
    assert moved["zeros_exact"]
    assert moved["nll"] != plain["nll"]
    with pytest.raises(ConfigError, match="unknown control 'shufle'; did you mean 'shuffle'"):
        testbeds.train_digits(None, 0, control="shufle", **SMALL)


def test_what_a_shuffled_mask_keeps_starts_at_its_initial_value():
    torch.manual_seed(0)
    model = testbeds.mlp(hidden=(16,))
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsifier = testbeds.Sparsifier(model, optimizer, recipes.random(0.8), 10)
    before = sparsifier.masks["fc1.weight"].clone()
    testbeds._shuffle(sparsifier, 0, initial)
    after = sparsifier.masks["fc1.weight"]
    assert int(after.sum()) == int(before.sum())
    assert not torch.equal(after, before)
    assert torch.equal(model.fc1.weight.detach(), initial["fc1.weight"] * after)


def test_another_protocol_is_another_training():
    plain = testbeds.train_digits(recipes.rigl(0.9, every=10), 0, **SMALL)
    assert testbeds.train_digits(recipes.rigl(0.9, every=10), 0, norm_eps=0.1, **SMALL)["nll"] != plain["nll"]
    with pytest.raises(ConfigError, match="unknown data set of the testbed 'mnits'; did you mean 'mnist'"):
        testbeds.train_digits(None, 0, data="mnits")


def test_a_window_of_steps_continues_the_whole_run():
    data = testbeds.shifted_digits(seed=0)
    ends = []
    for windows in ([(0, 8)], [(0, 3), (3, 8)]):
        torch.manual_seed(0)
        model = testbeds.mlp(hidden=(16,))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for window in windows:
            testbeds.train_steps(model, optimizer, data.train, window, total=8)
        ends.append(testbeds.evaluate(model))
        assert model.training
    assert ends[0] == ends[1]


def test_divergence_is_an_error_and_not_a_figure(folder):
    with pytest.raises(NumericsError, match=r"the loss is (nan|inf) at step \d+"):
        testbeds.train_digits(None, 0, steps=200, hidden=(16,), lr=1e30)
    assert not list(folder.rglob("*.json"))


ARMS = {"dense": None, "static": recipes.random(0.9)}


def test_arms_run_the_seeds_of_their_context():
    lines = []
    arms = testbeds.train_arms(Context(seeds=2, say=lines.append), ARMS, **SMALL)
    assert [line.split(":")[0] for line in lines] == [
        "  dense, seed 0",
        "  static, seed 0",
        "  dense, seed 1",
        "  static, seed 1",
    ]
    means, spreads = testbeds.summary(arms, "accuracy")
    assert list(means) == ["dense", "static"]
    assert means["static"] == pytest.approx(sum(row["accuracy"] for row in arms["static"]) / 2)
    assert spreads["static"] > 0


def test_processes_give_the_same_bits(tmp_path, monkeypatch):
    def figures(arms):
        return {name: [{**row, "seconds": 0} for row in rows] for name, rows in arms.items()}

    alone = figures(testbeds.train_arms(Context(seeds=1), ARMS, **SMALL))
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path / "other"))
    assert figures(testbeds.train_arms(Context(seeds=1, workers=2), ARMS, **SMALL)) == alone
    assert len(list((tmp_path / "other").rglob("*.json"))) == 2


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_differs_and_still_trains(name):
    extras = {"regularizers": (BNL1(1e-4, where="pruned"),), "weight_ops": (HardZero(),)}
    sound = recipes.granet(0.9, initial=0.5, every=10).replace(**extras)
    broken = mutate(sound, name)
    assert broken != sound
    assert Context(mutant=name).recipe(sound) == broken
    assert Context().recipe(sound) == sound
    row = testbeds.train_digits(broken, 0, **SMALL)
    assert row["zeros_exact"]
    if name == "mask_of_ones":
        assert row["total"] == 0
    if name == "random_prune_score":
        assert all(update.score == Random() for update in broken.updates if hasattr(update, "score"))


def test_an_unknown_mutant_is_named():
    with pytest.raises(ConfigError, match="unknown mutant 'random_score'"):
        mutate(Recipe(), "random_score")


@pytest.mark.slow
def test_dynamic_beats_static_here_and_a_mutant_does_not():
    """The smallest claim that a hollow implementation fails: 98 % sparsity, one seed, the full protocol."""
    static = testbeds.train_digits(recipes.random(0.98), 0)["accuracy"]
    granet = recipes.granet(0.98, initial=0.5, grow_stop=0.9)
    assert testbeds.train_digits(granet, 0)["accuracy"] > static + 0.15
    assert testbeds.train_digits(mutate(granet, "random_prune_score"), 0)["accuracy"] < static + 0.05
