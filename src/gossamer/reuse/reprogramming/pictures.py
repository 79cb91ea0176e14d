"""What a reprogrammed network sees: the target's picture inside the border that was learned for it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...errors import CheckpointError, MissingExtra
from ...runs.document import picture, section
from ...runs.files import atomic, write_text
from .prompt import VisualPrompt
from .transfer import Target

FILE = "prompts.safetensors"
Seen = dict[tuple[int | None, str], Tensor]  # (shots, model) -> (channels, height, width)


def watched(target: Target) -> tuple[Target, list[VisualPrompt]]:
    """The same task, and a list that receives every prompt it makes: in the end, trained."""
    made: list[VisualPrompt] = []

    def prompt() -> VisualPrompt:
        made.append(target.prompt())
        return made[-1]

    return replace(target, prompt=prompt), made


@torch.no_grad()
def inputs(prompts: list[VisualPrompt], example: Tensor, keys: list[tuple[int | None, str]]) -> Seen:
    """What the source is shown for one picture (1, channels, h, w), by the key of each prompt."""
    return {key: prompt(example)[0].cpu() for key, prompt in zip(keys, prompts, strict=True)}


def save(folder: Path, seen: Seen) -> None:
    """Keep the pictures of one seed in its folder."""
    from safetensors.torch import save_file

    with atomic(folder / FILE) as temporary:
        save_file(
            {f"{shots or 'all'} {model}": value.contiguous() for (shots, model), value in seen.items()}, temporary
        )


def load(folder: Path) -> Seen:
    """The pictures that `save` kept; none where there is no file. Raises CheckpointError for a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / FILE
    if not path.exists():
        return {}
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove it, or the folder to train again") from error
    split = {name: name.partition(" ") for name in found}
    return {(None if s == "all" else int(s), model): found[name] for name, (s, _, model) in split.items()}


def draw(seen: Mapping[tuple[int | None, str], Tensor]) -> bytes:
    """A PNG: a row for every number of shots, a column for every model, all on one scale of grey or colour.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "report") from error
    shots = sorted({key[0] for key in seen}, key=lambda count: -(count or 1_000_000_000))  # all first
    models = list(dict.fromkeys(key[1] for key in seen))
    low = min(float(value.min()) for value in seen.values())
    high = max(float(value.max()) for value in seen.values())
    figure = Figure(figsize=(2.1 * len(models) + 0.5, 2.1 * len(shots) + 0.3), layout="constrained", dpi=160)
    grid = figure.subplots(len(shots), len(models), squeeze=False)
    for row, count in enumerate(shots):
        for column, model in enumerate(models):
            axes = grid[row][column]
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(model, fontsize=9)
            if column == 0:
                axes.set_ylabel("all samples" if count is None else f"{count} a class", fontsize=9)
            if (count, model) in seen:
                pixels = ((seen[count, model] - low) / max(high - low, 1e-12)).permute(1, 2, 0)
                axes.imshow(pixels.expand(-1, -1, 3 if pixels.shape[2] == 1 else -1).numpy(), interpolation="nearest")
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def add_to_page(path: Path, seen: Mapping[tuple[int | None, str], Tensor], seed: int) -> None:
    """Put the pictures at the end of the page of a transfer report."""
    note = (
        f"One test picture as each frozen network sees it, seed {seed}: the border is learned, the picture is given. "
        "All on one scale, from the smallest to the largest pixel."
    )
    wide = 14 * len({key[1] for key in seen})
    drawn = f'<div style="max-width: {wide}rem">{picture(draw(seen), "learned borders of pixels")}</div>'
    shown = section("Learned prompts", f'<p class="soft">{note}</p>', drawn)
    write_text(path, path.read_text(encoding="utf-8").replace("</main>", f"{shown}</main>", 1))
