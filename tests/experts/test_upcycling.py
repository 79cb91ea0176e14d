"""An upcycled model is the dense one at the start; what is not recognised or does not agree is named."""

import copy

import pytest
import torch
from torch import nn

from gossamer.errors import CheckpointError, ConfigError, ShapeError
from gossamer.experts import (
    ExpertChoice,
    TopK,
    active_parameters,
    find_ffn,
    identical,
    moe_layers,
    moe_report,
    stack,
    upcycle,
    upcycle_from,
)


class Gated(nn.Module):
    def __init__(self, width=8, hidden=12):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(hidden, width, bias=False), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), mlp

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def plain():
    return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8))


def model(kind=plain, blocks=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*(Block(kind()) for _ in range(blocks))).eval()


X = torch.linspace(-2, 2, 10 * 8).view(10, 8).sin()


@pytest.mark.parametrize("kind", [plain, Gated])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"router": TopK(3), "n_experts": 5},
        {"init": "slices", "slices": 2},
        {"init": "slices", "slices": 2, "n_experts": 6, "router": TopK(4)},
        {"router": ExpertChoice(4.0, renormalise=True)},
    ],
)
def test_the_upcycled_model_equals_the_dense_one(kind, options):
    dense = model(kind)
    moe = upcycle(copy.deepcopy(dense), **options)
    assert len(moe_layers(moe)) == 3
    assert torch.allclose(moe(X), dense(X), atol=1e-5)


def test_with_a_capacity_kept_tokens_are_equal():
    dense = model(blocks=1)
    moe = upcycle(copy.deepcopy(dense), router=TopK(1, renormalise=False, capacity_factor=0.5))
    layer = moe[0].mlp
    layer.router = TopK(2, capacity_factor=0.5)
    plan = layer.route(moe[0].norm(X))
    whole = torch.zeros(10).index_add(0, plan.token, plan.weight) > 0.999  # both choices served
    assert 0 < whole.sum() < 10
    assert torch.allclose(moe(X)[whole], dense(X)[whole], atol=1e-5)
    assert torch.equal(moe(X)[plan.dropped[0]], X[plan.dropped[0]])


def test_noise_and_drop_make_experts_differ():
    for options in ({"init": "noise", "noise": 0.1}, {"init": "drop", "ratio": 0.5}):
        moe = upcycle(model(blocks=1), **options)
        layer = moe[0].mlp
        assert not identical(layer)
    up, dense = layer.experts.up, model(blocks=1)[0].mlp[0].weight
    assert [(up[e] == dense).all(1).sum().item() for e in range(4)] == [6] * 4  # half of 12 units are kept
    assert identical(upcycle(model(blocks=1))[0].mlp)


def test_the_seed_alone_decides():
    one, two = (upcycle(model(), init="noise", seed=s).state_dict() for s in (3, 3))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_hot_routes_reproduce_each_stage():
    base = model()
    models = [base, *(copy.deepcopy(base) for _ in range(2))]
    for number, other in enumerate(models[1:]):
        torch.manual_seed(number + 5)
        for block in other:
            nn.init.normal_(block.mlp[0].weight)
    expected = [m(X) for m in models]
    moe = upcycle_from(models, router=TopK(1, renormalise=False))
    for j, wanted in enumerate(expected):
        for layer in moe_layers(moe).values():
            layer.selection_bias = torch.eye(3)[j] * 10
            layer.gate.weight.data.zero_()
        found = X
        for block in moe:  # the weight of one of three equal gates is 1/3
            found = found + 3 * block.mlp(block.norm(found))
        assert torch.allclose(found, wanted, atol=1e-5)


def test_only_the_last_of_each_tower():
    towers = nn.ModuleDict({"a": model(), "b": model(blocks=1)})
    assert find_ffn(towers, last=2) == ["a.1.mlp", "a.2.mlp", "b.0.mlp"]
    assert find_ffn(towers, r"a\..*\.mlp") == ["a.0.mlp", "a.1.mlp", "a.2.mlp"]


def test_active_parameters_count_k_of_e():
    dense = model()
    shared = sum(p.numel() for block in dense for p in block.norm.parameters())
    expert = sum(p.numel() for block in dense for p in block.mlp.parameters())
    moe = upcycle(dense, n_experts=4, router=TopK(2))
    gates = 3 * 4 * 8
    assert active_parameters(moe) == (shared + gates + 2 * expert, shared + gates + 4 * expert)


def test_the_report_counts():
    moe = upcycle(model(blocks=1))
    report = moe_report(moe, lambda m: m(X))["layers"]["0.mlp"]
    assert sum(report["load"]) == pytest.approx(1)
    assert report["similarity"] == pytest.approx(1)
    assert report["dropped"] == 0
    assert 0.9 < report["entropy"] <= 1.0001


def test_what_is_no_network_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.act, self.fc2 = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)

        def forward(self, x):
            return 2 * self.fc2(self.act(self.fc1(x)))

    with pytest.raises(ConfigError, match="computes more"):
        upcycle(model(Odd))
    with pytest.raises(ConfigError, match=r"near: .*0\.mlp"):
        find_ffn(model(), r".*\.mlps")
    with pytest.raises(ConfigError, match=r"did you mean '0\.mlp'"):
        upcycle(model(), ["0.mpl"])
    with pytest.raises(ConfigError, match="no feed-forward"):
        find_ffn(model(), r".*norm")
    with pytest.raises(ConfigError, match="last"):
        find_ffn(model(), last=0)
    with pytest.raises(ShapeError, match="expert 1"):
        stack([plain(), nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_experts": 1}, "at least 2"),
        ({"router": TopK(5)}, "k=5"),
        ({"init": "clone"}, "one of copy"),
        ({"init": "slices", "slices": 3}, "divisible"),
        ({"init": "noise", "noise": 0.0}, "noise"),
        ({"init": "drop", "ratio": 1.5}, "ratio"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ConfigError, match=match):
        upcycle(model(), **options)


def test_models_that_differ_elsewhere_are_named():
    base, other = model(), model()
    other[1].norm.weight.data[3] += 0.25
    with pytest.raises(CheckpointError, match=r"first in 1\.norm\.weight, by at most 0\.25"):
        upcycle_from([base, other])
    with pytest.raises(CheckpointError, match="another architecture"):
        upcycle_from([model(), model(blocks=2)])
    with pytest.raises(ConfigError, match="two models"):
        upcycle_from([model()])
