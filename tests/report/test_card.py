"""Cards survive a round trip byte for byte and refuse what cannot be."""

import json

import pytest
from pydantic import ValidationError

from gossamer.errors import ConfigError, DataError
from gossamer.report.card import Comparison, Curve, Layer, ReportCard, comparison


def test_round_trip_is_exact_and_stable(card, compared, tmp_path):
    one = card()
    assert ReportCard.from_json(one.to_json()) == one
    assert ReportCard.from_json(one.to_json()).to_json() == one.to_json()
    assert list(json.loads(one.to_json())) == list(ReportCard.model_fields)
    one.save(tmp_path / "card.json")
    compared.save(tmp_path / "all.json")
    assert ReportCard.load(tmp_path / "card.json") == one
    assert Comparison.load(tmp_path / "all.json") == compared


def test_a_minimal_card_states_nothing_else():
    bare = ReportCard(method="m", model="mlp", data="digits")
    assert (bare.estimate, bare.inference_ratio, bare.training_ratio, bare.other("ece")) == (None,) * 4


def test_derived_figures(card):
    one = card(values=(0.9, 0.92, 0.94), inference_flops=25.0, inference_flops_dense=100.0)
    assert one.estimate.mean == pytest.approx(0.92)
    assert one.estimate.sd == pytest.approx(0.02)
    assert one.inference_ratio == 0.25
    assert one.other("ece").mean == pytest.approx(0.023)
    assert Layer(name="w", shape=[4], numel=4, kept=1).density == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity_prunable": -0.1}, r"sparsity_prunable\s+Input should be greater than or equal to 0"),
        ({"seeds": [1, 1, 2]}, "seeds must differ"),
        ({"values": [0.9]}, "1 values for 3 seeds"),
        ({"other_metrics": {"ece": [0.1]}}, "ece: 1 values for 3 seeds"),
        ({"values": [0.9, float("nan"), 0.9]}, "finite"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"taxonomy": {"stage": "durng"}}, "did you mean 'during'"),
        ({"selection": "best"}, "selection"),
        ({"steps": 0}, "steps"),
    ],
)
def test_impossible_fields_are_named(card, change, message):
    with pytest.raises(ValidationError, match=message):
        card(**change)


def test_impossible_parts_are_named():
    with pytest.raises(ValidationError, match="layer 'w' keeps 5 of 4"):
        Layer(name="w", shape=[4], numel=4, kept=5)
    with pytest.raises(ValidationError, match="curve 'loss': 2 steps and 1 values"):
        Curve(quantity="loss", steps=[0, 1], values=[1.0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[:100], "no valid ReportCard"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format: Input should be 1"),
        (lambda text: text.replace('"kept": 101', '"kept": "many"'), r"layers\.0\.kept"),
        (lambda text: "[]", "no valid ReportCard"),
    ],
)
def test_damaged_files_are_refused(card, tmp_path, spoil, message):
    path = tmp_path / "card.json"
    path.write_text(spoil(card().to_json()))
    with pytest.raises(DataError, match=message):
        ReportCard.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        Comparison.load(tmp_path / "absent.json")


def test_only_like_is_compared_with_like(card):
    with pytest.raises(ConfigError, match="different data sets cannot be compared: digits-shifted, mnist"):
        comparison([card("a"), card("b", data="mnist")])
    with pytest.raises(ConfigError, match="different names"):
        comparison([card("a"), card("a")])
    with pytest.raises(ConfigError, match="cards"):
        comparison([])
