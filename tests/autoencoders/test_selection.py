"""Selections against brute force, their counts and symmetries, budgets."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.autoencoders.budgets import Zipf, fit_zipf, share_budget
from gossamer.autoencoders.selection import FeatureChoice, JumpReLU, MutualChoice, ReLU, TokenChoice, from_dict, make
from gossamer.errors import ConfigError, NumericsError, ShapeError


def _z(b, f, seed):
    return torch.randn(b, f, generator=torch.Generator().manual_seed(seed)).relu()


def _brute(z, legal):
    """The largest sum over all masks that `legal` admits."""
    masks = (torch.tensor(bits).view(z.shape).bool() for bits in itertools.product((0, 1), repeat=z.numel()))
    return max(float(z[mask].sum()) for mask in masks if legal(mask))


@pytest.mark.parametrize("seed", range(3))
def test_each_choice_maximises_the_kept_sum(seed):
    z = _z(4, 3, seed)
    cases = (
        (TokenChoice(2), lambda m: int(m.sum(1).max()) <= 2),
        (MutualChoice(1.25), lambda m: int(m.sum()) <= 5),
        (FeatureChoice(1.5), lambda m: bool((m.sum(0) <= 2).all())),
    )
    for choice, legal in cases:
        assert float(z[choice.mask(z)].sum()) == pytest.approx(_brute(z, legal), abs=1e-6), choice


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10**6), st.floats(0.2, 8))
def test_counts(b, f, seed, k):
    z = _z(b, f, seed)
    k = min(k, f)
    whole = max(1, int(k))
    assert int(MutualChoice(k).mask(z).sum()) == min(int(k * b), int((z > 0).sum()))
    assert torch.equal(TokenChoice(whole).mask(z).sum(1), (z > 0).sum(1).clamp(max=whole))
    if int(k * b) >= f:
        budgets = FeatureChoice(k).tokens(b, f)
        assert int(budgets.sum()) == int(k * b)
        assert torch.equal(FeatureChoice(k).mask(z).sum(0), torch.minimum(budgets, (z > 0).sum(0)))


def test_identities():
    z = _z(6, 5, 0)
    values, places = z.topk(2, dim=1)
    rows = torch.zeros_like(z).scatter(1, places, values) > 0
    assert torch.equal(TokenChoice(2).mask(z), rows)
    assert torch.equal(FeatureChoice(2.5).mask(z), TokenChoice(3).mask(z.t()).t())
    assert torch.equal(MutualChoice(2).mask(z[:1]), TokenChoice(2).mask(z[:1]))
    for choice in (TokenChoice(5), MutualChoice(5), FeatureChoice(5)):
        assert torch.equal(choice.mask(z), z > 0)


@given(st.integers(0, 10**6))
def test_permuting_tokens_permutes_the_choice(seed):
    z = _z(6, 4, seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    for choice in (TokenChoice(2), MutualChoice(2), FeatureChoice(2)):
        assert torch.equal(choice.mask(z[order]), choice.mask(z)[order])


def test_ties_go_to_the_lowest_index():
    assert MutualChoice(1).mask(torch.ones(2, 3)).nonzero().tolist() == [[0, 0], [0, 1]]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 10**6), st.floats(0, 1))
def test_budgets_add_up_and_stay_in_bounds(features, most, seed, fill):
    shares = torch.rand(features, generator=torch.Generator().manual_seed(seed)).exp().pow(8)
    total = features + int(fill * (most - 1) * features)
    budgets = share_budget(shares, total, most)
    assert int(budgets.sum()) == total
    assert int(budgets.min()) >= 1
    assert int(budgets.max()) <= most
    order = shares.argsort()
    assert bool((budgets[order].diff() >= -1).all())  # monotone but for the rounding


def test_zipf_is_recovered_from_its_own_densities():
    law = Zipf(0.9, 4.0)
    density = 0.3 * law.shares(200)
    density[190:] = 0.0  # the dying end does not count
    found = fit_zipf(density[torch.randperm(200)])
    assert found.alpha == pytest.approx(0.9, rel=0.02)
    assert found.beta == pytest.approx(4.0, rel=0.1)


def test_zipf_budgets_follow_the_ranks():
    budgets = FeatureChoice(1.0, "zipf", 1.0).tokens(60, 3, torch.tensor([2, 0, 1]))
    assert budgets.tolist() == [11, 33, 16]


def test_choices_round_trip_as_values():
    for choice in (TokenChoice(3), MutualChoice(2.5), FeatureChoice(2, "zipf", 1.2, 3.0), ReLU(4), JumpReLU(None, 0.5)):
        assert from_dict(choice.as_dict()) == choice
    assert make("batchtopk", k=3) == MutualChoice(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenChoice(0).check(8), "k=0: needs a whole number above 0 and at most the 8 features"),
        (lambda: TokenChoice(9).check(8), "k=9"),
        (lambda: TokenChoice(1.5).check(8), "k=1.5: needs a whole number"),
        (lambda: MutualChoice(float("nan")).check(8), "k=nan"),
        (lambda: FeatureChoice(1.0).tokens(4, 8), "M=4 gives less than one token per feature .* at least 8 tokens"),
        (lambda: FeatureChoice(2.0, "zipff").check(8), "did you mean 'zipf'"),
        (lambda: make("topkk"), "did you mean 'topk'"),
        (lambda: make("topk", kk=3), "option of 'topk' 'kk'"),
        (lambda: ReLU(4, power=0.5, final_power=0.7).check(8), "final_power <= power"),
        (lambda: JumpReLU(4, threshold=-1.0).check(8), "both must be above 0"),
        (lambda: Zipf(-1.0), "alpha >= 0"),
        (lambda: fit_zipf(torch.tensor([0.1, 0.0, 0.0, 0.0])), "at least 3 used features"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_bad_budgets_and_activations_are_named():
    z = torch.rand(4, 3)
    with pytest.raises(ConfigError, match="the budgets add up to 5, not to M=6"):
        FeatureChoice(1.5).mask(z, budgets=torch.tensor([1, 2, 2]))
    with pytest.raises(ShapeError, match="3 features need as many budgets"):
        FeatureChoice(1.5).mask(z, budgets=torch.tensor([3, 3]))
    with pytest.raises(NumericsError, match="activations hold 1 NaN"):
        MutualChoice(1).mask(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NumericsError, match="densities must be finite"):
        fit_zipf(torch.tensor([0.1, float("nan")]))
