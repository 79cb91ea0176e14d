"""Files of dictionary_learning: the classes by their formulas, and by the package itself where it is installed."""

import json

import pytest
import torch
from torch.nn import functional as F

from gossamer.autoencoders import load
from gossamer.errors import CheckpointError

D, N = 6, 16
X = torch.randn(40, D, generator=torch.Generator().manual_seed(0))


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


LINEAR = {"encoder.weight": rand(N, D), "encoder.bias": rand(N), "decoder.weight": rand(D, N)}
BARE = {"W_enc": rand(D, N), "b_enc": rand(N), "W_dec": rand(N, D), "b_dec": rand(D)}
COUNT = {"k": torch.tensor(3, dtype=torch.int32), "threshold": torch.tensor(0.7)}
GATED = {
    "decoder_bias": rand(D), "encoder.weight": rand(N, D), "decoder.weight": rand(D, N), "r_mag": 0.1 * rand(N),
    "gate_bias": rand(N), "mag_bias": rand(N),
}  # fmt: skip


def relu(s):
    return ((X - s["bias"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()


def topk(s):
    z = ((X - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return torch.zeros_like(z).scatter(1, z.topk(3).indices, z.topk(3).values)


def batch_topk(s):
    z = ((X - s["b_dec"]) @ s["encoder.weight"].T + s["encoder.bias"]).relu()
    return z * (z > s["threshold"])


def matryoshka(s):
    z = ((X - s["b_dec"]) @ s["W_enc"] + s["b_enc"]).relu()
    return z * (z > s["threshold"])


def gated(s):
    pre = (X - s["decoder_bias"]) @ s["encoder.weight"].T
    return (pre + s["gate_bias"] > 0) * (s["r_mag"].exp() * pre + s["mag_bias"]).relu()


def jumprelu(s):
    pre = X @ s["W_enc"] + s["b_enc"]
    return (pre * (pre > s["threshold"])).relu()


CLASSES = {
    "AutoEncoder": (LINEAR | {"bias": rand(D)}, relu),
    "AutoEncoderTopK": (LINEAR | {"b_dec": rand(D)} | COUNT, topk),
    "BatchTopKSAE": (LINEAR | {"b_dec": rand(D)} | COUNT, batch_topk),
    "MatryoshkaBatchTopKSAE": (BARE | COUNT | {"group_sizes": torch.tensor([4, 12])}, matryoshka),
    "GatedAutoEncoder": (GATED, gated),
    "JumpReluAutoEncoder": (BARE | {"threshold": rand(N).abs()}, jumprelu),
}


def written(folder, name, state):
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "lm_name": "gpt2"}}))


@pytest.mark.parametrize("name", CLASSES)
def test_codes_follow_the_formula_of_each_class(name, tmp_path):
    state, formula = CLASSES[name]
    written(tmp_path, name, state)
    sae, about = load(tmp_path)
    assert about["trainer"]["lm_name"] == "gpt2"
    with torch.no_grad():
        z = sae.encode(X)
        assert torch.allclose(z, formula(state), atol=1e-5)
        decoder = state["decoder.weight"].T if "decoder.weight" in state else state["W_dec"]
        bias = next(state[key] for key in ("bias", "b_dec", "decoder_bias") if key in state)
        assert torch.allclose(sae.decode(z), F.linear(z, decoder.T, bias), atol=1e-5)
    assert sae.prefixes == ((4, 16) if name.startswith("Matryoshka") else None)


@pytest.mark.parametrize("name", ["BatchTopKSAE", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_the_package_itself_codes_the_same(name, tmp_path):
    theirs = pytest.importorskip("dictionary_learning.dictionary", reason="dictionary-learning is not installed")
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE

    made = BatchTopKSAE(D, N, 3) if name == "BatchTopKSAE" else getattr(theirs, name)(D, N)
    with torch.no_grad():
        made.load_state_dict(CLASSES[name][0])
        written(tmp_path, name, made.state_dict())
        assert torch.allclose(load(tmp_path)[0].encode(X), made.encode(X), atol=1e-5)


def test_foreign_and_damaged_files_are_named(tmp_path):
    state = CLASSES["AutoEncoderTopK"][0]
    written(tmp_path, "CrossCoder", state)
    with pytest.raises(CheckpointError, match="unknown class of dictionary_learning 'CrossCoder'"):
        load(tmp_path)
    written(tmp_path, "GatedAutoEncoder", state)
    with pytest.raises(CheckpointError, match="damaged or no GatedAutoEncoder"):
        load(tmp_path)
    written(tmp_path, "AutoEncoderTopK", [state])
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load(tmp_path)
    (tmp_path / "ae.pt").write_bytes(b"not a file of torch")
    with pytest.raises(CheckpointError, match="cannot read"):
        load(tmp_path)
