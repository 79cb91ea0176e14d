"""The main job as a subprocess: small budget, real table, report and files; finished trainings are kept."""

import json

import pytest

from gossamer.runs.model_files import load_sparsity

pytestmark = pytest.mark.timeout(300)  # several trainings, on a machine that may be busy


@pytest.fixture(scope="module")
def output(gossamer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = gossamer("demo", "--output", folder, "--seeds", 1, "--steps", 80)
    assert done.code == 0, done.err
    assert "granet" in done.out
    assert "report.html" in done.out
    return folder


def test_table_and_report_agree_with_the_files(output):
    record = json.loads((output / "comparison.json").read_text())
    by_method = {card["method"]: card for card in record["cards"]}
    assert set(by_method) == {"dense", "random mask", "granet"}
    masks, about = load_sparsity(output / "granet-0" / "run")
    kept = sum(int(m.sum()) for m in masks.values())
    total = sum(m.numel() for m in masks.values())
    assert kept == by_method["granet"]["nnz_by_mask"]
    assert abs(kept - 0.1 * total) <= 1
    assert "granet" in about["recipe"]
    assert by_method["granet"]["taxonomy_contradictions"] == []
    assert by_method["granet"]["peak_density"] == 1.0
    assert by_method["random mask"]["peak_density"] < 0.11
    assert "<html" in (output / "report.html").read_text()


def test_finished_trainings_are_kept(gossamer, output):
    before = (output / "granet-0" / "run" / "model.safetensors").stat().st_mtime_ns
    again = gossamer("demo", "--output", output, "--seeds", 1, "--steps", 80)
    assert again.code == 0, again.err
    assert (output / "granet-0" / "run" / "model.safetensors").stat().st_mtime_ns == before


def test_changed_arguments_are_refused(gossamer, output):
    changed = gossamer("demo", "--output", output, "--seeds", 1, "--steps", 120)
    assert changed.code == 2
    assert "train.steps was 80, is now 120" in changed.err


def test_version_and_bad_usage(gossamer):
    assert gossamer("--version").out.strip()[0].isdigit()
    wrong = gossamer("demo", "--sedes", 1)
    assert wrong.code == 2
    assert "--seeds" in wrong.err
