"""The testbeds of soups and slimming: documented figures, one computation for each seed, faults that are seen."""

from dataclasses import replace

import pytest
import torch

from gossamer.claims import cells, slim_testbed, soup_testbed
from gossamer.claims.protocol import Context
from gossamer.errors import ConfigError, DataError
from gossamer.papers import masksparsity, sparse_model_soups


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A hundredth of the protocols."""
    monkeypatch.setenv(cells.VARIABLE, str(tmp_path))
    soups = {n: replace(s, dense=50, phase=10, sparsity=0.8) for n, s in soup_testbed.SETTINGS.items()}
    monkeypatch.setattr(soup_testbed, "SETTINGS", soups)
    slim = {n: replace(s, dense=20, sparse=20, finetune=5) for n, s in slim_testbed.SETTINGS.items()}
    monkeypatch.setattr(slim_testbed, "SETTINGS", slim)
    return tmp_path


def test_a_seed_of_soups_has_the_documented_figures(small):
    row = soup_testbed.soups("fresh", 1)
    assert [set(phase) for phase in row["phases"]] == [{"mean", "best", "soup"}] * 3
    assert row["exact"]
    assert row["phases"][-1]["soup"]["density"] == pytest.approx(0.2, abs=1e-4)
    assert row["imp"]["density"] == pytest.approx(0.2, abs=1e-4)
    assert row["reprune"]["density"] == pytest.approx(0.2, abs=1e-4)
    assert row["imp_avg"]["density"] > 0.201
    for name in ("dense", "ensemble", "imp_longer"):
        assert all(0 <= row[name][field] <= 1 for field in ("accuracy", "foreign", "worst_class", "ece"))
    assert row["spread"]["nearest"] <= row["spread"]["farthest"]
    again = soup_testbed.soups("fresh", 1)
    assert again == row
    assert len(list((small / "cells").iterdir())) == 2


def test_one_branch_in_place_of_the_mean_is_seen():
    one, mean = soup_testbed.soups("fresh", 1, "one_branch"), soup_testbed.soups("fresh", 1)
    assert one["phases"][0]["mean"] == mean["phases"][0]["mean"]
    assert one["phases"][0]["soup"] != mean["phases"][0]["soup"]
    assert one["imp"] == mean["imp"]


def test_a_soup_of_all_weights_is_seen():
    found = sparse_model_soups.PAPER.claim("exact-sparsity").run(Context(seeds=1, mutant="mask_of_ones"))
    assert found.holds is False


def test_a_seed_of_slimming_has_the_documented_figures():
    row = slim_testbed.slim("digits", 0)
    for name in slim_testbed.TABLE:
        arm = row[name]
        assert arm["kept"] == 160
        assert arm["folded"] == pytest.approx(arm["silent"], abs=5e-4)
        assert arm["cost"]["flops"] == arm["cost"]["torch_flops"] < arm["dense_cost"]["flops"]
        assert all(0 <= arm[state] <= 1 for state in ("before", "cut", "folded", "tuned"))
    assert row["unregularised"]["before"] == row["dense"]
    shrunk = row["mask_sparsity"]
    assert shrunk["largest_pruned"] < row["unregularised"]["largest_pruned"]
    assert shrunk["mean_kept"] > 0.9 * row["unregularised"]["mean_kept"]
    none = slim_testbed.slim("digits", 0, "no_penalty")["mask_sparsity"]
    assert none["largest_pruned"] > shrunk["largest_pruned"]
    lost = slim_testbed.slim("digits", 0, "no_fold")["unregularised"]
    assert lost["folded"] == lost["cut"] != lost["silent"]
    whole = slim_testbed.slim("digits", 0, "keep_channels")["mask_sparsity"]
    assert whole["cost"]["flops"] == whole["dense_cost"]["flops"]
    everywhere = slim_testbed.slim("digits", 0, "penalise_all")["mask_sparsity"]
    assert everywhere["mean_kept"] < shrunk["mean_kept"]


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="did you mean 'fixed'"):
        soup_testbed.soups("fixd", 0)
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        slim_testbed.slim("mnis", 0)


def test_claims_report_every_arm():
    context = Context(seeds=2)
    table = masksparsity.PAPER.claim("digits-table").run(context)
    assert {f"{arm} tuned" for arm in slim_testbed.ARMS} <= set(table.measured)
    assert table.holds is None
    assert table.seeds == 2
    assert masksparsity.PAPER.claim("counts").run(context).holds


@pytest.mark.slow
def test_the_images_of_cifar_show_every_class():
    try:
        data = slim_testbed.DATA["cifar"](0)
    except DataError as error:
        pytest.skip(str(error))
    assert torch.bincount(data.test.tensors()[1]).tolist() == [50] * 10
    assert data.train.samples == 2000
