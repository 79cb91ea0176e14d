"""Images and captions in a folder, as CLIP's towers take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import DataError, MissingExtra
from gossamer.experts.pixels import Pixels

# of OpenAI's CLIP, used where the checkpoint has no preprocessor_config.json
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipFolder:
    """Pairs of a folder with `captions.jsonl`: one {"image": "a.jpg", "caption": "..."} a line, paths relative to it.

    Args:
        folder: the data. model: folder of a CLIP checkpoint with its tokenizer; gives image size, mean and deviation.
    Raises:
        DataError: no or broken captions.jsonl, an image that is missing or cannot be read. MissingExtra: pillow.
    """

    def __init__(self, folder: str | Path, model: str | Path) -> None:
        self.folder = Path(folder)
        self.rows = _rows(self.folder)
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        size = int(config.get("vision_config", {}).get("image_size", 224))
        self.context = int(config.get("text_config", {}).get("max_position_embeddings", 77))
        self.pixels = Pixels.of(Path(model), size, MEAN, STD)
        self.tokenizer = tokenizer_of(model)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) and token ids (B, context)."""
        rows = [self.rows[i] for i in index.tolist()]
        pixels = torch.stack([self.pixels.read(self.folder / row["image"]) for row in rows])
        texts = self.tokenizer(
            [row["caption"] for row in rows],
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        ids: Tensor = texts["input_ids"]
        return pixels, ids

    def images(self) -> tuple[Tensor, Tensor]:
        """Index (n,) of one pair of each image, and of each pair (m,) the number of its image among them."""
        numbers: dict[str, int] = {}
        owner = [numbers.setdefault(row["image"], len(numbers)) for row in self.rows]
        places = {number: place for place, number in reversed(list(enumerate(owner)))}
        return torch.tensor([places[number] for number in range(len(numbers))]), torch.tensor(owner)


def _rows(folder: Path) -> list[dict[str, str]]:
    path = folder / "captions.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}; needed is one JSON object with 'image' and 'caption' a line") from None
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("image"), str) and isinstance(row.get("caption"), str)):
            raise DataError(f"{path}, line {number}: an object with the strings 'image' and 'caption' is needed")
    if not rows:
        raise DataError(f"{path} holds no pair")
    return rows


def tokenizer_of(model: str | Path) -> Any:
    """The tokenizer in a checkpoint folder. Raises MissingExtra for transformers, DataError where there is none."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingExtra("transformers", "hf") from None
    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{model} holds no tokenizer that can be read: {error}") from None
