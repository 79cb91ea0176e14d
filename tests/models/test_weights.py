"""Weights into models: exact names and shapes, or a clear refusal that changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gossamer.data import find
from gossamer.data.images import image_files
from gossamer.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Normalise
from gossamer.errors import CheckpointError, DataError
from gossamer.models import build, load_weights, pretrained_resnet


def test_round_trip_and_missing_counters(tmp_path: Path) -> None:
    model, other = build("resnet-20"), build("resnet-20")
    state = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    save_file(state, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    for name, tensor in state.items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.weight"), "lack 'head.weight' for a Sequential"),
        (lambda state: state.update(extra=torch.zeros(1)), "unknown 'extra'"),
        (lambda state: state.update({"head.bias": torch.zeros(3)}), r"'head.bias' has shape \(3,\).*\(10,\)"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change: object, message: str) -> None:
    model = build("mlp")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    change(state)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_damaged_files(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4)}, tmp_path / "a.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-3])
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04N." * 9)
    for name in ("cut", "pickle", "missing"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors"):
            load_weights(build("mlp"), tmp_path / f"{name}.safetensors")


def jpeg_accuracy(depth: int, images: int) -> float:
    """Accuracy in % of a pretrained network on `images` test images, evenly over the classes."""
    pytest.importorskip("PIL", reason="Pillow is not installed")
    try:
        model, folder = pretrained_resnet(depth), find("cifar10-jpeg")
    except DataError as reason:
        pytest.skip(str(reason))
    chosen = image_files(folder / "test-10k.zip", 32).first(images // 10)
    x, y = chosen.in_memory().tensors
    x = Normalise(IMAGENET_MEAN, IMAGENET_STD)(x, torch.Generator())
    with torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(250)])
    return 100 * (logits.argmax(1) == y).float().mean().item()


def test_pretrained_resnet_classifies() -> None:
    # 81.03 % on all 10,000 images; 500 of them have a standard error of 1.8 points.
    assert 81.03 - 3 * 1.8 < jpeg_accuracy(20, 500) < 81.03 + 3 * 1.8


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 81.03), (32, 82.56), (44, 82.67)])
def test_pretrained_resnets_reach_their_documented_accuracy(depth: int, accuracy: float) -> None:
    assert jpeg_accuracy(depth, 10_000) == pytest.approx(accuracy, abs=0.02)


def test_missing_depth_is_named() -> None:
    with pytest.raises(DataError, match=r"resnet26\.safetensors"):
        pretrained_resnet(26)
