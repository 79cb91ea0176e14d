"""Arrays without pickle, and data sets made of them."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gossamer.data import find, load
from gossamer.data.arrays import read_npz, read_tensors
from gossamer.errors import ConfigError, DataError


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_npz_round_trips(tmp_path: Path) -> None:
    content = {"x": np.arange(6.0).reshape(2, 3), "n": np.array([1, 2]), "b": np.array([True]), "s": np.array(4)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **content)  # type: ignore[operator]
        loaded = read_npz(tmp_path / "a.npz")
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
            name: array.tolist() for name, array in content.items()
        }


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    np.savez(tmp_path / "evil.npz", x=np.array([Payload(marker)], dtype=object))
    with pytest.raises(DataError, match="pickled objects"):
        read_npz(tmp_path / "evil.npz")
    assert not marker.exists()


def npz_with(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def npy_header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (b"\x80\x04N.", "cannot read"),
        (npz_with("x.txt", b"hello"), "no array"),
        (npz_with("x.npy", b"hello"), "cannot read"),
        (npz_with("x.npy", npy_header("(1000000000000,)")), "does not fill its declared shape"),
        (npz_with("x.npy", npy_header("(2,)") + bytes(9)), "does not fill its declared shape"),
        (npz_with("x.npy", npy_header("(1,)", "<c8") + bytes(8))[:-30], "cannot read"),
        (npz_with("x.npy", npy_header("(1,)", "<U1") + bytes(4)), "torch lacks"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.npz").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_npz(tmp_path / "broken.npz")
    assert "broken.npz" in str(caught.value)


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000))
    with pytest.raises(DataError, match="at most 1000"):
        read_npz(tmp_path / "bomb.npz", max_bytes=1000)


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, place: int, flip: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.npz"
    np.savez(path, x=np.arange(8.0))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= flip
    path.write_bytes(content)
    try:
        values = list(read_npz(path).values())
    except DataError:
        return
    assert [value.tolist() for value in values] == [np.arange(8.0).tolist()]


def test_safetensors_and_other_suffixes(tmp_path: Path) -> None:
    save_file({"x": torch.eye(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["x"], torch.eye(2))
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"b\.safetensors"):
        read_tensors(tmp_path / "b.safetensors")
    with pytest.raises(DataError, match=r"not '\.pkl'"):
        read_tensors(tmp_path / "a.pkl")
    with pytest.raises(DataError, match="nothing"):
        read_tensors(tmp_path / "nothing.safetensors")


def test_bytes_become_images_and_integers_classes(tmp_path: Path) -> None:
    x = np.full((10, 4, 5), 255, np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(10) % 3)
    data = load("arrays", path=tmp_path / "a.npz", test=0.3, val=0.3)
    assert data.val is not None
    assert (data.train.samples, data.val.samples, data.test.samples) == (5, 2, 3)
    assert (data.shape, data.classes, data.kind) == ((1, 4, 5), 3, "classification")
    assert (data.test.tensors()[0] == 1).all()


def test_named_parts_and_regression(tmp_path: Path) -> None:
    parts = {
        f"{name}_{part}": np.ones((n, k)) for part, n in (("train", 6), ("test", 2)) for name, k in (("x", 3), ("y", 2))
    }
    np.savez(tmp_path / "a.npz", **parts)  # type: ignore[arg-type]
    data = load("arrays", path=tmp_path / "a.npz")
    assert (data.train.samples, data.test.samples, data.classes, data.kind) == (6, 2, 2, "regression")
    assert data.train.batch(0)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": np.ones(3), "z": np.ones(3)}, "names"),
        ({"x": np.array([[np.nan]] * 5), "y": np.zeros(5, int)}, "NaN"),
        ({"x": np.ones((5, 1)), "y": np.full(5, -1)}, "negative label -1"),
    ],
)
def test_unusable_content_is_named(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        load("arrays", path=tmp_path / "a.npz")


def test_no_test_sample_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((5, 1)), y=np.zeros(5, int))
    with pytest.raises(ConfigError, match="without test samples"):
        load("arrays", path=tmp_path / "a.npz", test=0.0)


def test_fashion_mnist_900() -> None:
    try:
        find("fashion-mnist-sprite")
    except DataError as reason:
        pytest.skip(str(reason))
    data = load("fashion-mnist-900")
    assert (data.train.samples, data.test.samples, data.classes, data.shape) == (600, 300, 10, (1, 28, 28))
    counts = data.train.tensors()[1].bincount() + data.test.tensors()[1].bincount()
    assert counts.tolist() == [90] * 10
