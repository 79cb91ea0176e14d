"""Bytes and byte-pair encoding as token ids."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gossamer.errors import ConfigError, DataError, MissingExtra


class Tokenizer(Protocol):
    """Text to ids and back; ids lie in 0 ... size - 1."""

    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """One token per UTF-8 byte, 256 in all.

    >>> ByteTokenizer().encode("né")
    [110, 195, 169]
    """

    size = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become the replacement character."""
        return bytes(ids).decode(errors="replace")


@functools.cache
def _letters() -> tuple[str, ...]:
    """The visible character that stands for each byte in byte-level vocabularies (GPT-2's convention).

    Printable Latin-1 bytes stand for themselves, the others for code points from 256 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (byte for byte in range(256) if byte not in printable)
    shifted = {byte: 256 + index for index, byte in enumerate(hidden)}
    return tuple(chr(shifted.get(byte, byte)) for byte in range(256))


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """GPT-2's split into words: contractions, letters, numbers, other signs, each with one leading space."""
    # `re` has no \p{N}; its \d lacks numerals such as "²", and \w has them among the letters.
    other = (chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Nl", "No"))
    numerals = re.escape("".join(other))
    number, letter = rf"[\d{numerals}]", rf"[^\W\d_{numerals}]"
    return re.compile(rf"'(?:s|t|re|ve|m|ll|d)| ?{letter}+| ?{number}+| ?(?:(?!{letter}|{number})\S)+|\s+(?!\S)|\s+")


class BpeTokenizer:
    """Byte-level byte-pair encoding with GPT-2's word split; any text round-trips exactly.

    Args:
        merges: pairs of pieces in the order in which they were learnt, in byte-level letters.
        vocabulary: piece -> id; default: the 256 bytes, then one id per merge.
    Raises:
        ConfigError: a byte or a merged piece without an id, or ids that are not 0 ... n - 1.
    Source: Sennrich et al. 2016; Radford et al. 2019, section 2.2.
    """

    def __init__(self, merges: Iterable[tuple[str, str]], vocabulary: dict[str, int] | None = None) -> None:
        self.merges = list(merges)
        pieces = [*_letters(), *(left + right for left, right in self.merges)]
        if vocabulary is None:
            vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
        missing = [piece for piece in pieces if piece not in vocabulary]
        if missing:
            raise ConfigError(f"BPE vocabulary has no id for {missing[0]!r} and {len(missing) - 1} others")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ConfigError(f"the {len(vocabulary)} ids of a BPE vocabulary must be 0 ... {len(vocabulary) - 1}")
        self.vocabulary = vocabulary
        self.size = len(vocabulary)
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._pieces = {index: piece for piece, index in vocabulary.items()}
        self._bytes = {letter: byte for byte, letter in enumerate(_letters())}
        self._word = functools.lru_cache(maxsize=1 << 16)(self._encode_word)

    @classmethod
    def train(cls, text: str, size: int) -> BpeTokenizer:
        """Learns `size - 256` merges: the most frequent pair first, ties to the pair that sorts first.

        Stops early where no pair is left.

        Raises:
            ConfigError: size below 256.
        """
        if size < 256:
            raise ConfigError(f"size={size}: a byte-level vocabulary has at least the 256 bytes")
        return cls(_learn(Counter(map(_spell, _word_pattern().findall(text))), size - 256))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """The tokeniser of a Hugging Face `tokenizer.json`.

        A plain byte-level BPE (GPT-2's kind, as `save` writes it) is read here; any other needs the package
        `tokenizers`.

        Raises:
            DataError: missing or no tokeniser file.
            MissingExtra: another kind, and `tokenizers` is not installed.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if not _is_plain(content):
                return HuggingFaceTokenizer(path)
            model = content["model"]
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
            return cls([(left, right) for left, right in pairs], dict(model["vocab"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"cannot read tokeniser file {path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that the package `tokenizers` and `from_file` read."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        model = {"type": "BPE", "vocab": self.vocabulary, "merges": [list(pair) for pair in self.merges]}
        content = {"version": "1.0", "pre_tokenizer": level, "decoder": level, "model": model}
        Path(path).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        return [index for word in _word_pattern().findall(text) for index in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become the replacement character."""
        letters = "".join(self._pieces[index] for index in ids)
        return bytes(self._bytes[letter] for letter in letters).decode(errors="replace")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        pieces = _spell(word)
        while len(pieces) > 1:
            pair = min(itertools.pairwise(pieces), key=lambda p: self._rank.get(p, sys.maxsize))
            if pair not in self._rank:
                break
            pieces = _merge(pieces, pair)
        return tuple(self.vocabulary[piece] for piece in pieces)


def _spell(word: str) -> tuple[str, ...]:
    letters = _letters()
    return tuple(letters[byte] for byte in word.encode())


def _merge(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`pieces` with every occurrence of `pair` joined, left to right."""
    joined: list[str] = []
    index = 0
    while index < len(pieces):
        if pieces[index : index + 2] == pair:
            joined.append(pieces[index] + pieces[index + 1])
            index += 2
        else:
            joined.append(pieces[index])
            index += 1
    return tuple(joined)


def _learn(words: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """`count` merges; the pair counts are updated only for the words that a merge touches."""
    spelled = list(words.items())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def add(index: int, sign: int) -> None:
        pieces, times = spelled[index]
        for pair in itertools.pairwise(pieces):
            pairs[pair] += sign * times
            where[pair].add(index)

    for index in range(len(spelled)):
        add(index, 1)
    merges: list[tuple[str, str]] = []
    while len(merges) < count and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] <= 0:
            break
        merges.append(best)
        for index in where.pop(best):
            add(index, -1)
            spelled[index] = (_merge(spelled[index][0], best), spelled[index][1])
            add(index, 1)
        del pairs[best]
    return merges


def _is_plain(content: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` does what `BpeTokenizer` does: byte-level BPE and nothing beside it."""
    model, split = content["model"], content.get("pre_tokenizer") or {}
    extras = ("normalizer", "added_tokens", "post_processor", "truncation", "padding")
    quirks = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "byte_fallback")
    return (
        model["type"] == "BPE"
        and split.get("type") == "ByteLevel"
        and not split.get("add_prefix_space")
        and split.get("use_regex", True)
        and not any(content.get(key) for key in extras)
        and not any(model.get(key) for key in quirks)
    )


class HuggingFaceTokenizer:
    """Any `tokenizer.json`, through the package `tokenizers`; adds no special tokens.

    Raises:
        MissingExtra: `tokenizers` is not installed.
        DataError: the package cannot read the file.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError as error:
            raise MissingExtra("tokenizers", "hf") from error
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise DataError(f"cannot read tokeniser file {path}: {error}") from error
        self.size = int(self._inner.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._inner.decode(list(ids), skip_special_tokens=False))
