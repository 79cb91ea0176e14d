"""GraNet's claims that take no long training, its relatives, and plasticity by hand."""

import pytest
import torch
from torch import nn

from gossamer import papers
from gossamer.claims import cells
from gossamer.claims.protocol import Context
from gossamer.errors import ConfigError
from gossamer.papers import granet
from gossamer.sparsify.scores import Random
from gossamer.training.plasticity import Plasticity, plasticity


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))


def test_granet_contains_gmp_and_rigl_bit_for_bit():
    found = papers.load("granet").claim("identities").run(Context(seeds=1))
    assert found.holds
    assert set(found.measured.values()) == {0.0}


def test_the_identities_break_under_their_mutant():
    found = papers.load("granet").claim("identities").run(Context(seeds=1, mutant="random_prune_score"))
    assert found.holds is False
    assert min(found.measured.values()) > 0


def test_relatives_share_one_sparsity_and_differ():
    table = granet.relatives(0.98)
    assert {"static", "snip", "grasp", "synflow", "set", "rigl", "gmp", "granet_0.5"} <= set(table)
    assert len({recipe.to_yaml() for recipe in table.values()}) == len(table)


def _network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def _steps(count):
    def train_on(model, optimizer):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()

    return train_on


def _kept(model):
    return float(sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim == 2))


def test_plasticity_prunes_a_copy_and_compares_with_the_whole():
    model, optimizer = _network()
    _steps(2)(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    found = plasticity(model, optimizer, _steps(3), _kept, sparsity=0.75, steps=3)
    assert found == Plasticity(before=48, pruned=12, after=12)
    assert found.value == -36
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        torch.equal(state["momentum_buffer"], m) for state, m in zip(optimizer.state.values(), moments, strict=True)
    )


def test_regrowth_swaps_and_keeps_the_count():
    model, optimizer = _network()
    grown = {}

    def remember(name):
        def evaluate(m):
            grown.setdefault(name, []).append([p.detach() != 0 for p in m.parameters() if p.ndim == 2])
            return _kept(m)

        return evaluate

    cut = plasticity(model, optimizer, _steps(4), remember("cut"), 0.5, 4)
    swapped = plasticity(model, optimizer, _steps(4), remember("swap"), 0.5, 4, regrow=0.5)
    assert cut.after == 24
    assert swapped.pruned == 24
    assert swapped.after <= 24  # what was grown without gradient later may still be 0
    assert any(not torch.equal(a, b) for a, b in zip(grown["cut"][2], grown["swap"][2], strict=True))


def test_random_pruning_is_a_choice():
    model, optimizer = _network()
    shown = [
        plasticity(
            model, optimizer, _steps(1), lambda m: float(m[0].weight.detach().abs().sum()), 0.5, 1, score=score
        ).pruned
        for score in (Random(), granet.Magnitude())
    ]
    assert shown[0] < shown[1]


def test_bad_arguments_of_plasticity_are_named():
    model, optimizer = _network()
    with pytest.raises(ConfigError, match=r"sparsity and regrow must lie in \[0, 1\), got 1.0 and 0.0"):
        plasticity(model, optimizer, _steps(1), _kept, 1.0, 1)
    with pytest.raises(ConfigError, match="train_on made 2 optimiser steps, 3 were announced"):
        plasticity(model, optimizer, _steps(2), _kept, 0.5, 3)
