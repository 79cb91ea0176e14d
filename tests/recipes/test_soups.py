"""Soups: one branch is IMP to the bit, masks are shared, faults are named, branches resume and run in processes."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gossamer.data import Batches
from gossamer.data.dataset import Dataset
from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.recipes import gmp, imp, random, soups
from gossamer.recipes.soups import average_of_runs, best_of, reprune, sms, soft_vote, soup_after, spread, variants
from gossamer.sparsify import Recipe
from gossamer.sparsify.allocation import budget
from gossamer.sparsify.averaging import average, recalibrate_bn
from gossamer.training import Classification, Memory, OptimConfig, Stage, TrainConfig, run_stages
from gossamer.training.branches import Branches
from gossamer.training.optim import adaptive_factor, lr_factor, retraining


def samples(seed):
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(seed))
    return [x, x[:, :4].argmax(1)]


DATA = Dataset(Batches(samples(0), 64, shuffle=True), Batches(samples(1), 64), Batches(samples(2), 64), 4, (16,))
TRAIN = TrainConfig(steps=12, device="cpu", checkpoint_every=4, optim=OptimConfig(name="nesterov"))


def task(norm=True):
    torch.manual_seed(0)
    layers = [nn.Linear(16, 32), *([nn.BatchNorm1d(32)] if norm else []), nn.ReLU(), nn.Linear(32, 4)]
    return Classification(nn.Sequential(*layers))


def soup(m=3, goal=0.9, phases=2, **options):
    options.setdefault("recalibrate", DATA.train)
    return sms(goal, phases, TRAIN, m=m, retrain_steps=6, **options)


def cooked(stages, run=None, **options):
    done = task()
    memory = run_stages(stages, done, DATA, run, **options)
    return done, memory


def same(one, two):
    return all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


# --------------------------------------------------------------------------- identities


@pytest.mark.parametrize("schedule", ["llr", "clr", "slr", "lrw", "ft"])
def test_one_branch_is_iterative_pruning_bit_for_bit(schedule):
    single, _ = cooked(soup(m=1, schedule=schedule))
    again = TRAIN.model_copy(update={"steps": 6, "optim": retraining(schedule, TRAIN.optim, 6, 12)})
    plain = task()
    run_stages(imp(0.9, 2, TRAIN, rewinding=False, retrain=again), plain, DATA)
    assert all(torch.equal(a, b) for a, b in zip(single.model.parameters(), plain.model.parameters(), strict=True))
    recalibrate_bn(plain.model, DATA.train)
    assert same(single.model, plain.model)


def test_one_branch_needs_no_recalibration():
    single, _ = cooked(soup(m=1, recalibrate=None))
    plain, _ = cooked(soup(m=1))
    assert all(torch.equal(a, b) for a, b in zip(single.model.parameters(), plain.model.parameters(), strict=True))


def test_the_soup_is_the_mean_of_its_branches_under_their_mask():
    stages = soup()
    done, memory = cooked(stages)
    states = list(memory.candidates)
    assert memory.candidates.names == ("branch-0", "branch-1", "branch-2")
    total = 16 * 32 + 32 * 4
    for name in ("0.weight", "3.weight"):
        zero = [state[name] == 0 for state in states]
        assert torch.equal(zero[0], zero[1])
        assert torch.equal(zero[0], zero[2])
        assert not torch.equal(states[0][name], states[1][name])
        expected = torch.stack([state[name].double() for state in states]).mean(0).float()
        assert torch.equal(dict(done.model.named_parameters())[name].detach(), expected)
    kept = sum(int((done.model.state_dict()[name] != 0).sum()) for name in ("0.weight", "3.weight"))
    assert kept == budget(0.1, total)
    assert set(done.masks) == {"0.weight", "3.weight"}
    assert sum(int(mask.sum()) for mask in done.masks.values()) == kept
    assert memory.results["phase-1"]["density"] == pytest.approx(0.1**0.5, abs=1 / total)


def test_phases_keep_geometric_shares():
    total = 16 * 32 + 32 * 4
    stages = soup(m=2, goal=0.96, phases=3)
    for k in range(1, 4):
        done, _ = cooked(stages[: k + 1])
        kept = sum(int((done.model.state_dict()[name] != 0).sum()) for name in ("0.weight", "3.weight"))
        assert kept == budget(0.04 ** (k / 3), total)


def test_weights_choose_a_branch_and_a_setting_varies():
    stages = soup(m=0, vary={"optim.weight_decay": (0.0, 0.1), "steps": (3, 6)}, merge=(0.0, 1.0))
    done, memory = cooked(stages)
    states = list(memory.candidates)
    assert memory.results["phase-2"]["branches"]["branch-0"]["steps"] == 3
    assert torch.equal(done.model.state_dict()["0.weight"], states[1]["0.weight"])
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])


def test_branches_without_a_varied_setting_are_equal():
    _, memory = cooked(soup(m=0, vary={"steps": (6, 6)}))
    first, second = memory.candidates
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_greedy_soup_is_never_worse_on_validation_than_its_best_branch():
    _, memory = cooked(soup(m=4, merge="greedy"))
    for phase in ("phase-1", "phase-2"):
        result = memory.results[phase]
        best = max(branch["val"]["accuracy"] for branch in result["branches"].values())
        assert result["val"]["accuracy"] >= best
        assert 1 <= len(result["chosen"]) <= 4


def test_a_soup_after_gradual_pruning_keeps_its_mask():
    stages = soup_after(gmp(0.8, every=2), TRAIN, retrain_steps=6, recalibrate=DATA.train)
    sparse, _ = cooked(stages[:1])
    done, memory = cooked(stages)
    for name in ("0.weight", "3.weight"):
        assert torch.equal(done.model.state_dict()[name] == 0, sparse.model.state_dict()[name] == 0)
    assert memory.results["soup"]["density"] == memory.results["sparse"]["density"]
    assert not torch.equal(done.model.state_dict()["0.weight"], sparse.model.state_dict()["0.weight"])


# --------------------------------------------------------------------------- faults


def explode(model, sparsifier, memory):
    """Makes the branch with the shortest run diverge."""
    if sparsifier.steps == 5:
        for group in sparsifier.optimizer.param_groups:
            group["lr"] = 1e30


def test_a_diverged_branch_is_named_and_the_rest_kept(caplog):
    stages = soup(m=0, vary={"steps": (6, 5, 7)})
    stages = [stages[0], replace(stages[1], on_start=explode)]
    done, memory = cooked(stages)
    result = memory.results["phase-1"]
    assert list(result["diverged"]) == ["branch-1"]
    assert "loss is" in result["diverged"]["branch-1"] or "NaN" in result["diverged"]["branch-1"]
    assert result["chosen"] == ["branch-0", "branch-2"]
    assert "branch-1 diverged" in caplog.text
    assert all(bool(torch.isfinite(value).all()) for value in done.model.state_dict().values())
    mean = average(list(memory.candidates))
    assert torch.equal(done.model.state_dict()["0.weight"], mean["0.weight"])
    with pytest.raises(NumericsError, match="all 2 branches diverged; branch-0: the loss is"):
        cooked([stages[0], replace(soup(m=0, vary={"steps": (5, 5)})[1], on_start=explode)])


def test_different_masks_are_refused_with_layer_and_count():
    branches = Branches(variants(TRAIN, 2), recalibrate=DATA.train)
    with pytest.raises(MaskError, match=r"0\.weight: the masks of branch-1 and branch-0 differ in \d+ of 512"):
        cooked([Stage("wild", random(0.5), TRAIN, branches)])


def test_bad_soups():
    with pytest.raises(ConfigError, match="at least two models"):
        soup(m=0)
    with pytest.raises(ConfigError, match=r"pass recalibrate=data\.train"):
        cooked(soup(recalibrate=None))
    with pytest.raises(ConfigError, match="sum 1"):
        soup(merge=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match="sum 1"):
        soup(merge=(1.5, -0.5, 0.0))
    with pytest.raises(ConfigError, match="each of 3 branches"):
        soup(merge=(0.5, 0.5))
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        soup(merge="uniforn")
    with pytest.raises(ConfigError, match="phases"):
        soup(phases=0)
    with pytest.raises(ConfigError, match="re-iterable"):
        soup(recalibrate=iter(DATA.train))
    with pytest.raises(ConfigError, match=r"needs at least one batch|the data gave 0"):
        cooked(soup(recalibrate=[]))
    with pytest.raises(ConfigError, match="did you mean 'llr'"):
        soup(schedule="llrr")
    with pytest.raises(ConfigError, match="cannot rewind the learning rate by 40"):
        sms(0.9, 1, TRAIN, retrain_steps=40, schedule="lrw")
    with pytest.raises(ConfigError, match=r"one value for each branch, got \{'steps': 2, 'seed': 1\}"):
        soup(vary={"steps": (1, 2), "seed": (0,)})
    with pytest.raises(ConfigError, match=r"optim\.lrr.*did you mean 'optim\.lr'"):
        soup(vary={"optim.lrr": (1, 2)})
    sparse, _ = cooked([Stage("prune", soups.magnitude_mask("m", 0.3, soups.Global(), soups.Select()), TRAIN)])
    with pytest.raises(ConfigError, match=r"is 70\.00% sparse already; the goal 50\.00% is not above"):
        run_stages(soup(goal=0.5, pretrained=True), sparse, DATA)
    blind = Dataset(DATA.train, None, DATA.test, 4, (16,))
    with pytest.raises(ConfigError, match="validation part"):
        run_stages(soup(merge="greedy"), task(), blind)


# --------------------------------------------------------------------------- files and processes


def test_stopped_branches_resume_to_the_same_bits(tmp_path):
    whole, _ = cooked(soup())
    first, memory = cooked(soup(), tmp_path / "a")
    assert same(whole.model, first.model)
    assert len(memory.candidates) == 3
    for path in (tmp_path / "a").glob("02-*"):  # as if stopped in the second phase, within its second branch
        if path.is_dir():
            shutil.rmtree(path / "branch-2")
            for checkpoint in sorted((path / "branch-1" / "run" / "checkpoints").iterdir()):
                if "00000004" not in checkpoint.name:
                    checkpoint.unlink()
        else:
            path.unlink()
    again, _ = cooked(soup(), tmp_path / "a", resume=True)
    assert same(whole.model, again.model)
    with pytest.raises(ConfigError, match="changed argument"):
        cooked(soup(m=2), tmp_path / "a", resume=True)
    fresh, _ = cooked(soup(m=2), tmp_path / "a", overwrite=True)
    assert not list((tmp_path / "a").glob("*/branch-2"))
    assert not same(fresh.model, whole.model)


@pytest.mark.slow
def test_processes_give_the_same_bits(tmp_path):
    whole, _ = cooked(soup(phases=1))
    apart, memory = cooked(soup(phases=1, workers=2), tmp_path / "a")
    assert same(whole.model, apart.model)
    assert len(list(tmp_path.glob("a/*/branch-*/sweep.json"))) == 3
    assert len(memory.candidates) == 3
    hidden, memory = cooked(soup(phases=1, m=2, workers=2))
    alone, _ = cooked(soup(phases=1, m=2))
    assert same(alone.model, hidden.model)
    assert len(list(memory.candidates)) == 2


def test_callables_that_processes_cannot_import_are_named(tmp_path):
    stages = soup(phases=1, workers=2)
    stages[1] = replace(stages[1], on_start=lambda model, sparsifier, memory: None)
    with pytest.raises(ConfigError, match="defined at the top of a module"):
        cooked(stages, tmp_path / "a")


# --------------------------------------------------------------------------- schedules


def rates(rule, steps=10, before=20, **options):
    first = OptimConfig(lr=0.4, **options)
    optim = retraining(rule, first, steps, before)
    return [optim.lr * lr_factor(step, steps, optim) for step in range(steps)]


def original(before=20, **options):
    first = OptimConfig(lr=0.4, **options)
    return [0.4 * lr_factor(step, before, first) for step in range(before)]


@pytest.mark.parametrize("options", [{}, {"schedule": "step"}, {"schedule": "linear", "warmup": 0.2}])
def test_rewinding_repeats_the_last_rates_and_fine_tuning_the_very_last(options):
    assert rates("lrw", **options) == original(**options)[10:]
    assert rates("lrw", 20, **options) == original(**options)
    assert rates("ft", **options) == [original(**options)[-1]] * 10


def test_retraining_schedules_by_hand():
    rise = (1 - math.cos(math.pi / 2)) / 2
    assert rates("llr") == pytest.approx([0.4 * rise, *(0.4 * (1 - k / 9) for k in range(9))])
    assert rates("allr") == rates("llr")
    cosine = [0.1 + 0.3 * (1 + math.cos(math.pi * k / 9)) / 2 for k in range(9)]
    assert rates("clr", schedule="linear", final=0.25) == pytest.approx([0.4 * rise, *cosine])
    held = rates("slr", 100, schedule="linear", warmup=0.2)
    assert held[10:28] == [0.4] * 18  # the place of the first warm-up
    assert held[29] < 0.4
    assert rates("slr", 20, schedule="step", milestones=(0.5,), gamma=0.5)[10] == 0.2


def test_the_adaptive_rate_follows_the_drop_of_the_norm():
    assert adaptive_factor(5.0, 4.0, 0.5, 1, 100) == pytest.approx(0.6 / math.sqrt(0.5))
    assert adaptive_factor(5.0, 5.0, 0.5, 25, 100) == 0.25  # the lower bound
    assert adaptive_factor(5.0, 0.0, 0.5, 1, 100) == 1.0
    seen = {}
    stages = soup(m=1, goal=0.5, phases=1, schedule="allr")

    def watch(model, sparsifier, memory):
        stages[1].on_start(model, sparsifier, memory)
        seen["rate"] = sparsifier.optimizer.param_groups[0]["lr"]
        parameters = dict(model.named_parameters())
        seen["norm"] = math.sqrt(
            sum(float(parameters[name].detach().double().square().sum()) for name in sparsifier.masks)
        )
        seen["before"] = memory.values["before"]["norm"]

    cooked([stages[0], replace(stages[1], on_start=watch)])
    drop = math.sqrt(1 - (seen["norm"] / seen["before"]) ** 2) / math.sqrt(0.5)
    assert 0 < drop < 1
    assert seen["rate"] == pytest.approx(TRAIN.optim.lr * max(drop, 0.5))


# --------------------------------------------------------------------------- baselines


def test_independent_runs_have_the_union_of_masks_and_repruning_restores_the_count():
    runs = []
    for seed in (0, 1):
        done = task(norm=False)
        train = TRAIN.model_copy(update={"seed": seed})
        data = Dataset(DATA.train.reseeded(seed), None, DATA.test, 4, (16,))
        run_stages(imp(0.8, 1, train, rewinding=False), done, data)
        runs.append(done.model)
    weights = [[p.detach() for p in model.parameters() if p.ndim > 1] for model in runs]
    mean = average_of_runs(runs)
    union = sum(int(((a != 0) | (b != 0)).sum()) for a, b in zip(*weights, strict=True))
    total = 16 * 32 + 32 * 4
    assert sum(int(p.count_nonzero()) for p in mean.parameters() if p.ndim > 1) == union
    assert union > budget(0.2, total)
    with pytest.raises(ShapeError, match=r"0\.weight is torch\.float64 in model 1, torch\.float32 in model 0"):
        average_of_runs([runs[0], task(norm=False).model.double()])
    thin = reprune(mean, 0.8)
    assert sum(int(p.count_nonzero()) for p in thin.parameters() if p.ndim > 1) == budget(0.2, total)


def test_the_mean_is_that_of_torch():
    states = [task().model for _ in range(3)]
    for number, model in enumerate(states):
        for p in model.parameters():
            p.data.add_(0.01 * number * torch.randn_like(p))
    theirs = AveragedModel(states[0])
    for model in states:
        theirs.update_parameters(model)
    ours = average(states)
    for name, p in theirs.module.named_parameters():
        torch.testing.assert_close(ours[name], p.detach(), rtol=1e-6, atol=1e-7)


def test_ensembles_average_probabilities():
    one, two = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    assert soft_vote([one, two]).exp()[0].tolist() == pytest.approx([0.375, 0.625])
    linear = [nn.Linear(4, 3), nn.Linear(4, 3)]
    x = torch.randn(5, 4)
    mean = nn.Linear(4, 3)
    mean.load_state_dict(average(linear))
    torch.testing.assert_close(mean(x), (linear[0](x) + linear[1](x)) / 2)
    with pytest.raises(ConfigError, match="at least one model"):
        soft_vote([])
    with pytest.raises(ShapeError, match="one shape"):
        soft_vote([one, torch.zeros(2, 2)])
    assert best_of([0.1, 0.5, 0.5]) == 1


def test_spread_of_two_points_by_hand():
    states = [{"w": torch.tensor([[3.0, 0.0]]), "n": torch.tensor(5)}, {"w": torch.tensor([[0.0, 4.0]])}]
    found = spread(states)
    assert found == pytest.approx({"distance": 5.0, "angle": 90.0, "nearest": 2.5, "farthest": 2.5})
    with pytest.raises(ConfigError, match="at least two"):
        spread(states[:1])


def test_memory_and_dense_recipes_pass_through_branches():
    """Branches of a dense stage have no masks and average everything."""
    branches = Branches(variants(TRAIN, 2), recalibrate=DATA.train)
    done, memory = cooked([Stage("dense", Recipe(), TRAIN, branches)])
    assert done.masks == {}
    assert isinstance(memory, Memory)
    assert len(memory.candidates) == 2
