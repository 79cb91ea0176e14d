"""Text files as blocks of tokens for language modelling."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gossamer.data.dataset import Batches, Dataset
from gossamer.data.locate import find
from gossamer.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer
from gossamer.errors import ConfigError, DataError


class Blocks:
    """A source of blocks of a token stream: inputs (B, length) and targets (B, length), one token later.

    Blocks do not overlap; a rest shorter than a block is not used.

    Raises:
        DataError: fewer than length + 1 tokens.
    """

    def __init__(self, tokens: Tensor, length: int) -> None:
        if len(tokens) <= length:
            raise DataError(f"a text of {len(tokens)} tokens holds no block of {length} and its next token")
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, ...]:
        places = indices.view(-1, 1) * self.length + torch.arange(self.length + 1)
        windows = self.tokens[places]
        return windows[:, :-1], windows[:, 1:]


def read_text(path: str | Path) -> str:
    """A UTF-8 text file.

    Raises:
        DataError: missing, empty or not UTF-8.
    """
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read text file {path}: {error}") from error
    if not content:
        raise DataError(f"text file {path} is empty")
    return content


def text(
    *,
    path: str | Path,
    tokenizer: str | Path | Tokenizer = "byte",
    context: int = 128,
    batch_size: int = 32,
    seed: int = 0,
    val: float = 0.0,
    test: float = 0.1,
) -> Dataset:
    """A text file for next-token prediction: the first part trains, the last fraction `test` tests.

    Args:
        path: UTF-8 text file.
        tokenizer: "byte", the path of a `tokenizer.json`, or a `Tokenizer`.
        context: tokens in a block.
        batch_size: blocks in a batch.
        seed: of the order of the blocks.
        val: last fraction of the training part, held out for selection.
        test: last fraction of the whole.
    Returns:
        a data set of kind "language"; `classes` is the size of the vocabulary, `shape` is (context,).
    Raises:
        DataError: missing, empty or not UTF-8; a part shorter than a block.
        ConfigError: `val` outside [0, 1) or `test` outside (0, 1).
    """
    if not (0 <= val < 1 and 0 < test < 1):
        raise ConfigError(f"val={val}, test={test}: need 0 <= val < 1 and 0 < test < 1")
    coder = _tokenizer(tokenizer)
    tokens = torch.tensor(coder.encode(read_text(path)))
    end = round((1 - test) * len(tokens))
    middle = round((1 - val) * end)
    batches = partial(Batches, batch_size=batch_size)
    return Dataset(
        train=batches(Blocks(tokens[:middle], context), seed=seed, shuffle=True),
        val=batches(Blocks(tokens[middle:end], context)) if val else None,
        test=batches(Blocks(tokens[end:], context)),
        classes=coder.size,
        shape=(context,),
        kind="language",
    )


def _tokenizer(chosen: str | Path | Tokenizer) -> Tokenizer:
    if chosen == "byte":
        return ByteTokenizer()
    return BpeTokenizer.from_file(chosen) if isinstance(chosen, (str, Path)) else chosen


def tiny_shakespeare(
    *,
    tokenizer: str | Path | Tokenizer = "byte",
    context: int = 128,
    batch_size: int = 32,
    seed: int = 0,
    val: float = 0.0,
) -> Dataset:
    """1.1 MB of Shakespeare, the customary last tenth to test; "tiny-shakespeare" of `find`; see `text`."""
    path = find("tiny-shakespeare", "input.txt") / "input.txt"
    return text(path=path, tokenizer=tokenizer, context=context, batch_size=batch_size, seed=seed, val=val)


def wikitext2(
    *,
    tokenizer: str | Path | Tokenizer = "byte",
    context: int = 128,
    batch_size: int = 32,
    seed: int = 0,
    val: float = 0.0,
) -> Dataset:
    """WikiText-2's validation file as a small text, the last tenth to test; see `text`.

    File: "wikitext-2" of `find`. Figures on it are not comparable with published ones, which
    train on the far larger training file.
    """
    path = find("wikitext-2", "valid.txt") / "valid.txt"
    return text(path=path, tokenizer=tokenizer, context=context, batch_size=batch_size, seed=seed, val=val)
