"""`gossamer search`: comparisons that resume, pages that show them, and clear words for what cannot be searched."""

import json

import pytest

from gossamer.report.card import Comparison

pytestmark = pytest.mark.timeout(300)  # several processes, on a machine that may be busy

SMALL = (
    *("--standardise", "--seeds", 1, "--steps", 20, "--draws", 5, "--sparsity", 0.5, "--workers", 1),
    *("--set", 'model_options={"hidden": [16, 16], "norm": false}'),
)


def test_a_comparison_is_run_once_and_shown(gossamer, tmp_path):
    done = gossamer("search", "random", *SMALL, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    arms = {row["arm"]: row for row in done.json["arms"]}
    assert set(arms) == {"dense", "random", "searched"}
    assert arms["searched"]["verdict"] == "no verdict"
    assert arms["searched"]["evaluations"] == 5
    assert arms["random"]["weight_sparsity"] > 0.5
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    cards = Comparison.load(tmp_path / "cards-0.5.json").cards
    assert [card.role for card in cards] == ["dense", "random_mask", "method"]
    assert [100 * card.values[0] for card in cards] == pytest.approx([arms[c.method]["accuracy"] for c in cards])
    assert "Random search at 0.5" in (tmp_path / "cards-0.5.html").read_text()
    kept = tmp_path / "runs" / "0.5-s0" / "sweep.json"
    before = kept.stat().st_mtime_ns
    again = gossamer("search", "random", *SMALL, "-o", tmp_path, "--json")
    assert again.json["arms"] == done.json["arms"]
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "search.json").read_text())["arms"] == done.json["arms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--draws", 0), "at least 1 draw"),
        (("--sparsity", "0.99"), "largest that leaves one is 0.96875"),
        (("--sparsity", "much"), "numbers with commas"),
        (("--score", "los"), "did you mean 'loss'"),
        (("--space", "edges"), "unknown space"),
        (("--set", "model_option={}"), "did you mean 'model_options'"),
        (("--set", "draws=many"), "NAME=JSON"),
        (("--space", "nm", "--sparsity", "0.9"), "no n:m"),
        (("--margin", 0), "must be positive, got 0"),
        (("--set", "data_options=3"), "a setting is of the wrong kind"),
        (("--set", 'optim={"lr": -1}'), "lr = -1"),
    ],
)
def test_what_cannot_be_searched_is_said_before_it_runs(gossamer, tmp_path, arguments, message):
    done = gossamer("search", "random", *SMALL, "-o", tmp_path, *arguments)
    assert done.code == 2
    assert message in done.err
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["random", "dass"])
def test_text_has_no_classes_to_tell_apart(gossamer, tmp_path, command):
    (tmp_path / "words.txt").write_text("to be or not to be " * 200)
    options = json.dumps({"path": str(tmp_path / "words.txt"), "context": 8, "batch_size": 4})
    done = gossamer("search", command, "--data", "text", "--set", f"data_options={options}", "-o", tmp_path / "out")
    assert (done.code, "needs samples with classes" in done.err) == (2, True), done.err


def test_cells_are_searched_pruned_timed_and_drawn(gossamer, tmp_path):
    short = ("--set", "search=[6,4,6]", "--set", "retrain=[12,6,8]", "--workers", 1)
    done = gossamer("search", "dass", *short, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    (seed,) = done.json["seeds"]
    assert set(seed) == {"dass", "dense search", "random cell"}
    for row in seed.values():
        assert 0 < row["nonzeros"] < 0.05 * row["total"]
        assert row["plan_ms"] > 0
        assert row["gap"] < 1e-3
        assert len(row["architecture"]) == 3
    assert (tmp_path / "report.html").read_text().count("<svg") == 5
    again = gossamer("search", "dass", *short, "-o", tmp_path, "--json")
    assert again.json == done.json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "chains"), "did you mean 'chain'"),
        (("--keep", 0), "(0, 1]"),
        (("--keep", 0.001), "none of its 36 weights"),
        (("--order", 3), "order must be 1 or 2"),
        (("--set", "search=[1,0,1]"), "three numbers"),
        (("--set", "search=3"), "a setting is of the wrong kind"),
        (("--set", 'weights={"lr": -1}'), "lr = -1"),
        (("--set", 'network={"operations": ["skip"]}'), "one architecture alone"),
    ],
)
def test_cells_that_cannot_be_searched_are_said_before_they_run(gossamer, tmp_path, arguments, message):
    done = gossamer("search", "dass", *arguments, "-o", tmp_path)
    assert done.code == 2, done.err
    assert message in done.err


def test_layers_get_patterns_and_the_front_is_drawn(gossamer, tmp_path):
    short = ("--budget", 3, "--steps", 3, "--workers", 1, "--set", 'model_options={"hidden": [8, 8], "norm": false}')
    done = gossamer("search", "layers", *short, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    (seed,) = done.json["seeds"]
    assert seed["slots"] == ["fc1", "fc2"]
    assert len(seed["gflownet"]["evaluations"]) == len(seed["random"]["evaluations"]) == 3
    assert (tmp_path / "report.html").read_text().count("<svg") == 4
    again = gossamer("search", "layers", *short, "-o", tmp_path)
    assert again.code == 0
    assert "front of gflownet" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", 0), "at least 1 evaluation"),
        (("--options", "dense"), "one architecture alone"),
        (("--options", "dense,4"), "N:M such as"),
        (("--set", "data_option={}"), "did you mean 'data_options'"),
        (("--flow", "tbb"), "a flow loss is one of"),
    ],
)
def test_layers_that_cannot_be_searched_are_said_before_they_run(gossamer, tmp_path, arguments, message):
    done = gossamer("search", "layers", *arguments, "-o", tmp_path)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not any(tmp_path.iterdir())


def test_masses_of_a_sampler_are_drawn(gossamer, tmp_path):
    done = gossamer("search", "gflownet", "modes", "--steps", 5, "--reward", 1, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    assert set(done.json["samplers"]) == {"order", "reward^1"}
    assert done.json["samplers"]["order"]["share"] == 4 / 64
    assert (tmp_path / "report.html").read_text().count("<svg") == 2
    front = gossamer("search", "gflownet", "front", "--side", 5, "--steps", 5, "-o", tmp_path)
    assert front.code == 0, front.err
    assert "mass on the best" in front.out
    assert (tmp_path / "report.html").read_text().count("<svg") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mode",), "did you mean 'modes'"),
        (("front", "--objectives", "branin"), "two different objectives"),
        (("front", "--reward", 1), "needs one objective"),
        (("words", "--flow", "x"), "a flow loss is one of"),
        (("words", "--ranks", "best"), "'batch' or 'global'"),
        (("modes", "--reward", -1), "exponent of the reward"),
    ],
)
def test_samplers_that_cannot_be_trained_are_refused(gossamer, tmp_path, arguments, message):
    done = gossamer("search", "gflownet", *arguments, "-o", tmp_path)
    assert (done.code, message in done.err) == (2, True), done.err
