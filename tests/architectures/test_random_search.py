"""Random search against brute force, its fair comparison against scipy, and the study of one seed."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from gossamer.architectures import Evaluator, OneOf, SearchSpace
from gossamer.architectures.initial import SCORES, AtInit
from gossamer.architectures.masks import MaskSpace
from gossamer.architectures.paired import Arm, compare
from gossamer.architectures.random_search import draws_of, random_search
from gossamer.architectures.study import Study, dataset, run_seed
from gossamer.errors import ConfigError, NumericsError
from gossamer.models.mlp import mlp

SMALL = Study(
    data_options={"batch_size": 100},
    model_options={"hidden": [16, 16], "norm": False},
    sparsity=0.5,
    draws=5,
    steps=20,
    score_steps=5,
)


def tiny():
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 1, 2, 2, generator=source), torch.randint(3, (40,), generator=source)
    model = mlp(shape=(1, 2, 2), classes=3, hidden=(6, 6), norm=False)
    with pytest.warns(UserWarning, match="survive"):
        space = MaskSpace.nodes(model, x, 0.5)
    return model, space, (x, y)


def test_all_draws_equal_brute_force():
    model, space, batch = tiny()
    score = AtInit(model, space, [batch])
    assert space.space.size == math.comb(6, 3) ** 2
    found = random_search(space.space, score, 400)
    assert len(found.evaluations) == 400
    assert found.best.value == min(score(architecture) for architecture in space.space)
    assert found.best.value == min(e.value for e in found.evaluations) == found.trajectory[-1]


def test_the_score_is_the_loss_of_the_masked_network():
    model, space, (x, y) = tiny()
    drawn = space.space.sample(3)
    masks = space.masks(drawn)
    w = {name: (p * masks[name] if name in masks else p).detach() for name, p in model.named_parameters()}
    h = torch.relu(x.flatten(1) @ w["fc1.weight"].T + w["fc1.bias"])
    h = torch.relu(h @ w["fc2.weight"].T + w["fc2.bias"])
    wanted = torch.nn.functional.cross_entropy(h @ w["head.weight"].T + w["head.bias"], y)
    assert AtInit(model, space, [(x, y)])(drawn) == pytest.approx(float(wanted), abs=1e-6)
    assert AtInit(model, space, [(x[:10], y[:10]), (x[10:], y[10:])])(drawn) == pytest.approx(float(wanted), abs=1e-6)


def test_one_draw_is_the_random_configuration():
    _, space, _ = tiny()
    one = random_search(space.space, lambda a: 0.0, 1, seed=4)
    many = random_search(space.space, lambda a: sum(map(sum, a)), 20, seed=4)
    assert one.best.architecture == one.first.architecture == many.first.architecture
    assert draws_of(space.space, 20, 4) == draws_of(space.space, 20, 4) != draws_of(space.space, 20, 5)


def test_gradient_scores_match_finite_differences():
    model, space, batch = tiny()
    model = model.double()
    batch = batch[0].double(), batch[1]
    drawn = space.space.sample(0)
    loss, norm = AtInit(model, space, [batch]), AtInit(model, space, [batch], "gradient_norm")
    squares, salience = 0.0, 0.0
    masks = space.masks(drawn)
    with torch.no_grad():
        for name, p in model.named_parameters():
            for i in range(p.numel()):
                if name in masks and not masks[name].flatten()[i]:
                    continue
                sides = []
                for step in (1e-5, -1e-5):
                    p.view(-1)[i] += step
                    sides.append(loss(drawn))
                    p.view(-1)[i] -= step
                slope = (sides[0] - sides[1]) / 2e-5
                squares += slope**2
                salience += abs(slope * float(p.view(-1)[i]))
    assert norm(drawn) == pytest.approx(math.sqrt(squares), rel=1e-5)
    assert AtInit(model, space, [batch], "snip")(drawn) == pytest.approx(salience, rel=1e-5)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_every_score_is_a_number_and_leaves_the_parent_alone(name):
    model, space, batch = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert math.isfinite(AtInit(model.train(), space, [batch], name)(space.space.sample(0)))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_shared_budget_ends_the_search():
    space = SearchSpace((OneOf("a", tuple("abcdefgh")), OneOf("b", tuple("abcdefgh"))))
    evaluator = Evaluator(space, lambda a: float(a[0]), 7, goal="max")
    found = random_search(space, draws=50, evaluator=evaluator)
    assert len(found.evaluations) == found.cost["evaluations"] == 7
    assert found.best.value == max(e.value for e in found.evaluations)


def test_searches_without_sense_are_refused():
    space = SearchSpace((OneOf("a", ("x", "y")),))
    with pytest.raises(ConfigError, match="at least 1 draw"):
        random_search(space, lambda a: 0.0, 0)
    with pytest.raises(ConfigError, match="score or an evaluator"):
        random_search(space)
    with pytest.raises(NumericsError, match="all 2"):
        random_search(space, lambda a: math.nan, 5)
    with pytest.raises(ConfigError, match="did you mean 'snip'"):
        Study(score="snap")
    with pytest.raises(ConfigError, match="density"):
        Study(sparsity=1.0)
    with pytest.raises(ConfigError, match="did you mean 'draws'"):
        Study.from_json({"draw": 3})


# --------------------------------------------------------------------------- comparison


def arms(a, b, **protocol):
    seeds = tuple(range(len(a)))
    return [Arm("random", seeds, tuple(b), protocol), Arm("searched", seeds, tuple(a), protocol)]


def test_the_comparison_agrees_with_scipy():
    rng = np.random.default_rng(0)
    b = rng.normal(90, 1, 12)
    a = b + rng.normal(0.1, 0.4, 12)
    row = compare(arms(a, b), "random", 0.5)[1]
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high))
    low = stats.ttest_rel(a + 0.5, b, alternative="greater").pvalue
    high = stats.ttest_rel(a - 0.5, b, alternative="less").pvalue
    assert row.tost.p == pytest.approx(max(low, high))


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.1, -0.1, 0.05, 0.0, -0.05], "equivalent"),
        ([2.1, 1.9, 2.2, 2.0, 1.8], "better"),
        ([-2.1, -1.9, -2.2, -2.0, -1.8], "worse"),
        ([5.0, -3.0, 4.0, -2.0, 1.5], "no better than the control"),
        ([0.45, 0.48, 0.40, 0.49, 0.58], "no better than the control"),
    ],
)
def test_verdicts(gains, verdict):
    base = [90.0, 91.0, 89.0, 92.0, 90.5]
    row = compare(arms([b + g for b, g in zip(base, gains, strict=True)], base), "random", 0.5)[1]
    assert row.verdict == verdict


def test_unfair_comparisons_are_refused():
    one, two = arms([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], epochs=3)
    with pytest.raises(ConfigError, match="same seeds"):
        compare([one, Arm("searched", (0, 1, 5), (1.0, 2.0, 3.0), {"epochs": 3})], "random")
    with pytest.raises(ConfigError, match="'epochs': 4 and 3"):
        compare([one, Arm("searched", (0, 1, 2), (1.0, 2.0, 3.0), {"epochs": 4})], "random")
    with pytest.raises(ConfigError, match="unknown control"):
        compare([one, two], "dense")
    with pytest.warns(UserWarning, match="no verdict"):
        assert compare(arms([1.0, 2.0], [1.0, 2.5]), "random")[1].verdict == "no verdict"


# --------------------------------------------------------------------------- one seed


def seedless(row):
    """A row without times."""
    text = json.loads(json.dumps(row))
    for arm in ("dense", "random", "searched"):
        text[arm].pop("seconds")
    return text


def test_a_study_is_a_function_of_its_seed():
    one, two, three = run_seed(SMALL, 0), run_seed(SMALL, 0), run_seed(SMALL, 1)
    assert seedless(one) == seedless(two) != seedless(three)
    assert one["searched"]["init_loss"] == min(one["scores"]) <= one["random"]["init_loss"] == one["scores"][0]
    assert one["searched"]["zeros"] == pytest.approx({"fc1.weight": 0.5, "fc2.weight": 0.75, "head.weight": 0.5})
    assert Study.from_json(json.loads(json.dumps(SMALL.as_json()))) == SMALL


def test_a_study_goes_on_in_its_folder(tmp_path):
    whole = run_seed(SMALL, 0)
    first = run_seed(SMALL, 0, tmp_path)
    assert seedless(run_seed(SMALL, 0, tmp_path)) == seedless(first) == seedless(whole)


def test_standardised_inputs_have_unit_moments_and_equal_order():
    plain, changed = dataset(SMALL, 3), dataset(replace(SMALL, standardise=True), 3)
    x = changed.train.tensors()[0]
    live = plain.train.tensors()[0].std(0) > 1e-6
    assert torch.allclose(x.mean(0), torch.zeros(1, 8, 8), atol=1e-5)
    assert torch.allclose(x.std(0)[live], torch.ones(int(live.sum())), atol=1e-4)
    assert torch.equal(plain.train.batch(7)[1], changed.train.batch(7)[1])
    assert torch.equal(plain.test.tensors()[1], changed.test.tensors()[1])
