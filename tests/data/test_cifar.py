"""CIFAR's binary files, and the JPEG copy where present."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.data import find, load
from gossamer.data.cifar import read_cifar
from gossamer.errors import DataError


def records(count: int, labels: int, seed: int = 0) -> bytes:
    rows = np.random.RandomState(seed).randint(0, 256, (count, labels + 3072)).astype("u1")
    rows[:, :labels] %= 10
    return rows.tobytes()


def test_a_record_is_labels_then_planes(tmp_path: Path) -> None:
    pixels = np.arange(3072) % 256
    (tmp_path / "one.bin").write_bytes(bytes([7, *pixels]))
    (tmp_path / "two.bin").write_bytes(bytes([3, 99, *pixels]))
    for name, classes, label in (("one.bin", 10, 7), ("two.bin", 100, 99)):
        x, y = read_cifar(tmp_path / name, classes)[torch.tensor([0])]
        assert y.tolist() == [label]
        assert np.array_equal(x.numpy().ravel(), pixels)


def test_cifar10_joins_its_five_files(tmp_path: Path) -> None:
    for index in range(1, 6):
        (tmp_path / f"data_batch_{index}.bin").write_bytes(records(4, 1, index))
    (tmp_path / "test_batch.bin").write_bytes(records(3, 1))
    data = load("cifar10", path=tmp_path, val=0.1, batch_size=5)
    assert data.val is not None
    assert (data.train.samples, data.val.samples, data.test.samples) == (18, 2, 3)
    x, _ = data.train.batch(0)
    assert (x.shape, x.dtype) == ((5, 3, 32, 32), torch.float32)


def test_cifar100(tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(records(4, 2))
    (tmp_path / "test.bin").write_bytes(records(4, 2))
    assert load("cifar100", path=tmp_path).classes == 100


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.bin").write_bytes(records(2, 1)[:-1])
    with pytest.raises(DataError, match=r"cut\.bin has 6145 bytes, no multiple of 3073"):
        read_cifar(tmp_path / "cut.bin", 10)
    (tmp_path / "labels.bin").write_bytes(bytes([11]) + bytes(3072))
    with pytest.raises(DataError, match="label 11"):
        read_cifar(tmp_path / "labels.bin", 10)
    with pytest.raises(DataError, match="cannot read"):
        read_cifar(tmp_path / "nothing.bin", 10)
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        read_cifar(tmp_path / "empty.bin", 10)


@pytest.mark.slow
def test_jpeg_copy() -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    try:
        find("cifar10-jpeg")
    except DataError as reason:
        pytest.skip(str(reason))
    data = load("cifar10-jpeg", per_class=20)
    assert (data.train.samples, data.test.samples) == (200, 10000)
    labels = data.test.tensors()[1]
    assert labels.bincount().tolist() == [1000] * 10
