"""Dense rivals compute what they should, and timing counts what ran."""

import pytest
import torch
from torch import nn

from gossamer.claims import dense_peers as peers
from gossamer.kernels import native
from gossamer.kernels.pack import pack_block


def test_rivals_of_a_convolution_agree():
    torch.manual_seed(0)
    weight, x = torch.randn(24, 16), torch.randn(16, 49)
    full, half = peers.convolution(weight, x, 7, low=True)
    assert {"torch.mm", "torch conv", "torch channels_last"} <= set(full)
    for name, run in (full | half).items():
        peers.check(run, weight.double() @ x.double(), name, 5e-2 if name in half else 1e-4)


def test_rivals_of_a_linear_layer_and_of_a_network_agree():
    torch.manual_seed(0)
    weight, x = torch.randn(24, 16), torch.randn(5, 16)
    for name, run in peers.linear(weight, x)[0].items():
        peers.check(run, x.double() @ weight.double().t(), name)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for name, run in peers.network(model, image)[0].items():
            peers.check(run, model(image).double(), name)


@pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")
def test_our_convolution_is_what_a_plan_calls():
    weight, x = torch.randn(24, 16), torch.randn(16, 49)
    peers.check(peers.sparse_convolution(pack_block(weight, 4), x), weight.double() @ x.double(), "ours")


def test_a_wrong_result_is_named():
    with pytest.raises(AssertionError, match="twice is wrong"):
        peers.check(lambda: torch.full((2,), 2.0), torch.ones(2, dtype=torch.float64), "twice")


def test_every_slice_runs_every_candidate(monkeypatch):
    calls = {"a": 0, "b": 0}

    def count(name):
        calls[name] += 1

    monkeypatch.setattr(peers, "SLICE_SECONDS", 0.0)  # one call a slice
    times = peers.slices({name: (lambda name=name: count(name)) for name in calls}, 3)
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert calls == {"a": 2 + 2 * 3, "b": 2 + 2 * 3}
