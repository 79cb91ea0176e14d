"""What a sparse autoencoder explains, how sparsely, and with which features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.errors import DataError, NumericsError


@dataclass(frozen=True)
class Figures:
    """Measures over a set of tokens.

    Attributes:
        fvu: fraction of variance unexplained; r2 is 1 - fvu.
        l0, l0_std: active features of a token, mean and standard deviation.
        dead: share of features that no token uses. density: (features,), share of tokens that use each.
        tokens: how many were seen.
    """

    fvu: float
    l0: float
    l0_std: float
    dead: float
    density: Tensor
    tokens: int

    @property
    def r2(self) -> float:
        return 1 - self.fvu

    def as_dict(self) -> dict[str, Any]:
        """The scalars."""
        return {name: getattr(self, name) for name in ("fvu", "r2", "l0", "l0_std", "dead", "tokens")}


@torch.no_grad()
def measure(sae: SparseAutoencoder, data: Iterable[Any], *, batch: bool = False) -> Figures:
    """FVU, L0, dead features and densities.

    Args:
        data: batches ((B, d), ...) as the training took them, or bare tensors (..., d).
        batch: select over each batch, as in training, instead of by thresholds.
    Raises:
        DataError: no data. NumericsError: activations without variance, for which FVU is undefined.
    """
    error = square = count = l0 = l0_square = 0.0
    mean = torch.zeros(sae.d_out, dtype=torch.float64)
    active = torch.zeros(sae.features, dtype=torch.float64)
    for item in data:
        parts = item if isinstance(item, tuple | list) else (item,)
        target = (parts[1] if sae.transcodes else parts[0]).reshape(-1, sae.d_out).double()
        code = sae.sparse_code(parts[0], batch=batch)
        error += float((sae.decode(code).double() - target).square().sum())
        square += float(target.square().sum())
        mean += target.sum(0).cpu()
        per_token = code.offsets.diff().double()
        l0, l0_square = l0 + float(per_token.sum()), l0_square + float(per_token.square().sum())
        active += torch.bincount(code.indices, minlength=sae.features).double().cpu()
        count += len(target)
    if not count:
        raise DataError("there are no activations to measure on")
    variance = square - float(mean.square().sum()) / count
    if not variance > 1e-12 * max(square, 1e-300):
        raise NumericsError("the activations do not vary, so the unexplained share of their variance is undefined")
    spread = max(l0_square / count - (l0 / count) ** 2, 0.0) ** 0.5
    dead = float((active == 0).double().mean())
    return Figures(error / variance, l0 / count, spread, dead, (active / count).float(), int(count))


def density_histogram(density: Tensor, bins: int = 30, least: float = 1e-6) -> tuple[list[float], list[int]]:
    """Histogram of log10 densities: edges (bins + 1) and counts (bins); densities below `least` count as `least`.

    >>> density_histogram(torch.tensor([0.1, 0.1, 0.001]), bins=2, least=1e-4)[1]
    [1, 2]
    """
    logs = density.clamp_min(least).log10()
    low = float(torch.tensor(least).log10())
    edges = torch.linspace(low, 0.0, bins + 1)
    places = ((logs - low) / -low * bins).long().clamp(0, bins - 1)
    return edges.tolist(), torch.bincount(places, minlength=bins).tolist()


def recovered(plain: float, replaced: float, ablated: float) -> float:
    """Share of a loss that survives replacing activations: 1 where nothing is lost, 0 as bad as `ablated`.

    Args:
        plain, replaced, ablated: the model's loss, with reconstructed and with mean (or zero) activations.
    Raises:
        NumericsError: ablating changes nothing, so there is nothing to recover.
    """
    if not abs(ablated - plain) > 1e-12:
        raise NumericsError("ablating the activations does not change the loss, so no share of it can be recovered")
    return (ablated - replaced) / (ablated - plain)


def true_features_found(sae: SparseAutoencoder, truth: Tensor, cosine: float = 0.9) -> float:
    """Share of known directions, (n, d_out), that some dictionary row has a cosine of at least `cosine` with."""
    rows = torch.nn.functional.normalize(sae.decoder.detach(), dim=1)
    similarity = torch.nn.functional.normalize(truth.to(rows), dim=1) @ rows.t()
    return float((similarity.amax(1) >= cosine).float().mean())


@torch.no_grad()
def absorption(z: Tensor, labels: Tensor) -> dict[str, float]:
    """Does one feature stand for a known property of tokens, or is it split and absorbed by others?

    The feature whose activity predicts the label best (largest F1) is the property's own. Where it is silent although
    the label holds, the property is missed: absorbed, when another feature that fires almost only with the label is
    active there instead. A light check in the spirit of Chanin et al. 2024, without their probe.

    Args:
        z: (tokens, features), codes. labels: (tokens,) bool.
    Returns:
        {"f1", "precision", "recall", "absorbed": share of the tokens with the label that are absorbed, "feature"}.
    Raises:
        DataError: the label holds for no token, or for all.
    """
    labels = labels.bool()
    if not bool(labels.any()) or bool(labels.all()):
        raise DataError("absorption needs tokens with the property and without it")
    active = z > 0
    hits = active[labels].sum(0).double()
    fires, wanted = active.sum(0).double(), float(labels.sum())
    f1 = 2 * hits / (fires + wanted)
    own = int(f1.argmax())
    precise = (hits / fires.clamp_min(1)) >= 0.9
    precise[own] = False
    missed = labels & ~active[:, own]
    absorbed = active[missed][:, precise].any(1).sum() if bool(precise.any()) else torch.zeros(())
    return {
        "f1": float(f1[own]),
        "precision": float(hits[own] / fires[own].clamp_min(1)),
        "recall": float(hits[own]) / wanted,
        "absorbed": float(absorbed) / wanted,
        "feature": float(own),
    }
