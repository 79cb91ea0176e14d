"""Zero-shot classification of a folder of pictures by a CLIP: sub-folders bear the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, DataError
from gossamer.experts.clip_pairs import MEAN, STD, tokenizer_of
from gossamer.experts.evaluate import zero_shot
from gossamer.experts.hf import encode_clip
from gossamer.experts.pixels import Pixels

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
TEMPLATES = ("a photo of a {}.",)


def classify(
    model: Any, folder: str | Path, pictures: str | Path, templates: Sequence[str] = TEMPLATES, batch: int = 64
) -> dict[str, float]:
    """{"zero-shot accuracy", "classes", "pictures"} of a CLIP, dense or with experts.

    Args:
        model: the network. folder: its checkpoint, for tokenizer and preprocessing.
        pictures: one sub-folder a class; an underscore in its name stands for a space.
        templates: sentences with {} for the name; a class is the mean of their embeddings.
    Raises:
        ConfigError: a template without {}. DataError: less than two classes, a class without pictures, broken files.
    Source: Radford et al. 2021, section 3.1.4.
    """
    odd = [text for text in templates if "{}" not in text]
    if odd or not templates:
        raise ConfigError(f"templates need {{}} where the name of a class goes, got {odd or 'none'}")
    classes = _classes(Path(pictures))
    size = int(model.config.vision_config.image_size)
    reader = Pixels.of(Path(folder), size, MEAN, STD)
    ids = _tokens(model, folder, [text.format(name) for name in classes for text in templates])
    blank = torch.zeros(1, 3, size, size)
    paths = [(path, number) for number, held in enumerate(classes.values()) for path in held]
    with torch.no_grad():
        prompts = torch.cat([encode_clip(model, blank, part)[1] for part in ids.split(batch)])
        images = [
            encode_clip(model, torch.stack([reader.read(path) for path, _ in part]), ids[:1])[0]
            for part in (paths[start : start + batch] for start in range(0, len(paths), batch))
        ]
    labels = torch.tensor([number for _, number in paths])
    accuracy = zero_shot(torch.cat(images), prompts.unflatten(0, (len(classes), -1)), labels)
    return {"zero-shot accuracy": accuracy, "classes": len(classes), "pictures": len(paths)}


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Name -> its pictures."""
    places = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(places) < 2:
        raise DataError(f"{folder} holds {len(places)} folders; zero-shot classes are at least two folders of pictures")
    found = {
        place.name.replace("_", " "): sorted(p for p in place.rglob("*") if p.suffix.lower() in PICTURES)
        for place in places
    }
    empty = next((name for name, held in found.items() if not held), None)
    if empty is not None:
        raise DataError(f"{folder}: the class {empty!r} has no picture ({', '.join(PICTURES)})")
    return found


def _tokens(model: nn.Module, folder: str | Path, texts: list[str]) -> Tensor:
    """(texts, context) ids, padded."""
    context = int(model.config.text_config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    given = tokenizer_of(folder)(texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")
    ids: Tensor = given["input_ids"]
    return ids
