"""Upscaling, measuring and training super-resolution networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError, unknown
from ...metrics.image import luma_psnr_ssim
from ...recipes import RECIPES
from ...runs.folder import RunFolder
from ...sparsify.groups import Select
from ...sparsify.recipe import Recipe
from ...training.config import OptimConfig, TrainConfig
from ...training.loop import fit
from ...training.task import Batch, Task
from .data import Pair, Patches
from .pictures import Picture
from .resize import bicubic

Upscaler = Callable[[Tensor], Tensor]  # (B, 3, h, w) -> (B, 3, h scale, w scale)


@torch.no_grad()
def upscale(model: Upscaler, image: Tensor, scale: int, tile: int | None = None, overlap: int = 8) -> Tensor:
    """Upscale one image, in tiles where it is large.

    Args:
        model: (1, 3, h, w) -> (1, 3, h scale, w scale). image: (3, h, w) in [0, 1].
        tile: side of the pieces in pixels; None takes the image whole. overlap: pixels around a piece that the network
            sees and that are cut off again.
    Returns:
        (3, h scale, w scale), clamped to [0, 1].
    """
    if tile is not None and (tile < 1 or overlap < 0):
        raise ConfigError(f"needs tile >= 1 and overlap >= 0, got {tile} and {overlap}")
    height, width = image.shape[1:]
    step = tile or max(height, width)
    out = torch.empty(3, height * scale, width * scale)
    for top in range(0, height, step):
        for left in range(0, width, step):
            y, x = max(0, top - overlap), max(0, left - overlap)
            bottom, right = min(top + step, height), min(left + step, width)
            piece = image[:, y : bottom + overlap, x : right + overlap]
            done = model(piece[None])[0].clamp(0, 1).cpu()
            out[:, top * scale : bottom * scale, left * scale : right * scale] = done[
                :, (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
            ]
    return out


def upscale_picture(model: Upscaler, picture: Picture, scale: int, tile: int | None = None) -> Picture:
    """A picture by the network; its opacity by bicubic interpolation."""
    alpha = None if picture.alpha is None else bicubic(picture.alpha, scale).clamp(0, 1)
    return Picture(upscale(model, picture.rgb, scale, tile), alpha, picture.grey, picture.deep)


@dataclass(frozen=True)
class Score:
    """Means over pictures: PSNR in dB and SSIM, on luma, border cut by the scale."""

    psnr: float
    ssim: float
    pictures: int


def evaluate(model: Upscaler, pairs: Iterable[Pair], scale: int, tile: int | None = None) -> Score:
    """PSNR and SSIM on luma by the usual protocol: 8 bits, border of `scale` pixels cut, mean over pictures.

    Args:
        model: a network in evaluation mode, or `bicubic_by(scale)`.
    Raises:
        DataError: no pictures.
    """
    rows = [luma_psnr_ssim(upscale(model, low / 255, scale, tile), high / 255, scale) for low, high in pairs]
    if not rows:
        raise DataError("there are no pictures to evaluate on")
    psnr, ssim = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Score(psnr, ssim, len(rows))


def bicubic_by(scale: int) -> Upscaler:
    """Plain interpolation, the floor under every network."""
    return lambda images: bicubic(images, scale)


class SuperResolution(Task):
    """Batches (low, high), both in [0, 1]; mean absolute error, and PSNR over all channels."""

    score, larger = "psnr", True

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        low, high = batch
        return F.l1_loss(model(low), high)

    def sums(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], int]:
        low, high = batch
        out = model(low)
        error = (out.clamp(0, 1) - high).square().flatten(1).mean(1).clamp_min(1e-10)
        return {"loss": (out - high).abs().flatten(1).mean(1).sum(), "psnr": (-10 * error.log10()).sum()}, len(low)


@dataclass(frozen=True)
class Images:
    """What `fit` trains and measures on: random patches, and fixed ones."""

    train: Patches
    test: Patches
    val: None = None


def authors_optimiser(lr: float = 2e-4) -> OptimConfig:
    """Adam as the authors of ISS-P take it: betas (0.9, 0.99), no decay, a constant rate."""
    return OptimConfig(name="adam", lr=lr, betas=(0.9, 0.99), weight_decay=0.0, schedule="constant")


def train(
    model: nn.Module,
    pairs: Sequence[Pair],
    recipe: Recipe,
    config: TrainConfig,
    *,
    patch: int = 64,
    batch_size: int = 16,
    folder: str | Path | RunFolder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """Train a network on patches by a recipe; resumable.

    Args:
        pairs: training pictures, as `read_pairs` gives them. patch: side of the high-resolution patches.
    Returns:
        the trained network, its masks, and the result of `fit`.
    Raises:
        ConfigError, DataError: patches that do not fit. NumericsError: a loss that is not finite.
    """
    scale: int = model.scale  # type: ignore[assignment]
    data = Images(
        Patches(list(pairs), scale, patch, batch_size, config.seed),
        Patches(list(pairs), scale, patch, batch_size, config.seed + 1, augment=False),
    )
    task = SuperResolution(model)
    result = fit(task, data, recipe, config, run=folder, resume=resume, overwrite=overwrite, progress=progress)
    return task.model.eval(), task.masks, result


def method(name: str, sparsity: float, half_life: float | None = None) -> Recipe:
    """A recipe by its name that leaves the layers behind the body dense, as the authors do (*tail*).

    Recipes that bring their own sparsity (N:M) do not read `sparsity`.

    Args:
        half_life: of ISS-P, see `recipes.iss_p`; None: the authors' alpha.
    Raises:
        ConfigError: an unknown name, or a half-life for a recipe that has none.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    known = inspect.signature(RECIPES[name]).parameters
    if half_life is not None and "half_life" not in known:
        raise ConfigError(f"recipe {name} shrinks no weights by a factor, so a half-life of {half_life} says nothing")
    options = {"sparsity": sparsity, "half_life": half_life}
    made = RECIPES[name](**{key: value for key, value in options.items() if key in known})
    return made.replace(select=Select(exclude=("tail*",)))
