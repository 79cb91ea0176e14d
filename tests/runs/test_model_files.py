"""Files users keep: plain loadable weights, masks checked against hashes and weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer import recipes
from gossamer.errors import CheckpointError
from gossamer.runs.model_files import load_sparsity, load_weights, save_model
from gossamer.sparsify import Sparsifier


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    sp = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipes.random(0.9), 10)
    masks = {name: mask.clone() for name, mask in sp.entry_masks.items()}
    sp.finalize()
    save_model(tmp_path, model, masks, {"recipe": "random"})
    return tmp_path, model, masks


def test_round_trip(saved):
    folder, model, masks = saved
    fresh = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    found = load_weights(folder, fresh)
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
    fresh.load_state_dict(load_file(folder / "model.safetensors"), strict=True)  # plain PyTorch reads it
    record = json.loads((folder / "sparsity.json").read_text())
    assert record["tensors"]["0.weight"]["kept"] == int(masks["0.weight"].sum())


def test_leaks_are_not_saved(saved, tmp_path):
    _, model, masks = saved
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    with pytest.raises(CheckpointError, match=r"masked weights of 0\.weight"):
        save_model(tmp_path / "other", model, masks)


def test_altered_files_are_refused(saved):
    folder, model, _ = saved
    bits = load_file(folder / "masks.safetensors")
    bits["0.weight"][0, 0] ^= 1
    save_file(bits, folder / "masks.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.weight .* missing or altered"):
        load_sparsity(folder)
    record = json.loads((folder / "sparsity.json").read_text())
    (folder / "sparsity.json").write_text(json.dumps({**record, "version": 2}))
    with pytest.raises(CheckpointError, match="version 2"):
        load_sparsity(folder)
    (folder / "sparsity.json").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="no readable sparse model"):
        load_weights(folder, model)


def test_weights_that_disagree_with_masks_are_refused(saved):
    folder, model, _ = saved
    weights = {name: torch.ones_like(value) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="disagree"):
        load_weights(folder, model)
