"""Every rule finds its breach, says who, and is silent on the sound twin of that breach."""

import pytest

from gossamer.errors import ConfigError
from gossamer.report.card import Latency, ReportCard
from gossamer.report.lint import RULES, lint
from gossamer.report.taxonomy import TAXONOMIES

RANDOM = {"role": "random_mask", "taxonomy": TAXONOMIES["random"], "mask_flips": 0, "peak_density": 0.1}
SPARSE_TIME = [Latency(kernel="sparse rows", hardware="cpu", milliseconds=1.0)]
DENSE_TIME = [Latency(kernel="dense", hardware="cpu", milliseconds=1.0)]

# rule: (name, changes) of cards that breach it, and of cards that do not
CASES = {
    "E1": (
        [("alpha", {"nnz_by_mask": 100, "nnz_by_value": 101})],
        [("alpha", {"nnz_by_mask": 100, "nnz_by_value": 99})],
    ),
    "E2": ([("alpha", {"masked_nonzero": 2})], [("alpha", {})]),
    "E3": ([("alpha", {"masked_momentum": 2})], [("alpha", {})]),
    "W1": (
        [("alpha", {}), ("b", {"steps": 5000})],
        [("alpha", {}), ("b", {"steps": 5000, "epochs_multiplier": 5.0})],
    ),
    "W2": ([("alpha", {}), ("b", {"augmentation": "none"})], [("alpha", {}), ("b", {})]),
    "W3": ([("alpha", {"seeds": [0, 1], "values": [0.9, 0.9], "other_metrics": {}})], [("alpha", {})]),
    "W4": ([("alpha", {"sparsity_scope": ""})], [("alpha", {"sparsity_scope": "weights"})]),
    "W5": (
        [("alpha", {"inference_flops": 100.0}), ("b", {"inference_flops": 200.0})],
        [("alpha", {"inference_flops": 100.0}), ("b", {"inference_flops": 200.0, "sparsity_prunable": 0.95})],
    ),
    "W6": (
        [("alpha", {"peak_density": None}), ("b", {"taxonomy": TAXONOMIES["rigl"], "peak_density": 0.1})],
        [("alpha", {}), ("b", {"taxonomy": TAXONOMIES["rigl"], "peak_density": 0.1})],
    ),
    "W7": (
        [("alpha", {"speedup_claimed": 2.0, "latencies": DENSE_TIME})],
        [("alpha", {"speedup_claimed": 2.0, "latencies": SPARSE_TIME})],
    ),
    "W8": (
        [("alpha", {"search_rounds": 5})],
        [("alpha", {"search_rounds": 5, "search_flops": 1e9})],
    ),
    "W9": (
        [("alpha", {}), ("r", RANDOM | {"sparsity_prunable": 0.5})],
        [("alpha", {}), ("r", RANDOM)],
    ),
    "W10": ([("alpha", {})], [("alpha", {}), ("s", {"role": "small_dense", "taxonomy": TAXONOMIES["dense"]})]),
    "W11": ([("alpha", {"sparsity_prunable": 0.5})], [("alpha", {}), ("b", {"sparsity_prunable": 0.5})]),
    "W12": ([("alpha", {"selection": "test"})], [("alpha", {"selection": "validation"})]),
    "W13": (
        [("alpha", {"taxonomy": TAXONOMIES["random"], "mask_flips": 4})],
        [("alpha", {"taxonomy": TAXONOMIES["random"], "mask_flips": 0})],
    ),
    "W14": (
        [("alpha", {"trained_after_mask": False})],
        [("alpha", {"trained_after_mask": False, "batchnorm_recalibrated": True})],
    ),
    "W15": (
        [("alpha", {}), ("b", {"densities": (1.0, 0.04, 0.2)})],
        [("alpha", {}), ("b", {"densities": (0.5, 0.04, 0.2)})],
    ),
    "W16": (
        [("alpha", {}), ("d", {"densities": (1.0, 1.0, 1.0), "values": (0.80, 0.81, 0.82)})],
        [("alpha", {}), ("d", {"densities": (1.0, 1.0, 1.0), "values": (0.97, 0.98, 0.99)})],
    ),
}


def codes(card, cases):
    return [finding.code for finding in lint([card(name, **changes) for name, changes in cases])]


def test_every_rule_of_the_handbook_is_here_and_has_its_case():
    wanted = [f"E{i}" for i in range(1, 4)] + [f"W{i}" for i in range(1, 17)]
    assert list(RULES) == wanted == list(CASES)


@pytest.mark.parametrize("code", CASES)
def test_breach_is_found(card, code):
    found = [f for f in lint([card(name, **changes) for name, changes in CASES[code][0]]) if f.code == code]
    assert len(found) == 1
    assert "alpha" in found[0].message
    assert found[0].level == ("error" if code.startswith("E") else "warning")


@pytest.mark.parametrize("code", CASES)
def test_sound_twin_is_silent(card, code):
    assert code not in codes(card, CASES[code][1])


def test_too_few_nonzeros_are_an_error_too(card):
    assert codes(card, [("a", {"nnz_by_mask": 100, "nnz_by_value": 98})])[0] == "E1"


def test_a_complete_fair_comparison_has_no_finding(card):
    fair = [
        ("dense", {"densities": (1.0, 1.0, 1.0), "values": (0.97, 0.98, 0.975)}),
        ("small", {"role": "small_dense", "taxonomy": TAXONOMIES["dense"]}),
        ("random", RANDOM),
        ("granet", {}),
    ]
    assert codes(card, fair) == []


def test_the_unequal_epoch_trap(card):
    """Static sparse training for 1x and 5x: the gain of training longer must not pass as one of a method."""
    static = RANDOM | {"role": "method"}
    once, five = card("static-1x", **static), card("static-5x", **static, steps=5000)
    assert [str(f)[:2] for f in lint([once, five]) if f.code == "W1"] == ["W1"]
    assert "W1" not in codes(card, [("static-1x", static), ("rigl-1x", {})])


def test_errors_come_first(card):
    levels = [f.level for f in lint([card(masked_nonzero=1, selection="test")])]
    assert levels == sorted(levels)


def test_a_bare_card_can_be_linted():
    assert [f.code for f in lint([ReportCard(method="m", model="mlp", data="digits")])] == ["W3"]


def test_different_data_sets_are_refused(card):
    with pytest.raises(ConfigError, match="one data set, got digits-shifted, mnist"):
        lint([card("a"), card("b", data="mnist")])
    with pytest.raises(ConfigError, match="got no card"):
        lint([])
