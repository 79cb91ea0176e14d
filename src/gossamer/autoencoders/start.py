"""Where training begins: the scale and the centre of the activations, from the first batch."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import JumpReLU
from gossamer.errors import NumericsError, ShapeError, unknown

CENTRES = ("median", "mean", "zero")


def geometric_median(x: Tensor, iterations: int = 50, tolerance: float = 1e-6) -> Tensor:
    """The point with the least sum of distances to the rows of x (n, d), by Weiszfeld's iterations.

    >>> geometric_median(torch.tensor([[0.0], [0.0], [10.0]])).tolist()
    [0.0]
    """
    point = x.median(0).values
    for _ in range(iterations):
        weights = 1 / (x - point).norm(dim=1).clamp_min(1e-8)
        moved = (x * weights[:, None]).sum(0) / weights.sum()
        if float((moved - point).norm()) <= tolerance * (1 + float(point.norm())):
            break
        point = moved
    return point


@torch.no_grad()
def start_from(
    sae: SparseAutoencoder, batch: tuple[Tensor, ...], centre: str = "median", normalise: bool = True
) -> None:
    """Set scales and b_dec (a transcoder's b_enc and a JumpReLU's thresholds, too) from a batch of activations.

    Scales make the mean squared norm equal to the width. Does nothing for a module that has been trained.

    Args:
        centre: "median" (geometric), "mean" or "zero".
    Raises:
        NumericsError: not finite. ShapeError: another width.
    """
    if centre not in CENTRES:
        raise unknown("centre", centre, CENTRES)
    if int(sae.steps):
        return
    x = batch[0].reshape(-1, batch[0].shape[-1]).float()
    x = sae.normalised(x) / sae.scale_in  # checks width and values
    y = batch[1].reshape(-1, sae.d_out).float() if sae.transcodes and len(batch) > 1 else x
    if y.shape[-1] != sae.d_out:
        raise ShapeError(f"a transcoder to {sae.d_out} dimensions needs targets of that width, got {y.shape[-1]}")
    if not float(x.var(0, unbiased=False).sum()) > 0:
        warnings.warn("all activations of the first batch are equal: there is nothing to explain", stacklevel=3)
    if normalise:
        sae.scale_in.copy_(_scale(x))
        sae.scale_out.copy_(_scale(y))
    find = {"median": geometric_median, "mean": lambda v: v.mean(0), "zero": lambda v: torch.zeros_like(v[0])}[centre]
    sae.b_dec.copy_(find(y[:4096]) * sae.scale_out)
    if sae.transcodes:
        sae.b_enc.copy_(-sae.encoder @ (find(x[:4096]) * sae.scale_in))
    select = sae.select
    if isinstance(select, JumpReLU) and select.threshold is None and select.k is not None:
        z = sae.pre(sae.centred(sae.normalised(x[:4096]))).relu().flatten()
        share = min(2 * select.k / sae.features, 0.5)
        least = z.kthvalue(max(1, round((1 - share) * len(z)))).values
        sae.log_threshold.fill_(float(least.clamp_min(1e-3).log()))


def _scale(x: Tensor) -> Tensor:
    mean_square = x.square().sum(1).mean()
    if not bool(torch.isfinite(mean_square)):
        raise NumericsError("the squared norms of the activations overflow; scale them down")
    return (x.shape[1] / mean_square).sqrt() if float(mean_square) > 0 else torch.ones(())
