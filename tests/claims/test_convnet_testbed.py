"""The parts of the two ConvNet testbeds that have exact answers."""

import pytest
import torch

from gossamer.claims import execution_testbed
from gossamer.claims.convnet_testbed import gain, living_weights, one_shot, prune_by, train
from gossamer.claims.execution_testbed import geometric_mean, layer_speedup, require_kernels
from gossamer.errors import ConfigError, DataError
from gossamer.kernels import native
from gossamer.models.mobilenet import digits_mobilenet
from gossamer.sparsify.patterns import Block, Rows


def test_weights_that_read_removed_channels_are_not_counted():
    model = digits_mobilenet()
    layers = [block.pointwise.conv for block in model.blocks]
    assert living_weights(model) == 31232
    with torch.no_grad():
        layers[0].weight[:16] = 0  # half of the 32 outputs: 16 x 16 weights, and half of what reads them
    assert living_weights(model) == 31232 - 16 * 16 - 64 * 16


def test_a_copy_is_pruned_to_the_cell():
    model = digits_mobilenet()
    name = "blocks.4.pointwise.conv.weight"
    pruned = prune_by(model, {name: Block(4, 1)}, 0.75)
    assert int(pruned.get_parameter(name).count_nonzero()) == 128 * 128 // 4
    assert int(model.get_parameter(name).count_nonzero()) == 128 * 128
    filters = prune_by(model, {name: Rows()}, 0.5).get_parameter(name).flatten(1)
    assert int((filters != 0).any(1).sum()) == 64


def test_unknown_arms_and_data_are_named():
    with pytest.raises(ConfigError, match="unknown arm"):
        train("no arm", 0)
    with pytest.raises(ConfigError, match="unknown data set"):
        train("dense", 0, data="imagenet")


def test_the_gain_is_paired():
    rows = {"a": [{"accuracy": 3.0}, {"accuracy": 5.0}], "b": [{"accuracy": 1.0}, {"accuracy": 3.0}]}
    found = gain(rows, "a", "b")
    assert (found.mean, found.n) == (2.0, 2)
    assert found.low == found.high == 2.0


def test_the_geometric_mean():
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2.0)


@pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")
def test_a_wrong_kernel_does_not_count(monkeypatch):
    monkeypatch.setattr(
        execution_testbed.peers, "sparse_convolution", lambda packed, x: lambda: packed.unpack() @ x + 1
    )
    with pytest.raises(AssertionError, match=r"the kernel at .* is wrong"):
        layer_speedup((8, 8, 4), 0.5, 4, 0)


def test_without_kernels_a_speed_claim_cannot_run(monkeypatch):
    monkeypatch.setattr(native, "extension", lambda: None)
    with pytest.raises(DataError, match="compiled kernels are missing"):
        require_kernels()


@pytest.mark.slow  # a training
def test_one_shot_rows_are_complete(monkeypatch, tmp_path):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    row = one_shot(0)
    assert row["0.5"]["kept block"] < row["0.5"]["kept rearranged"] < row["0.5"]["kept unstructured"]
    assert row["0.5"]["difference"] < 1e-4
    assert isinstance(row["dense"], float)
