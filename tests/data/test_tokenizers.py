"""Tokenisers: exact round trips, hand-made merges, equality with the package `tokenizers` where installed."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data.tokenizers import BpeTokenizer, ByteTokenizer, HuggingFaceTokenizer
from gossamer.errors import ConfigError, DataError, MissingExtra

TEXT = "low lower lowest newer newest wider; don't they'll 12 x² Ⅳ naïve 日本語\n\n  two  spaces " * 5
BPE = BpeTokenizer.train(TEXT, 300)


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    for tokenizer in (ByteTokenizer(), BPE):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= index < tokenizer.size for index in ids)


def test_merges_by_hand() -> None:
    # "aaab": pairs aa (2), ab (1) -> "aa"; then "aa a b": the pairs (a, b) and (aa, a) tie, "a" sorts first.
    bpe = BpeTokenizer.train("aaab", 258)
    assert bpe.merges == [("a", "a"), ("a", "b")]
    assert bpe.encode("aaab") == [256, 257]
    assert bpe.encode("aab") == [256, bpe.vocabulary["b"]]


def test_training_counts_like_a_recount() -> None:
    """The incremental counts choose what counting afresh after every merge would choose."""
    words = ["low", "lower", "lowest", "newest", "newest", "slow", "wwww", "wwwww"]
    spelled = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    for _ in range(12):
        counts: dict[tuple[str, str], int] = {}
        for pieces in spelled:
            for pair in itertools.pairwise(pieces):
                counts[pair] = counts.get(pair, 0) + 1
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for pieces in spelled:
            index = 0
            while index < len(pieces) - 1:
                if (pieces[index], pieces[index + 1]) == best:
                    pieces[index : index + 2] = ["".join(best)]
                index += 1
    # Newlines never merge with letters, so they separate the words without adding pairs.
    assert BpeTokenizer.train("\n".join(words), 268).merges == merges


def test_training_stops_when_nothing_is_left() -> None:
    bpe = BpeTokenizer.train("ab", 1000)
    assert bpe.size == 257


def test_file_round_trip(tmp_path: Path) -> None:
    BPE.save(tmp_path / "tokenizer.json")
    loaded = BpeTokenizer.from_file(tmp_path / "tokenizer.json")
    assert isinstance(loaded, BpeTokenizer)
    assert loaded.encode(TEXT) == BPE.encode(TEXT)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]  # the older notation
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert BpeTokenizer.from_file(tmp_path / "old.json").encode(TEXT) == BPE.encode(TEXT)


def test_equals_the_tokenizers_package(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    BPE.save(tmp_path / "tokenizer.json")
    theirs = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    assert theirs.size == BPE.size
    for text in (TEXT, "__a_b \u00a0 tab\t\n  end 12ab ١٢ ½ I'LL we've", "", " "):
        assert theirs.encode(text) == BPE.encode(text)
        assert theirs.decode(BPE.encode(text)) == text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"type": "BPE"}}', '{"model": 3}'])
def test_bad_files_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises((DataError, MissingExtra), match=r"broken\.json|tokenizers"):
        BpeTokenizer.from_file(tmp_path / "broken.json")


def test_bad_vocabularies() -> None:
    with pytest.raises(ConfigError, match="at least the 256 bytes"):
        BpeTokenizer.train("x", 255)
    with pytest.raises(ConfigError, match="no id for"):
        BpeTokenizer([("a", "b")], {"a": 0, "b": 1})
    with pytest.raises(ConfigError, match=r"must be 0 \.\.\. 255"):
        BpeTokenizer([], {piece: 1 + index for piece, index in BpeTokenizer([]).vocabulary.items()})


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # makes the import fail
    (tmp_path / "unigram.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(MissingExtra, match=r"'tokenizers': pip install 'gossamer\[hf\]'"):
        BpeTokenizer.from_file(tmp_path / "unigram.json")
