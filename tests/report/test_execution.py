"""What compiling adds to a card."""

import pytest
import torch

from gossamer.engine import tune
from gossamer.kernels import native
from gossamer.models.zoo import build
from gossamer.report.card import ReportCard
from gossamer.report.execution import compiled


def test_without_kernels_the_card_stays_and_no_file_is_written(tmp_path):
    card = ReportCard.model_construct()
    with native.using("none"):
        same, ratio = compiled(card, build("mobilenet-digits").eval(), torch.randn(1, 1, 16, 16), tmp_path / "x.plan")
    assert same is card
    assert ratio is None
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")
def test_times_of_plan_and_peers_and_every_layer(tmp_path, monkeypatch):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(tune, "RACE_SECONDS", 0.02)
    model = build("mobilenet-digits").eval()
    found, ratio = compiled(ReportCard.model_construct(), model, torch.randn(1, 1, 16, 16), tmp_path / "x.plan")
    times = {latency.kernel: latency.milliseconds for latency in found.latencies}
    peer = min(ms for kernel, ms in times.items() if kernel != "gossamer plan")
    assert ratio == pytest.approx(peer / times["gossamer plan"])
    assert found.execution[0].layer == "stem.conv"
    assert (tmp_path / "x.plan").exists()
