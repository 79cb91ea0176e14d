"""Blocks of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import find, load
from gossamer.data.text import Blocks
from gossamer.data.tokenizers import BpeTokenizer
from gossamer.errors import ConfigError, DataError


@given(st.integers(2, 60), st.integers(1, 20))
def test_blocks_cover_the_stream_once_and_targets_are_one_later(tokens: int, length: int) -> None:
    stream = torch.arange(tokens)
    if tokens <= length:
        with pytest.raises(DataError, match="holds no block"):
            Blocks(stream, length)
        return
    blocks = Blocks(stream, length)
    x, y = blocks[torch.arange(len(blocks))]
    assert torch.equal(x.flatten(), stream[: len(blocks) * length])
    assert torch.equal(y, x + 1)
    assert tokens - 1 - len(blocks) * length < length


def test_a_text_file_is_split_in_order(tmp_path: Path) -> None:
    content = bytes(33 + k % 90 for k in range(1000)).decode()
    (tmp_path / "a.txt").write_text(content)
    data = load("text", path=tmp_path / "a.txt", context=10, batch_size=4, val=0.2, test=0.1)
    assert data.val is not None
    assert (data.kind, data.classes, data.shape) == ("language", 256, (10,))
    assert (data.train.samples, data.val.samples, data.test.samples) == (71, 17, 9)
    first = [bytes(part.tensors()[0][0].tolist()).decode() for part in (data.train, data.val, data.test)]
    assert first == [content[start : start + 10] for start in (0, 720, 900)]


def test_a_tokeniser_object_or_file_is_taken(tmp_path: Path) -> None:
    content = "the cat and the hat and the bat " * 50
    (tmp_path / "a.txt").write_text(content)
    bpe = BpeTokenizer.train(content, 264)
    bpe.save(tmp_path / "tokenizer.json")
    one = load("text", path=tmp_path / "a.txt", tokenizer=bpe, context=4)
    other = load("text", path=tmp_path / "a.txt", tokenizer=tmp_path / "tokenizer.json", context=4)
    assert one.classes == other.classes == 264
    assert torch.equal(one.test.tensors()[0], other.test.tensors()[0])


def test_bad_files_and_fractions(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"latin\.txt"):
        load("text", path=tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        load("text", path=tmp_path / "empty.txt")
    with pytest.raises(DataError, match="cannot read"):
        load("text", path=tmp_path / "nothing.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="holds no block of 128"):
        load("text", path=tmp_path / "short.txt")
    for options in ({"test": 0.0}, {"val": 1.0}, {"test": 1.5}):
        with pytest.raises(ConfigError, match="need 0 <= val < 1"):
            load("text", path=tmp_path / "short.txt", **options)


@pytest.mark.parametrize(("name", "folder"), [("tiny-shakespeare", "tiny-shakespeare"), ("wikitext-2", "wikitext-2")])
def test_named_texts(name: str, folder: str) -> None:
    try:
        find(folder)
    except DataError as reason:
        pytest.skip(str(reason))
    data = load(name, context=64)
    total = 1115394 if name == "tiny-shakespeare" else 1121681
    assert abs(data.test.samples * 64 - 0.1 * total) < 65
