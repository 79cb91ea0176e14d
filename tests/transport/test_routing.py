"""The router: capacities hold, balance is found, padding goes nowhere, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.transport import Adam, KSparse, assign, capacity_of, solve_ot


def gates(seed, groups=2, tokens=64, experts=4, skew=1.0):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(groups, tokens, experts, generator=source) + skew * torch.arange(experts)
    return logits.softmax(-1)


@given(st.integers(0, 1000), st.sampled_from((0.5, 1.0, 2.0)), st.sampled_from((0.0, 1.0, 3.0)))
def test_no_expert_is_above_its_capacity(seed, factor, skew):
    capacity = capacity_of(64, 4, factor)
    found = assign(gates(seed, skew=skew), capacity)
    assert int(found.load.max()) <= capacity
    torch.testing.assert_close(found.plan.sum(1), torch.full((2, 4), 16.0), rtol=1e-4, atol=1e-4)


def test_fewer_tokens_are_left_out_than_by_top_k_of_each_expert():
    gate = gates(0, groups=8)
    greedy = torch.zeros_like(gate).scatter(1, gate.topk(16, dim=1).indices, 1.0)
    left = (greedy.sum(-1) == 0).float().mean()
    assert (assign(gate, 16, steps=200).choices == 0).float().mean() < 0.5 * left


def test_it_is_the_transport_problem_solved_by_adam():
    gate = gates(1)
    found = assign(gate, 16)
    cost, tokens, share = -gate, torch.ones(64), torch.full((4,), 16.0)
    other = solve_ot(cost, tokens, share, KSparse(16, 1.0), solver=Adam(20, 1e-2))
    torch.testing.assert_close(found.plan, other.plan, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.token_error, other.row_error, rtol=0, atol=1e-5)


def test_tokens_choose_at_most_k_experts():
    found = assign(gates(2), 2, side="tokens", steps=100)
    assert int(found.choices.max()) <= 2
    assert int(found.choices.min()) >= 1


def test_the_gradient_reaches_the_gate_at_chosen_pairs_only():
    gate = gates(3).requires_grad_()
    found = assign(gate, 16)
    assert not found.plan.requires_grad
    found.weights(gate).sum().backward()
    assert torch.equal(gate.grad > 0, found.chosen)


def test_padding_goes_nowhere():
    gate = gates(4)
    mask = torch.ones(2, 64, dtype=torch.bool)
    mask[1, 48:] = False
    found = assign(gate, 16, mask=mask)
    assert not found.chosen[1, 48:].any()
    torch.testing.assert_close(found.plan[1].sum(0), torch.full((4,), 12.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.plan[1, :48], assign(gate[1, :48], 16).plan, rtol=0, atol=1e-5)


def test_a_group_alone_is_as_in_a_batch():
    gate = gates(5)
    assert torch.equal(assign(gate, 16).plan[1], assign(gate[1], 16).plan)


def test_it_traces_without_a_break():
    gate = gates(6)
    compiled = torch.compile(lambda g: assign(g, 16).plan, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(gate), assign(gate, 16).plan)


def test_capacities():
    assert [capacity_of(512, 8), capacity_of(10, 4), capacity_of(10, 4, multiple=1)] == [64, 4, 3]
    assert capacity_of(6, 1, 2.0) == 6
    with pytest.raises(ConfigError, match="less than one token"):
        capacity_of(4, 8)
    with pytest.raises(ConfigError, match="must be positive"):
        capacity_of(4, 0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k from 1 to 64"),
        ({"k": 65}, ConfigError, "k from 1 to 64"),
        ({"side": "both"}, ConfigError, "'experts' or 'tokens'"),
        ({"causal": True}, ConfigError, "causal"),
        ({"lr": 0.0}, ConfigError, "lr"),
        ({"affinity": torch.rand(3)}, ShapeError, "affinity must be"),
        ({"affinity": torch.full((8, 2), torch.nan), "k": 2}, NumericsError, "NaN"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, ShapeError, "mask must be bool"),
        ({"mask": torch.ones(64, dtype=torch.bool), "side": "tokens", "k": 1}, ConfigError, "side='experts'"),
    ],
)
def test_bad_input_is_named(change, error, message):
    arguments = {"affinity": gates(0), "k": 16} | change
    with pytest.raises(error, match=message):
        assign(**arguments)


def test_idle_experts_are_said():
    with pytest.warns(UserWarning, match="idle"):
        assign(torch.rand(2, 4).softmax(-1), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assign(gates(0), 16)
