"""What every plan must satisfy, and what each router is for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.experts import ExpertChoice, Hash, Sinkhorn, TopK, Transport
from gossamer.experts.routing import capacity

ROUTERS = {
    "top2": TopK(2),
    "top1": TopK(1, renormalise=False),
    "capacity": TopK(2, capacity_factor=0.75),
    "priority": TopK(2, capacity_factor=0.75, priority="probability"),
    "expert choice": ExpertChoice(1.5),
    "transport": Transport(1.5),
    "sinkhorn": Sinkhorn(0.1),
    "hash": Hash(),
}


def scene(seed, groups=2, tokens=12, experts=4, padding=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(groups, tokens, experts, generator=generator)
    mask = torch.rand(groups, tokens, generator=generator) < 0.7 if padding else None
    if mask is not None:
        mask[:, :8] = True
    ids = torch.randint(0, 1000, (groups, tokens), generator=generator)
    return logits, mask, ids


@pytest.mark.parametrize("name", ROUTERS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), padding=st.booleans())
def test_a_plan_is_consistent(name, seed, padding):
    logits, mask, ids = scene(seed, padding=padding)
    plan = ROUTERS[name](logits, mask, ids=ids)
    pairs = plan.token * 4 + plan.expert
    assert len(pairs.unique()) == len(pairs)  # no pair twice
    assert torch.equal(plan.counts, torch.bincount(plan.expert, minlength=4))
    assert (plan.token.diff() >= 0).all()
    assert ((plan.weight > 0) & (plan.weight <= 1 + 1e-6)).all()
    reached = torch.zeros(24, dtype=torch.bool)
    reached[plan.token] = True
    real = torch.ones(24, dtype=torch.bool) if mask is None else mask.flatten()
    assert torch.equal(plan.dropped.flatten(), real & ~reached)
    assert not (reached & ~real).any()  # padding goes nowhere


@pytest.mark.parametrize("name", ["capacity", "priority", "expert choice", "transport"])
def test_no_expert_is_above_its_capacity(name):
    logits, _, _ = scene(3, groups=1, tokens=32)
    logits[..., 0] += 4  # all like expert 0
    room = capacity(32, 4, ROUTERS[name].capacity_factor, 2 if name in ("capacity", "priority") else 1)
    plan = ROUTERS[name](logits)
    assert plan.counts.max() <= room
    assert plan.counts[0] == room


def test_topk_renormalised_is_a_softmax_over_the_chosen_logits():
    logits, _, _ = scene(0)
    plan = TopK(2)(logits)
    expected = logits.topk(2).values.softmax(-1).flatten()
    assert torch.allclose(plan.weight, expected, atol=1e-6)
    assert torch.equal(plan.expert, logits.topk(2).indices.flatten())


def test_a_roomy_capacity_drops_nothing():
    logits, _, _ = scene(1)
    free, roomy = TopK(2)(logits), TopK(2, capacity_factor=4.0)(logits)
    assert torch.allclose(free.dense(), roomy.dense())
    assert not roomy.dropped.any()


def test_priority_decides_who_is_dropped():
    """Four tokens, all for expert 0 which takes two: the first two, or the two surest."""
    strength = torch.tensor([1.0, 2.0, 3.0, 4.0])
    logits = torch.stack([strength, torch.zeros(4)], dim=-1).unsqueeze(0)
    first = TopK(1, renormalise=False, capacity_factor=1.0)(logits)
    surest = TopK(1, renormalise=False, capacity_factor=1.0, priority="probability")(logits)
    assert first.dropped.tolist() == [[False, False, True, True]]
    assert surest.dropped.tolist() == [[True, True, False, False]]


def test_expert_choice_takes_the_best_of_each_column():
    logits, _, _ = scene(2, groups=1)
    plan = ExpertChoice(1.0)(logits)
    best = logits.softmax(-1)[0].topk(3, dim=0).indices
    assert [set(plan.token[plan.expert == e].tolist()) for e in range(4)] == [
        set(best[:, e].tolist()) for e in range(4)
    ]


def test_sinkhorn_spreads_what_token_choice_crowds():
    logits, _, _ = scene(4, groups=1, tokens=64)
    logits[..., 0] += 2
    crowded = TopK(1, renormalise=False)(logits).counts.max()
    assert Sinkhorn(0.02)(logits).counts.max() < 0.6 * crowded


def test_hash_depends_on_the_ids_alone_and_is_balanced():
    ids = torch.arange(4000).view(1, -1)
    one, two = (Hash()(torch.randn(1, 4000, 4), ids=ids) for _ in range(2))
    assert torch.equal(one.expert, two.expert)
    assert (one.counts - 1000).abs().max() < 150
    assert not torch.equal(one.expert, Hash(seed=7)(torch.randn(1, 4000, 4), ids=ids).expert)


def test_a_selection_bias_moves_choices_not_weights():
    logits, _, _ = scene(5)
    plan = TopK(1, renormalise=False)(logits, bias=torch.tensor([9.0, 0, 0, 0]))
    assert (plan.expert == 0).all()
    assert torch.allclose(plan.weight, logits.softmax(-1)[..., 0].flatten())


def test_top1_with_renormalisation_warns_that_the_gate_learns_nothing():
    with pytest.warns(UserWarning, match="no gradient"):
        router = TopK(1)
    logits = torch.randn(1, 5, 3, requires_grad=True)
    (router(logits).weight * torch.arange(5)).sum().backward()
    assert logits.grad.abs().max() < 1e-7


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: TopK(0), "at least 1"),
        (lambda: TopK(5)(torch.zeros(1, 3, 4)), "only 4"),
        (lambda: TopK(2, capacity_factor=0.0), "capacity 0"),
        (lambda: ExpertChoice(0.0), "capacity 0"),
        (lambda: Transport(-1.0), "positive"),
        (lambda: TopK(2, priority="luck"), "priority"),
        (lambda: ExpertChoice(causal=True), "causal"),
        (lambda: Transport(causal=True), "causal"),
        (lambda: Sinkhorn(causal=True), "causal"),
        (lambda: Hash()(torch.zeros(1, 3, 4)), "ids"),
        (lambda: TopK(2)(torch.zeros(1, 3, 4, dtype=torch.float16)), "float32"),
        (lambda: ExpertChoice()(torch.zeros(1, 3, 4), bias=torch.zeros(4)), "bias"),
    ],
)
def test_bad_settings_are_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()


def test_bad_tensors_are_refused():
    with pytest.raises(NumericsError, match="diverged"):
        TopK(2)(torch.full((1, 3, 4), float("nan")))
    with pytest.raises(ShapeError, match="groups, tokens, experts"):
        TopK(2)(torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="mask"):
        TopK(2)(torch.zeros(1, 3, 4), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="ids"):
        Hash()(torch.zeros(1, 3, 4), ids=torch.zeros(3))
