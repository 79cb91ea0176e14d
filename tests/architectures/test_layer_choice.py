"""N:M choices by layer: masks that hold their patterns, searches at equal budget, and a file to go on from."""

import pytest
import torch

from gossamer.architectures import Evaluator, OneOf, SearchSpace, Subset
from gossamer.architectures.layer_choice import ARMS, LayerChoice, layer_space, pattern_of, run_seed
from gossamer.architectures.nsga import search_nsga2
from gossamer.errors import ConfigError, DataError
from gossamer.models import build

SMALL = LayerChoice(
    {
        "data": "digits",
        "data_options": {"batch_size": 64, "val": 0.2},
        "model_options": {"hidden": [8, 8], "norm": False},
        "steps": 2,
        "device": "cpu",
    },
    options=("dense", "1:4"),
    budget=3,
    warm=2,
    fresh=1,
    updates=2,
)


def test_masks_hold_their_patterns():
    model = build("mlp", shape=(1, 8, 8), hidden=(16, 12), norm=False)
    space = layer_space(model, ("dense", "2:4", "1:8"))
    assert [slot.options for slot in space.space.slots] == [("dense", "2:4", "1:8")] * 2
    masks = space.masks((1, 0))
    assert set(masks) == {"fc1.weight", "fc2.weight"}  # the last layer stays dense
    pattern_of("2:4").check(masks["fc1.weight"])
    assert masks["fc2.weight"].all()
    kept = model.fc1.weight.detach().abs().view(16, -1, 4)
    assert torch.equal(masks["fc1.weight"].view(16, -1, 4), kept >= kept.sort(2).values[..., 2:3])


def test_a_layer_gets_what_divides_it():
    space = layer_space(build("resnet-20"), ("dense", "1:4"))
    assert space.space.slots[0].options == ("dense",)  # three colours
    assert space.space.slots[1].options == ("dense", "1:4")


def test_searches_spend_equally_and_go_on_in_their_folder(tmp_path):
    pytest.importorskip("pymoo", reason="pymoo is not installed")
    row = run_seed(SMALL, 0, tmp_path)
    for arm in ARMS:
        assert len(row[arm]["evaluations"]) == 3
        assert row[arm]["area"] == sorted(row[arm]["area"])
        assert row[arm]["front"]
    trained = {tuple(e[:2]): e for arm in ARMS for e in row[arm]["evaluations"]}
    assert len(trained) <= 4
    assert all(e == trained[tuple(e[:2])] for arm in ARMS for e in row[arm]["evaluations"])
    before = (tmp_path / "trained.json").stat().st_mtime_ns
    assert run_seed(SMALL, 0, tmp_path) == row
    assert (tmp_path / "trained.json").stat().st_mtime_ns == before


def test_nsga2_finds_the_front_of_a_small_space():
    pytest.importorskip("pymoo", reason="pymoo is not installed")
    space = SearchSpace((OneOf("a", ("x", "y", "z")), OneOf("b", ("x", "y"))))
    evaluator = Evaluator(space, lambda a: (float(a[0]), float(a[1])), 6, goal=("max", "min"))
    found = search_nsga2(evaluator, population=4, generations=20)
    assert (2, 0) in {e.architecture for e in found}
    with pytest.raises(ConfigError, match="without a rule"):
        search_nsga2(Evaluator(SearchSpace((Subset("h", 4, 2),)), lambda a: 0.0, 2, goal="max"))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"options": ("dense", "2-4")}, ConfigError, "N:M such as '2:4', not '2-4'"),
        ({"options": ("dense", "5:4")}, ConfigError, "not '5:4'"),
        ({"budget": 0}, ConfigError, "at least 1 evaluation"),
        ({"flow": "mb"}, ConfigError, "a flow loss is one of"),
        ({"training": {"data_option": {}}}, ConfigError, "did you mean 'data_options'"),
        ({"budgets": 3}, ConfigError, "did you mean 'budget'"),
        ({"options": ("dense",)}, ConfigError, "one architecture alone"),
        ({"training": {"data": "digits"}}, DataError, "no validation part"),
    ],
)
def test_bad_input_is_named(changes, error, text):
    with pytest.raises(error, match=text):
        run_seed(LayerChoice.from_json(SMALL.as_json() | changes), 0)
