"""`gossamer compare`, `report` and `lint` on finished runs."""

import csv
import io
import json
import shutil

import pytest


def accuracy(folder):
    return json.loads((folder / "result.json").read_text())["fit"]["test"]["accuracy"]


def test_every_format_shows_the_figures_of_the_runs(gossamer, runs):
    rows = {row["method"]: row for row in gossamer("compare", runs, "--json").json["rows"]}
    for name in ("dense", "rigl"):
        assert rows[name]["metric"]["mean"] == accuracy(runs / name)
        assert rows[name]["seeds"] == 1
    assert rows["rigl"]["difference"]["mean"] == pytest.approx(accuracy(runs / "rigl") - accuracy(runs / "dense"))
    shown = f"{100 * accuracy(runs / 'rigl'):.2f}"
    for form in ("rich", "md", "latex"):
        assert shown in gossamer("compare", runs, "--format", form).out
    table = list(csv.DictReader(io.StringIO(gossamer("compare", runs, "-f", "csv").out)))
    assert float(table[1]["metric mean"]) == accuracy(runs / "rigl")
    assert "did you mean 'latex'" in gossamer("compare", runs, "-f", "latx").err


def test_seeds_are_joined_and_settings_name_the_arms(gossamer, runs, tmp_path):
    for name, changes in (("one", {}), ("two", {"seed": 1}), ("three", {"steps": 99})):
        shutil.copytree(runs / "rigl", tmp_path / name)
        path = tmp_path / name / "result.json"
        record = json.loads(path.read_text())
        record["config"]["train"] |= changes
        path.write_text(json.dumps(record))
    rows = gossamer("compare", tmp_path / "one", tmp_path / "two", tmp_path / "three", "--json").json["rows"]
    assert {row["method"]: row["seeds"] for row in rows} == {"rigl steps=40": 2, "rigl steps=99": 1}
    control = gossamer("compare", tmp_path, "--control", "rigl steps=99", "--json")
    assert control.json["control"] == "rigl steps=99"
    assert "or 'rigl steps=40'" in gossamer("compare", tmp_path, "--control", "rigl steps").err
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    assert "same seed" in gossamer("compare", tmp_path).err


def test_unfinished_runs_are_named_and_left_out(gossamer, runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "rigl" / "result.json").unlink()
    done = gossamer("compare", tmp_path / "runs", "--json")
    assert [row["method"] for row in done.json["rows"]] == ["dense"]
    assert "rigl is not finished" in done.err
    assert gossamer("compare", tmp_path / "nowhere").code == 3
    damaged = tmp_path / "runs" / "dense" / "result.json"
    damaged.write_text(damaged.read_text()[:-30])
    assert gossamer("compare", tmp_path / "runs").code == 3
    damaged.write_text(
        '{"card": {}, "config": {"train": {"seed": 0}, "recipe": {"name": "dense"}}, "fit": {"test": {}}}'
    )
    assert gossamer("compare", tmp_path / "runs").code in (2, 3)


def test_the_page_holds_the_same_figures(gossamer, runs, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    done = gossamer("report", runs, "-o", tmp_path / "page.html")
    assert done.out == f"{tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text()
    assert f'data-value="{accuracy(runs / "rigl")}"' in page or str(accuracy(runs / "rigl")) in page
    assert "<script src" not in page
    assert gossamer("report", runs / "rigl", "--json").json["arms"] == ["rigl"]
    assert (runs / "rigl" / "report.html").exists()


def test_lint_warns_with_0_and_ends_with_1_on_an_error(gossamer, runs, tmp_path):
    done = gossamer("lint", runs, "--json")
    assert done.code == 0
    assert {"code", "level", "message"} == set(done.json[0])
    assert {finding["code"] for finding in done.json} >= {"W3", "W9"}
    shutil.copytree(runs, tmp_path / "runs")
    path = tmp_path / "runs" / "rigl" / "result.json"
    record = json.loads(path.read_text())
    record["card"]["masked_nonzero"] = 7
    path.write_text(json.dumps(record))
    broken = gossamer("lint", tmp_path / "runs")
    assert broken.code == 1
    assert "E2 rigl: 7 masked weights" in broken.out
