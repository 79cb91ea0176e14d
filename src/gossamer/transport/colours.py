"""Give a picture the colours of another: each target colour is made of few source colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.transport.regularizers import KSparse, Regularizer
from gossamer.transport.result import Transport
from gossamer.transport.solve import solve_ot
from gossamer.transport.solvers import LBFGS, Solver

SAMPLES = 10_000  # pixels that k-means looks at


@dataclass(frozen=True, eq=False)
class Palette:
    """The main colours of a picture: centres (K, 3) in [0, 1], share (K,) of the pixels, label (h w,) of each pixel."""

    centres: Tensor
    share: Tensor
    label: Tensor


@dataclass(frozen=True, eq=False)
class ColourTransfer:
    """A recoloured picture (3, h, w) in [0, 1], the two palettes, the plan between them (rows: source)."""

    picture: Tensor
    source: Palette
    target: Palette
    transport: Transport


def palette(picture: Tensor, colours: int, seed: int = 0) -> Palette:
    """Cluster the pixels of a picture by k-means.

    Args:
        picture: (3, h, w) in [0, 1]. colours: at least 1; fewer come back where the picture has fewer.
        seed: of k-means and of the pixels it sees.
    Raises:
        ShapeError: not (3, h, w). NumericsError: NaN or infinity. ConfigError: colours below 1.
    """
    if picture.dim() != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ShapeError(f"a picture has shape (3, height, width), got {tuple(picture.shape)}")
    if not bool(torch.isfinite(picture).all()):
        raise NumericsError("the picture holds NaN or infinity")
    if colours < 1:
        raise ConfigError(f"colours must be at least 1, got {colours}")
    from sklearn.cluster import KMeans

    pixels = picture.detach().double().cpu().flatten(1).t().contiguous()  # (h w, 3)
    chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    different = len(pixels[chosen].unique(dim=0))
    means = KMeans(min(colours, different), n_init=1, random_state=seed).fit(pixels[chosen].numpy())
    label = torch.from_numpy(means.predict(pixels.numpy())).long()
    centres = torch.from_numpy(means.cluster_centers_)
    counts = torch.bincount(label, minlength=len(centres))
    used = counts > 0
    return Palette(centres[used], counts[used] / len(label), (used.cumsum(0) - 1)[label])


def colour_transfer(
    source: Tensor,
    target: Tensor,
    reg: Regularizer = KSparse(k=4, gamma=1.0),
    *,
    colours: int = 64,
    seed: int = 0,
    solver: Solver = LBFGS(),
) -> ColourTransfer:
    """Recolour `source` with the palette of `target`.

    Every colour of the target is made of at most k colours of the source. A source colour moves to the mean of the
    target colours that it serves, and its pixels move along; one that serves none stays.

    Args:
        source, target: (3, h, w) in [0, 1], of any two sizes. colours: of each palette.
        reg: as in `solve_ot`; the cost is the squared distance in RGB, at most 3.
    Source: Liu, Puigcerver and Blondel 2023, section 5.2.
    """
    ours, theirs = palette(source, colours, seed), palette(target, colours, seed)
    cost = torch.cdist(ours.centres, theirs.centres).square()
    found = solve_ot(cost, ours.share.double(), theirs.share.double(), reg, solver=solver)
    sums = found.plan.sum(1, keepdim=True)
    moved = torch.where(sums > 0, found.plan @ theirs.centres / sums.clamp(min=1e-300), ours.centres)
    shift = (moved - ours.centres)[ours.label].t().reshape(source.shape)
    picture = (source.detach().double().cpu() + shift).clamp(0, 1).to(source)
    return ColourTransfer(picture, ours, theirs, found)
