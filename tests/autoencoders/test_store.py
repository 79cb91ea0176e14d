"""Activations out of modules, into shards, and back as batches; damage is named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.autoencoders.hooks import activations, captured, replaced
from gossamer.autoencoders.store import ActivationStore, collect
from gossamer.errors import ConfigError, DataError, NumericsError


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


INPUTS = [torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(i)) for i in range(4)]  # 120 tokens


def _collected(model, folder, **options):
    return collect(folder, model, INPUTS, "0", **{"shard_rows": 32} | options)


def test_rows_are_the_modules_outputs_in_order(model, tmp_path):
    folder = _collected(model, tmp_path / "store")
    wanted = torch.cat([model[0](x).detach().reshape(-1, 4) for x in INPUTS])
    store = ActivationStore(folder, 50, shuffle=False, mix=100)
    assert torch.equal(torch.cat([batch[0] for batch in store]), wanted)
    assert (store.d, store.d_out, store.samples, len(store)) == (4, None, 120, 3)
    assert len(list(folder.glob("shard-*.safetensors"))) == 4


def test_every_row_comes_once_an_epoch_and_batches_depend_on_the_step_alone(model, tmp_path):
    folder = _collected(model, tmp_path / "store")
    store, other = (ActivationStore(folder, 8, seed=3, mix=2) for _ in range(2))
    first = torch.cat([store.batch(step)[0] for step in range(len(store))])
    whole = torch.cat([batch[0] for batch in ActivationStore(folder, 120, shuffle=False, mix=9)])
    assert torch.equal(first.sort(0).values, whole.sort(0).values)
    assert not torch.equal(first, torch.cat([store.batch(len(store) + step)[0] for step in range(len(store))]))
    assert torch.equal(other.batch(17)[0], store.batch(17)[0])
    assert torch.equal(other.batch(2)[0], first[16:24])


def test_targets_limits_and_skipped_positions(model, tmp_path):
    folder = _collected(model, tmp_path / "store", target="2", limit=40, skip=2, dtype="bfloat16")
    store = ActivationStore(folder, 40, shuffle=False, mix=9)
    x, y = store.batch(0)
    wanted = model[0](INPUTS[0])[:, 2:].reshape(-1, 4)
    assert store.d_out == 2
    assert torch.allclose(x[:20], wanted, atol=0.02)
    assert y.shape == (40, 2)
    assert x.dtype is torch.float32


def test_hooks_see_tuples_and_channels_and_leave_no_trace(model):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.LSTM(3, 4, batch_first=True)
            self.conv = nn.Conv1d(4, 5, 1)

        def forward(self, x):
            return self.conv(self.inner(x)[0].movedim(-1, 1))

    pair, x = Pair(), INPUTS[0]
    assert [a.shape[-1] for a in activations(pair, x, "inner", "conv")] == [4, 5]
    before = pair(x)
    with replaced(pair, "inner", lambda a: a * 0), captured(pair, "conv") as found:
        after = pair(x)
    assert torch.allclose(after, pair.conv.bias[:, None].expand_as(after))
    assert torch.equal(found["conv"].movedim(-1, 1), after.detach())
    with replaced(pair, "conv", lambda a: a + 1):
        assert torch.allclose(pair(x), before + 1)
    assert torch.equal(pair(x), before)


def test_truncated_missing_altered_and_foreign_shards_are_named(model, tmp_path):
    folder = _collected(model, tmp_path / "store")
    shard = folder / "shard-00001.safetensors"
    content, tensors = shard.read_bytes(), load_file(shard)
    shard.write_bytes(content[:-7])
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is truncated or altered"):
        ActivationStore(folder, 8)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match="cannot read activation shard"):
        list(ActivationStore(folder, 8))
    tensors["activations"][3, 1] = float("nan")
    save_file(tensors, shard)
    with pytest.raises(NumericsError, match=r"shard-00001\.safetensors holds NaN"):
        list(ActivationStore(folder, 8))
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is missing"):
        ActivationStore(folder, 8)
    record = json.loads((folder / "activations.json").read_text())
    record["shards"][0]["file"] = "../elsewhere"
    (folder / "activations.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="which cannot be"):
        ActivationStore(folder, 8)


def test_unfinished_and_absent_stores_are_named(model, tmp_path):
    def broken():
        yield INPUTS[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "half", model, broken(), "0", shard_rows=8)
    with pytest.raises(DataError, match="was not finished"):
        ActivationStore(tmp_path / "half")
    with pytest.raises(DataError, match="holds no activations"):
        ActivationStore(tmp_path)
    with pytest.raises(DataError, match="no inputs"):
        collect(tmp_path / "none", model, [], "0")


def test_bad_requests_are_named(model, tmp_path):
    with pytest.raises(ConfigError, match="unknown module of the model '00'"):
        collect(tmp_path / "b", model, INPUTS, "00")
    _collected(model, tmp_path / "a")
    with pytest.raises(ConfigError, match="holds activations"):
        _collected(model, tmp_path / "a")
    _collected(model, tmp_path / "a", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ConfigError, match="holds files but no activations"):
        _collected(model, tmp_path / "other", overwrite=True)
    with pytest.raises(NumericsError, match="module '0' gives NaN"):
        collect(tmp_path / "c", model, [INPUTS[0].log()], "0")
    with pytest.raises(ConfigError, match="dtype='int8'"):
        _collected(model, tmp_path / "d", dtype="int8")
    with pytest.raises(ConfigError, match="batches of 500 rows need more"):
        ActivationStore(tmp_path / "a", 500)
