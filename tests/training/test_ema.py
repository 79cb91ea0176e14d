"""Averages by hand."""

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.runs.checkpoint import load_state, save_state
from gossamer.training.ema import EMA


def test_the_average_is_the_recursion(tmp_path):
    net = nn.BatchNorm1d(1)
    ema = EMA(net, 0.5)
    expected, values = 1.0, [2.0, -1.0, 4.0, 0.5, 8.0, 3.0, 1.0, -2.0, 5.0, 6.0]
    for number, value in enumerate(values, start=1):
        with torch.no_grad():
            net.weight.fill_(value)
        net.num_batches_tracked += 1
        ema.update(net)
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-6)
    assert int(ema.average["num_batches_tracked"]) == 10
    other = EMA(nn.BatchNorm1d(1), 0.5)
    other.load_state_dict(load_state(save_state(tmp_path / "x", ema.state_dict()))[0])
    assert other.updates == 10
    assert torch.equal(other.average["weight"], ema.average["weight"])


def test_applied_is_undone_and_masked():
    net = nn.Linear(3, 1)
    own = net.weight.detach().clone()
    ema = EMA(net, 0.9)
    ema.average["weight"].fill_(7.0)
    mask = torch.tensor([[True, False, True]])
    with ema.applied(net, {"weight": mask}):
        assert net.weight.tolist() == [[7.0, 0.0, 7.0]]
    assert torch.equal(net.weight, own)
    ema.copy_to(net)
    assert net.weight.tolist() == [[7.0, 7.0, 7.0]]


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_a_bad_decay_is_named(decay):
    with pytest.raises(ConfigError, match=r"lies in \(0, 1\)"):
        EMA(nn.Linear(1, 1), decay)
