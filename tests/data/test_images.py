"""Image folders and zip files."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.data import load
from gossamer.data.images import image_files
from gossamer.errors import ConfigError, DataError, MissingExtra

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()


def files(parts: tuple[str, ...] = ("train", "test"), each: int = 4) -> dict[str, bytes]:
    """Red images of "cat" and blue ones of "dog"; the green channel numbers them."""
    colors = {"cat": (255, 0), "dog": (0, 255)}
    return {
        f"{part}/{name}/{index}.png": png((red, index, blue))
        for part in parts
        for name, (red, blue) in colors.items()
        for index in range(each)
    }


def as_folder(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / name).write_bytes(data)
    return root / "set"


def as_zip(root: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(root / "set.zip", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return root / "set.zip"


@pytest.mark.parametrize("store", [as_folder, as_zip])
def test_pixels_and_labels(tmp_path: Path, store: object) -> None:
    path = store(tmp_path, files())  # type: ignore[operator]
    found = image_files(path, 8, "train")
    assert found.classes == ("cat", "dog")
    assert len(found) == 8
    x, y = found[torch.tensor([5, 0])]
    assert x.dtype == torch.uint8
    assert x[0, :, 3, 3].tolist() == [0, 1, 255]
    assert x[1, :, 0, 0].tolist() == [255, 0, 0]
    assert y.tolist() == [1, 0]


def test_the_middle_square_is_taken_and_resized(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    path = as_folder(tmp_path, {"a/x.png": stream.getvalue()})
    x, _ = image_files(path, 5)[torch.tensor([0])]
    assert x.shape == (1, 3, 5, 5)
    assert (x == 200).all()


def test_first_per_class(tmp_path: Path) -> None:
    chosen = image_files(as_zip(tmp_path, files()), 8, "train").first(2)
    assert chosen.labels == (0, 0, 1, 1)
    assert chosen.in_memory().tensors[0][:, 1, 0, 0].tolist() == [0, 1, 0, 1]


def test_parts_become_train_and_test(tmp_path: Path) -> None:
    data = load("images", path=as_zip(tmp_path, files(("train", "val"))), size=7, batch_size=3, val=0.25)
    assert data.val is not None
    assert (data.train.samples, data.val.samples, data.test.samples) == (6, 2, 8)
    assert (data.classes, data.shape) == (2, (3, 7, 7))
    x, y = data.train.batch(0)
    assert x.shape == (3, 3, 7, 7)
    # Red is the first channel: normalised red 255 is (1 - 0.485) / 0.229.
    for image, label in zip(x, y, strict=True):
        assert image[0].mean().item() == pytest.approx((1 - 0.485) / 0.229 if label == 0 else -0.485 / 0.229, abs=1e-3)


def test_without_parts_a_fraction_is_held_out(tmp_path: Path) -> None:
    path = as_folder(tmp_path, files(("all",), each=10))
    data = load("images", path=path, size=7, test=0.3, augment=False, per_class=5)
    assert data.test.samples == 6
    assert data.train.samples == 10


def test_classes_of_the_parts_must_agree(tmp_path: Path) -> None:
    content = {name: data for name, data in files().items() if not name.startswith("test/dog")}
    with pytest.raises(DataError, match="classes of 'train' and 'test' differ"):
        load("images", path=as_zip(tmp_path, content))


def test_damage_is_named(tmp_path: Path) -> None:
    good = as_zip(tmp_path, {"a/x.png": b"no image", "b/y.png": png((1, 2, 3))})
    with pytest.raises(DataError, match=r"a/x\.png"):
        image_files(good, 8)[torch.tensor([0])]
    data = good.read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.zip"):
        image_files(tmp_path / "cut.zip", 8)
    with pytest.raises(DataError, match="nowhere"):
        image_files(tmp_path / "nowhere", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in class folders"):
        image_files(tmp_path / "empty", 8)
    with pytest.raises(ConfigError, match=r"held-out fraction"):
        load("images", path=good, test=1.0)


def test_truncated_image_and_flipped_zip_byte(tmp_path: Path) -> None:
    path = as_zip(tmp_path, {"a/x.png": png((9, 9, 9), (64, 64))[:-30]})
    with pytest.raises(DataError, match="cannot decode"):
        image_files(path, 8)[torch.tensor([0])]
    content = bytearray(as_zip(tmp_path, {"a/x.png": png((9, 9, 9))}).read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "flip.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"flip\.zip"):
        image_files(tmp_path / "flip.zip", 8)[torch.tensor([0])]


def test_an_oversized_member_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", bytes((1 << 26) + 1))
    with pytest.raises(DataError, match="at most 67108864"):
        image_files(tmp_path / "bomb.zip", 8)[torch.tensor([0])]


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = image_files(as_zip(tmp_path, files()), 8)
    monkeypatch.setitem(sys.modules, "PIL", None)  # makes the import fail
    with pytest.raises(MissingExtra, match=r"'pillow': pip install 'gossamer\[report\]'"):
        found[torch.tensor([0])]
