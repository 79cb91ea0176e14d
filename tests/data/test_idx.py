"""IDX files: round trip, and every damage named."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.data import find, load
from gossamer.data.idx import read_idx
from gossamer.errors import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def packed(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, code, array.ndim]) + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("code", list(CODES))
@pytest.mark.parametrize("zipped", [False, True])
def test_every_type_round_trips(tmp_path: Path, code: str, zipped: bool) -> None:
    array = (np.arange(24) - 5).astype(code).reshape(2, 3, 4)
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(packed(array)) if zipped else packed(array))
    assert np.array_equal(read_idx(path).numpy(), array)


GOOD = packed(np.arange(24, dtype="u1").reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"PK\x03\x04junk", "no IDX file"),
        (GOOD[:3], "no IDX file"),
        (GOOD[:7], "truncated inside its header"),
        (GOOD[:-1], "can hold|fewer"),
        (GOOD + b"x", "more bytes"),
        (gzip.compress(GOOD, mtime=0)[:-12], "cannot read"),
        (gzip.compress(GOOD[:-1], mtime=0), "fewer"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12, "more than it can hold"),
        (gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12, mtime=0), "more than it can hold"),
        (bytes([0, 0, 8, 200]) + b"\x01" * 900, "no IDX file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken-file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert "broken-file" in str(caught.value)


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.idx"
    for candidate in (content, gzip.compress(GOOD, mtime=0)[:20] + content, GOOD[:16] + content):
        path.write_bytes(candidate)
        with contextlib.suppress(DataError):
            assert read_idx(path).dim() >= 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read IDX file"):
        read_idx(tmp_path / "nothing")


def write_family(folder: Path, labels: int = 20) -> None:
    for part, count in (("train", 20), ("t10k", 6)):
        images = np.random.RandomState(0).randint(0, 256, (count, 5, 4)).astype("u1")
        (folder / f"{part}-images-idx3-ubyte").write_bytes(packed(images))
        digits = (np.arange(labels if part == "train" else count) % 3).astype("u1")
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(packed(digits)))


def test_a_folder_of_the_family_mixes_plain_and_gzip(tmp_path: Path) -> None:
    write_family(tmp_path)
    data = load("idx", path=tmp_path, val=0.25, batch_size=4, augment=True)
    assert data.val is not None
    assert (data.train.samples, data.val.samples, data.test.samples) == (15, 5, 6)
    assert (data.classes, data.shape) == (3, (1, 5, 4))
    x, y = data.train.batch(0)
    assert x.shape == (4, 1, 5, 4)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64


def test_images_and_labels_must_fit(tmp_path: Path) -> None:
    write_family(tmp_path, labels=19)
    with pytest.raises(DataError, match="do not fit labels"):
        load("idx", path=tmp_path)


def test_mnist_itself() -> None:
    try:
        find("mnist")
    except DataError as reason:
        pytest.skip(str(reason))
    data = load("mnist")
    assert (data.train.samples, data.test.samples, data.classes) == (60000, 10000, 10)
    _x, y = data.test.batch(0)
    assert y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert abs(float(torch.cat([data.train.batch(k)[0] for k in range(20)]).mean())) < 0.05
