"""Curves: every kind at equal budgets, kept arms, the page."""

import json

import pytest
import torch

from gossamer.autoencoders.chart import chart, write_curves
from gossamer.autoencoders.curves import VARIANTS, Budget, fit_variant, sweep
from gossamer.autoencoders.metrics import measure
from gossamer.data import Batches
from gossamer.errors import CheckpointError, ConfigError

X = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0)) @ torch.randn(8, 8)
BUDGET = Budget(32, 250, lr=1e-2, window=2000, device="cpu")


def data():
    return Batches([X], 64, seed=0, shuffle=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_comes_near_its_budget_by_single_tokens(name):
    sae = fit_variant(name, 4, data(), BUDGET)
    found = measure(sae, [X])
    assert 2.5 < found.l0 < 6
    assert found.fvu < 0.7
    assert (sae.prefixes == (4, 12, 32)) is (name == "Matryoshka")


def test_finished_arms_are_kept_and_other_settings_refused(tmp_path):
    calls = []

    def measured(sae):
        calls.append(sae.select.name)
        return measure(sae, [X]).as_dict()

    path = tmp_path / "curves.json"
    few = Budget(32, 4, device="cpu")
    sweep(["TopK"], [2, 4], data(), few, measured, path, {"text": "a"})
    rows = sweep(["TopK", "mutual"], [2, 4], data(), few, measured, path, {"text": "a"})
    assert calls == ["topk", "topk", "mutual", "mutual"]
    assert [(row["kind"], row["k"]) for row in rows] == [("TopK", 2), ("TopK", 4), ("mutual", 2), ("mutual", 4)]
    assert rows[1]["l0"] > rows[0]["l0"]
    with pytest.raises(CheckpointError, match="curves with text = 'a', now it is 'b'"):
        sweep(["TopK"], [2], data(), few, measured, path, {"text": "b"})
    with pytest.raises(ConfigError, match="did you mean 'TopK'"):
        fit_variant("topK", 2, data(), few)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="holds no curves"):
        sweep(["TopK"], [2], data(), few, measured, path, {})


def test_the_page_draws_every_point(tmp_path):
    rows = [{"kind": kind, "k": k, "l0": float(k), "fvu": 0.5 / k} for kind in ("TopK", "a < b") for k in (2.0, 4.0)]
    text = write_curves(tmp_path / "c.html", "Curves", rows, {"model": "x"}, "gossamer sae curves").read_text()
    assert text.count("<circle") == 4
    assert text.count("<polyline") == 2
    assert "a &lt; b" in text
    assert text.count("<tr>") == 5
    assert chart([{"kind": "dead", "k": 1.0, "l0": 0.0, "fvu": 1.0}]) == ""
    assert json.dumps(rows)
