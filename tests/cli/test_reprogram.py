"""`gossamer reprogram`: tickets drawn here or runs of your own, adapted to other data, with a table and a page."""

import json

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.timeout(300)  # a process for each seed, on a machine that may be busy

QUICK = ("--epochs", 1, "--limit", 200, "--shots", "all,3", "--workers", 1)
TICKETS = ("--source-data", "digits", "--steps", 20, "--set", 'model_options={"hidden": [16, 16]}')


def test_tickets_are_drawn_adapted_and_kept(gossamer, tmp_path):
    done = gossamer("reprogram", *TICKETS, *QUICK, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    rows = done.json["rows"]
    assert {(r["model"], r["way"], r["shots"]) for r in rows} == {
        (m, w, s) for m in ("dense", "90 %") for w in ("prompt", "probe") for s in (None, 3)
    }
    assert all(0 <= r["ece"] <= 1 and r["upstream"] is not None for r in rows)
    density = done.json["density"]
    assert density["dense"] == pytest.approx(1, abs=1e-3)
    head, hidden = 16 * 10, 64 * 16 + 16 * 16
    assert density["90 %"] == pytest.approx((head + 0.1 * hidden) / (head + hidden), abs=2e-3)
    page = (tmp_path / "transfer.html").read_text()
    assert "<svg" in page
    assert page.index("Learned prompts") < page.index("data:image/png;base64,") < page.index("</main>")
    seen = load_file(tmp_path / "runs" / "s0" / "prompts.safetensors")
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        f"{shots} {model}": (1, 8, 8) for shots in ("all", 3) for model in ("dense", "90 %")
    }
    kept = tmp_path / "runs" / "s0" / "sweep.json"
    before = kept.stat().st_mtime_ns
    again = gossamer("reprogram", *TICKETS, *QUICK, "-o", tmp_path)
    assert again.code == 0
    assert "upstream" in again.out
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "transfer.json").read_text())["rows"] == rows


def test_runs_of_ones_own_are_sources(gossamer, runs, tmp_path):
    done = gossamer("reprogram", runs / "dense", runs / "rigl", "--data", "digits", *QUICK, "-o", tmp_path, "--json")
    assert done.code == 0, done.err
    assert set(done.json["density"]) == {"dense", "rigl"}
    assert done.json["density"]["rigl"] < 0.2
    trained = json.loads((runs / "rigl" / "result.json").read_text())
    known = {row["model"]: row["upstream"] for row in done.json["rows"]}
    assert known["rigl"] == pytest.approx(trained["fit"]["test"]["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--inner", 12), 2, "leaves no border"),
        (("--sparsity", "1.0"), 2, r"lie in [0, 1)"),
        (("--sparsity", "most"), 2, "numbers with commas"),
        (("--shots", "few"), 2, "whole numbers or 'all'"),
        (("--shots", "5000"), 3, "5000 shots were asked for"),
        (("--mapping", "iterativ"), 2, "kind of a label mapping"),
        (("--set", "epoch=3"), 2, "did you mean 'epochs'"),
        (("--set", 'allocation="globall"'), 2, "did you mean 'global'"),
        (("nowhere",), 3, "does not exist"),
        (("--set", "shots=3"), 2, "a setting is of the wrong kind"),
        (("--set", "model_options=3"), 2, "a setting is of the wrong kind"),
        (("--data", "digit"), 2, "did you mean 'digits'"),
    ],
)
def test_what_cannot_be_transferred_is_said_before_it_runs(gossamer, tmp_path, arguments, code, message):
    done = gossamer("reprogram", *TICKETS, *QUICK, *arguments, "-o", tmp_path)
    assert (done.code, message in done.err) == (code, True), done.err
    assert not any(tmp_path.iterdir())
