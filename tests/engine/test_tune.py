"""How a compilation decides between rivals, with scripted times."""

import pytest
import torch

import gossamer
from gossamer.engine import tune
from gossamer.kernels import native

NEEDS_KERNELS = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.fixture
def script(monkeypatch):
    """Replaces the race by given rounds; returns who ran in each."""

    def play(*rounds):
        entered = []

        def race(runners, threads, least=5):
            entered.append(set(runners))
            return {name: rounds[len(entered) - 1][name] for name in runners}

        monkeypatch.setattr(tune, "race", race)
        return entered

    return play


def settle(*names):
    return tune.settle({name: lambda: None for name in names}, 1)


def test_who_is_far_behind_does_not_run_again(script):
    entered = script({"a": 1.0, "b": 3.0, "c": 1.1}, {"a": 1.0, "c": 1.0}, {"a": 1.0, "c": 1.0})
    assert settle("a", "b", "c") == {"a": 1.0, "b": 3.0, "c": 1.0}
    assert entered == [{"a", "b", "c"}, {"a", "c"}, {"a", "c"}]


def test_a_disturbed_first_round_does_not_decide(script):
    script({"a": 1.0, "b": 1.15}, {"a": 1.05, "b": 0.9}, {"a": 1.0, "b": 1.2})
    times = settle("a", "b")
    assert min(times, key=times.get) == "b"
    assert times == {"a": 1.0, "b": 0.9}


def test_a_clear_winner_needs_one_round(script):
    entered = script({"a": 1.0, "b": 2.0})
    assert settle("a", "b") == {"a": 1.0, "b": 2.0}
    assert len(entered) == 1


@NEEDS_KERNELS
@pytest.mark.parametrize("winner", ["plan", "torch eager", "torch channels_last"])
def test_a_plan_runs_whatever_was_fastest_as_a_call_runs_it(digits, monkeypatch, winner):
    """What is measured is what `plan(x)` does: the same callables, layouts converted within the measured time."""
    raced = {}

    def race(runners, threads, least=5):
        raced.update(runners)
        return {name: 1.0 if name == winner else 2.0 for name in runners}

    monkeypatch.setattr(tune, "race", race)
    x = torch.randn(1, 1, 16, 16)
    plan = gossamer.compile(digits, x)
    report = plan.report()
    assert report.runs == winner
    assert report.speedup >= 1
    found = raced[winner]()
    assert torch.equal(found, plan(x))
    assert found.is_contiguous()


@NEEDS_KERNELS
def test_no_rival_is_left_out(digits):
    rivals = {"plan", "torch eager", "torch channels_last"}
    assert rivals <= set(gossamer.compile(digits, torch.randn(1, 1, 16, 16)).report().milliseconds)
