"""`gossamer sweep`: every job once, chosen on validation, compared on test."""

import json

import pytest

from gossamer.cli.sweep import choose, plan, words
from gossamer.errors import ConfigError
from gossamer.training.config import Config

pytestmark = pytest.mark.timeout(300)  # several trainings, on a machine that may be busy

SMALL = ("--set", "data.options={batch_size: 64}", "--set", "model.options={hidden: [16]}", "--workers", 1)


@pytest.fixture(scope="module")
def swept(gossamer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "out"
    arguments = ("-r", "random", "--seeds", 1, "--steps", 60, *SMALL, "-o", folder)
    return (*arguments, "--grid", "train.optim.lr=0.00001,0.2"), folder


def test_the_better_setting_is_chosen_and_nothing_runs_twice(gossamer, swept):
    arguments, folder = swept
    done = gossamer("sweep", *arguments, "--json")
    assert done.code == 0, done.err
    assert [row["method"] for row in done.json["rows"]] == ["random"]
    cards = json.loads((folder / "comparison.json").read_text())["cards"]
    assert all("lr 0.2" in card["optimizer"] for card in cards)
    assert [card["role"] for card in cards] == ["random_mask"]
    results = [json.loads(path.read_text()) for path in folder.glob("*/run/result.json")]
    assert len(results) == 2
    assert all(result["fit"]["val"] for result in results)
    models = {path: path.stat().st_mtime_ns for path in folder.glob("*/run/model.safetensors")}
    again = gossamer("sweep", *arguments, "--json")
    assert again.json == done.json
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert "2 trainings" in done.err
    assert len(gossamer("compare", folder, "--json").json["rows"]) == 2


def test_the_test_part_decides_nothing():
    def outcome(val, test):
        return {
            "config": Config().model_dump(mode="json"),
            "fit": {"val": {"accuracy": val}, "test": {"accuracy": test}},
        }

    worse_on_test, better_on_test = [outcome(0.9, 0.1), outcome(0.7, 0.1)], [outcome(0.8, 1.0), outcome(0.7, 1.0)]
    assert choose([better_on_test, worse_on_test]) is worse_on_test
    nothing_held_out = [outcome(0.9, 0.1) | {"fit": {"val": None, "test": {"accuracy": 1}}}]
    with pytest.raises(ConfigError, match=r"data\.options\.val"):
        choose([nothing_held_out, nothing_held_out])


def test_the_plan_crosses_recipes_sparsities_and_settings():
    arms = plan(Config(), ["dense", "rigl"], [0.8, 0.9], ["train.optim.lr=0.1,0.2", "train.clip=1.0"])
    assert list(arms) == ["dense", "rigl-0.8", "rigl-0.9"]
    assert [point.train.optim.lr for point in arms["rigl-0.9"]] == [0.1, 0.2]
    assert all(p.recipe.options["sparsity"] == 0.9 and p.train.clip == 1.0 for p in arms["rigl-0.9"])
    assert all(p.data.options["val"] == 0.1 for points in arms.values() for p in points)
    assert words("a, b,,a") == ["a", "b"]
    with pytest.raises(ConfigError, match="commas"):
        words(",")


def test_a_bad_name_ends_the_sweep_before_it_begins(gossamer, tmp_path):
    dry = gossamer(
        "sweep", "-r", "dense,random", "--sparsities", "0.8,0.9", "--seeds", 2, "--dry-run", "--json", cwd=tmp_path
    )
    assert len(set(dry.json)) == 6
    cases = {
        ("-r", "dense,rigel"): "did you mean 'rigl'",
        ("--sparsities", "0.9,high"): "'high'",
        ("--grid", "train.optim.lrr=1,2"): "did you mean 'train.optim.lr'",
        ("--grid", "train.optim.lr"): "commas",
        ("-r", "rigl", "--steps", "20"): "no mask update",
    }
    for options, message in cases.items():
        done = gossamer("sweep", *options, "-o", tmp_path / "out")
        assert (done.code, message in done.err) == (2, True), done
    assert list(tmp_path.iterdir()) == []


def test_a_failed_training_is_named_and_the_others_are_kept(gossamer, tmp_path):
    arguments = (
        "-r",
        "dense",
        "--seeds",
        1,
        "--steps",
        5,
        *SMALL,
        "--set",
        "train.optim.lr=1e30",
        "-o",
        tmp_path / "out",
    )
    done = gossamer("sweep", *arguments)
    assert done.code == 3
    assert "the loss is" in done.err
    assert "1 of 1 trainings failed" in done.err
    assert done.out == ""
