"""Gates, the ladder and training."""

import pytest
import torch

from gossamer.domains.dynamics import Budget, GatedReLUMLP, Ladder, Pushing, fit, magnitude, rmse, sparsify, tent
from gossamer.domains.dynamics.files import load, save, train
from gossamer.domains.dynamics.model import choose
from gossamer.domains.dynamics.study import data_for, model_for
from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError


def test_the_straight_through_gradient_is_the_soft_samples():
    logits = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 3, dtype=torch.float64)
    hard = choose(logits, 0.7, torch.Generator().manual_seed(3))
    assert ((hard.detach() - hard.detach().round()).abs() < 1e-12).all()
    torch.testing.assert_close(hard.sum(1), torch.ones(7, dtype=torch.float64))
    (got,) = torch.autograd.grad((hard * weight).sum(), logits)
    uniform = torch.rand(7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    soft = ((logits - (-uniform.clamp(1e-10, 1 - 1e-7).log()).log()) / 0.7).softmax(-1)
    (expected,) = torch.autograd.grad((soft * weight).sum(), logits)
    torch.testing.assert_close(got, expected)


def test_decided_neurons_have_no_gradient_and_never_return():
    model = GatedReLUMLP([2, 6, 1])
    with torch.no_grad():
        model.logits.copy_(torch.tensor([[1.0, 0, 0]] * 3 + [[-2.0, 1, 0], [-3.0, 0, 1], [-1.0, 1, 0]]))
    model.decide(3)
    assert model.counts() == {"relu": 3, "identity": 2, "removed": 1}
    model(torch.randn(5, 2), 1.0).square().sum().backward()
    assert (model.logits.grad[3:] == 0).all()
    before = model.states.clone()
    model.decide(1)
    assert (model.states[3:] == before[3:]).all()
    assert model.relus == 1


def test_the_ladder_falls_to_its_target():
    assert Ladder()(48, 12) == [37, 28, 21, 16, 13, 12]
    assert Ladder(1)(5, 0) == [0]


def test_training_learns_and_sparsifying_keeps_the_target():
    data = tent(2, 500, 0)
    torch.manual_seed(0)
    model = fit(GatedReLUMLP([1, 8, 1]), data, 400, lr=3e-2, seed=0)
    assert rmse(model, data) < 0.3 * float(data[1].std())
    budget = Budget(20, 10, 50)
    sparse = sparsify(model, data, 3, budget=budget, schedule=Ladder(2))
    assert sparse.relus == 3
    assert model.relus == 8
    cut = sparsify(model, data, 3, budget=budget, schedule=Ladder(2), rank=magnitude)
    assert cut.counts() == {"relu": 3, "identity": 0, "removed": 5}
    again = sparsify(model, data, 3, budget=budget, schedule=Ladder(2))
    assert all(torch.equal(a, b) for a, b in zip(sparse.parameters(), again.parameters(), strict=True))


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    data, budget, lines = Pushing().data(200, 0), Budget(5, 5, 10), []

    def fresh():
        torch.manual_seed(0)
        return GatedReLUMLP([4, 8, 2])

    class Stop(Exception):  # noqa: N818
        pass

    def stop(line):
        if line.startswith("stage 3"):
            raise Stop

    options = {"steps": 20, "budget": budget}
    with pytest.raises(Stop):
        train(fresh(), data, 3, tmp_path, say=stop, **options)
    assert (tmp_path / "stages.json").exists()
    with pytest.raises(CheckpointError, match="of a training with"):
        train(fresh(), data, 2, tmp_path, resume=True, **options)
    resumed, _ = train(fresh(), data, 3, tmp_path, resume=True, say=lines.append, **options)
    assert lines[0] == "goes on after stage 2 of 8"
    assert not (tmp_path / "stages.json").exists()
    whole, dense = train(fresh(), data, 3, tmp_path / "other", **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert (dense.relus, whole.relus) == (8, 3)
    by_hand = sparsify(fit(fresh(), data, 20), data, 3, budget=budget)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), by_hand.parameters(), strict=True))


@pytest.mark.parametrize("system", ["push", "pile"])
def test_a_kept_model_is_the_same(system, tmp_path):
    model, (x, _) = model_for(system, (5, 4)), data_for(system, 10, 0)[0]
    model.decide(6)
    save(tmp_path, model, system)
    again, name = load(tmp_path)
    assert name == system
    assert again.counts() == model.counts()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_rows_of_a_batch_are_sampled_apart():
    model = GatedReLUMLP([2, 40, 1])
    gates = model.gates(8, 1.0, torch.Generator().manual_seed(0))
    assert gates.shape == (8, 40, 3)
    assert len(torch.unique(gates.detach().round(), dim=0)) == 8
    share = model.gates(500, 1.0, torch.Generator().manual_seed(0))[..., 0].mean().item()
    assert share == pytest.approx(model.logits[0].softmax(0)[0].item(), abs=0.01)
    with torch.no_grad():
        x, gate = torch.randn(8, 2), model.gates(8, 1.0, torch.Generator().manual_seed(1))
        one_by_one = torch.cat([model.given(row[None], own) for row, own in zip(x, gate, strict=True)])
        torch.testing.assert_close(model.given(x, gate), one_by_one)


def test_divergence_and_wild_data_are_named():
    x = torch.randn(50, 2)
    with pytest.raises(NumericsError, match="diverged at lr=1e"):
        fit(GatedReLUMLP([2, 4, 4, 1]), (x, x[:, :1]), 200, lr=1e18)
    wild = 1e6 + 1e3 * x  # not normalised: the model holds the scales
    model = fit(GatedReLUMLP([2, 8, 1]), (wild, 1e-6 * x[:, :1]), 300, lr=1e-2)
    assert rmse(model, (wild, 1e-6 * x[:, :1])) < 3e-7


def test_bad_input_is_named():
    model, data = GatedReLUMLP([4, 3, 2]), Pushing().data(10, 0)
    for relus in (-1, 4):
        with pytest.raises(ConfigError, match=f"relus={relus}: the model has 3"):
            sparsify(model, data, relus)
    with pytest.raises(NumericsError, match="targets"):
        fit(model, (data[0], data[1] * torch.nan), 1)
    with pytest.raises(ShapeError, match="maps 4 to 2"):
        fit(model, (data[0][:, :3], data[1]), 1)
    with pytest.raises(ConfigError, match="widths"):
        GatedReLUMLP([3])
    with pytest.raises(ConfigError, match="temperature"):
        choose(torch.zeros(1, 3), 0.0)
