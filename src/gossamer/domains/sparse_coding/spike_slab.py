"""Gaussian sparse coding (GSC): y = W (s * z) + noise with binary s and Gaussian z, whose posterior is exact per s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .anneal import Settings
from .discrete import ALL
from .gaussian import TINY, data_sums, deviation, dictionary, precision, project, spread
from .model import (
    FLOOR,
    Batch,
    Inference,
    Model,
    Moments,
    Params,
    Stats,
    candidates_of,
    initial_dictionary,
    normal,
    posterior,
)
from .sets import ActiveSets
from .states import StateSpace
from .truncation import corrected_activities, few_active

Noise = Literal["scalar", "diagonal", "full"]


@dataclass(frozen=True)
class Slab:
    """Posterior of z in the states with k active units, (n, S_k, k): `index` of units, `mean`, and `covariance`.

    The covariance (U, k, k) is that of the distinct sets; `which` (n, S_k) says which one a state has.
    """

    index: Tensor
    mean: Tensor
    covariance: Tensor
    which: Tensor


class SpikeSlab(Model):
    """s_h ~ Bernoulli(pi_h), z_h ~ N(mu_h, psi_h), noise with one deviation, one per dimension, or a full covariance.

    Parameters: `W` (D, H); `pi`, `mu`, `psi` (H,); `sigma`: deviation (0-d or (D,)), or the covariance (D, D).

    Args:
        noise: "scalar", "diagonal" or "full".
    Source: prosper section 3.2, with the factor 1/2 that the authors' code lacks (section 5); Sheikh et al. 2014.
    """

    missing = True
    priors = ("pi", "mu", "psi")

    def __init__(self, space: StateSpace, noise: Noise = "scalar", learn: frozenset[str] = ALL) -> None:
        self.space, self.noise, self.learn = space, noise, learn

    def initial(self, data: Moments, generator: torch.Generator) -> Params:
        h, like = self.space.units, data.mean
        uniform = torch.rand(2, h, generator=generator, dtype=torch.float64).to(like)
        variance = data.variance.mean() + 1e-3 * data.variance.mean().clamp(min=1e-9)
        sigma = {
            "scalar": variance.sqrt(),
            "diagonal": variance.sqrt().expand_as(data.variance).clone(),
            "full": variance * torch.eye(len(like), dtype=like.dtype, device=like.device),
        }[self.noise]
        pi = (0.95 * uniform[0]).clamp(min=0.05)
        return {
            "W": initial_dictionary(data, h, generator),
            "pi": pi * min(1.0, self.space.active / float(pi.sum())),  # not more active units than are allowed
            "mu": normal((h,), generator, like),
            "psi": (2 * uniform[1]).clamp(min=0.05),
            "sigma": sigma,
        }

    def bounded(self, name: str, value: Tensor, before: Tensor) -> Tensor:
        return value.clamp(min=1e-6) if name == "psi" else super().bounded(name, value, before)

    def infer(self, params: Params, batch: Batch, settings: Settings) -> Inference:
        space, mu, psi = self.space, params["mu"], params["psi"]
        odds = torch.logit(params["pi"])
        b, gram, base = project(params["W"], precision(params["sigma"], len(params["W"])), batch)
        one, density = self._single(b, gram.diagonal(dim1=1, dim2=2), mu, psi)
        candidates = candidates_of(density, space.candidates)
        slabs, parts = [one], [b.new_zeros(len(b), 1), density + odds]
        for subset in space.subsets:
            slab, many = _several(candidates[:, subset], b, gram, mu, psi)
            slabs.append(slab)
            parts.append(many + odds[slab.index].sum(2))
        base = base + (-params["pi"]).log1p().sum()
        q, evidence, tempered = posterior(torch.cat(parts, 1), base, settings.beta)
        return Inference(candidates, q, evidence, tempered, slabs)

    @staticmethod
    def _single(b: Tensor, power: Tensor, mu: Tensor, psi: Tensor) -> tuple[Slab, Tensor]:
        """The slab and log density ratio of every unit alone, (n, H)."""
        n, h = b.shape
        strength = power + 1 / psi  # (1 or n, H)
        rest = b - power * mu
        density = b * mu - 0.5 * power * mu**2 + 0.5 * rest**2 / strength - 0.5 * (psi * strength).log()
        units = torch.arange(h, device=b.device)
        which = units.expand(n, h) + (torch.arange(n, device=b.device)[:, None] * h if len(power) > 1 else 0)
        covariance = (1 / strength).reshape(-1, 1, 1)
        return Slab(units.expand(n, h)[:, :, None], (mu + rest / strength)[:, :, None], covariance, which), density

    def statistics(self, params: Params, batch: Batch, found: Inference, weights: Tensor) -> Stats:
        q = found.q * weights[:, None]
        apart = batch.mask is not None
        codes, second = self._moments(found.extra, q, apart)
        sums = data_sums(batch, weights, self.codes(found))
        if self.noise == "full":
            sums["yy"] = (weights[:, None] * batch.y).T @ batch.y
        squares = second.diagonal(dim1=-2, dim2=-1)
        return sums | {
            "ss": spread(batch, second),
            "active": self.space.activity(found.candidates, q).sum(0),
            "code": codes.sum(0),
            "square": squares.sum(0) if apart else squares,
            "points": weights.sum(),
        }

    def _moments(self, slabs: list[Slab], q: Tensor, per_point: bool) -> tuple[Tensor, Tensor]:
        """Sums of <s z> (n, H) and <(s z)(s z)'>, (H, H) or of each point (n, H, H), under q."""
        n, h = len(q), self.space.units
        codes = q.new_zeros(n, h)
        flat = q.new_zeros((n if per_point else 1) * h * h)
        row = torch.arange(n, device=q.device)[:, None, None, None] * h * h if per_point else 0
        start = 1
        for slab in slabs:
            width = slab.index.shape[1]
            part = q[:, start : start + width]
            start += width
            weighted = part[:, :, None] * slab.mean
            codes.scatter_add_(1, slab.index.flatten(1), weighted.flatten(1))
            square = weighted[:, :, :, None] * slab.mean[:, :, None]
            square = square + part[..., None, None] * slab.covariance[slab.which]
            index = row + slab.index[:, :, :, None] * h + slab.index[:, :, None]
            flat.index_add_(0, index.expand_as(square).reshape(-1), square.reshape(-1))
        second = flat.view(-1, h, h)
        return codes, second if per_point else second[0]

    def update(self, params: Params, stats: Stats, settings: Settings) -> Params:
        new = dict(params)
        if "W" in self.learn:
            new["W"] = dictionary(params["W"], stats)
        if "sigma" in self.learn:
            new["sigma"] = self._noise(new["W"], stats)
        if "prior" in self.learn:
            active = stats["active"]
            pi = corrected_activities(params["pi"], self.space.active, active / stats["points"])
            new["pi"] = pi.clamp(FLOOR, 1 - FLOOR)
            used, safe = active > 1e-6, active.clamp(min=1e-6)
            new["mu"] = torch.where(used, stats["code"] / safe, params["mu"])
            psi = stats["square"] / safe - new["mu"].square()
            new["psi"] = torch.where(used, psi.clamp(min=1e-5), params["psi"])
        return new

    def _noise(self, W: Tensor, stats: Stats) -> Tensor:
        if self.noise != "full":
            return deviation(W, stats, per_dimension=self.noise == "diagonal")
        cross = W @ stats["ys"].T
        covariance = (stats["yy"] - cross - cross.T + W @ stats["ss"] @ W.T) / stats["points"].clamp(min=1)
        floor = TINY + 1e-7 * covariance.diagonal().mean()
        return (covariance + covariance.T) / 2 + floor * torch.eye(len(W), dtype=W.dtype, device=W.device)

    def kept(self, params: Params) -> float:
        return few_active(params["pi"], self.space.active)

    def codes(self, found: Inference) -> Tensor:
        """<s z>, (n, H)."""
        codes = found.q.new_zeros(len(found.q), self.space.units)
        start = 1
        for slab in found.extra:
            part = found.q[:, start : start + slab.index.shape[1]]
            start += slab.index.shape[1]
            codes.scatter_add_(1, slab.index.flatten(1), (part[:, :, None] * slab.mean).flatten(1))
        return codes

    def reconstruct(self, params: Params, found: Inference) -> Tensor:
        return self.codes(found) @ params["W"].T

    def decode(self, found: Inference, index: Tensor) -> Tensor:
        """s * E[z | s, y] of the chosen states."""
        n, k = index.shape
        states = found.q.new_zeros(n, k, self.space.units)
        start = 1
        for slab in found.extra:
            width = slab.index.shape[1]
            here = (index >= start) & (index < start + width)
            place = (index - start).clamp(0, max(width - 1, 0))[:, :, None].expand(-1, -1, slab.index.shape[2])
            if width:
                units, values = slab.index.gather(1, place), slab.mean.gather(1, place)
                states.scatter_add_(2, units, values * here[:, :, None])
            start += width
        return states

    def sample(self, params: Params, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        W, sigma = params["W"], params["sigma"]
        s = torch.rand(n, W.shape[1], generator=generator, dtype=torch.float64).to(W) < params["pi"]
        z = params["mu"] + params["psi"].sqrt() * normal(s.shape, generator, W)
        noise = normal((n, len(W)), generator, W)
        noise = noise @ torch.linalg.cholesky(sigma).T if sigma.ndim == 2 else noise * sigma
        return (s * z) @ W.T + noise, s * z

    def width(self, dimensions: int) -> int:
        h = self.space.units
        per_set = sum(subset.numel() * (3 * subset.shape[1] + 4) for subset in self.space.subsets)
        return 6 * h + 4 * h * h + per_set + 2 * dimensions


def _several(index: Tensor, b: Tensor, gram: Tensor, mu: Tensor, psi: Tensor) -> tuple[Slab, Tensor]:
    """The slab and log density ratio of states with k active units: index (n, S, k) -> (n, S).

    With Lambda = G_A + Psi_A^-1 and r = b_A - G_A mu_A (G and b in units of the noise precision):
    log ratio = b_A mu_A - mu_A' G_A mu_A / 2 + r' Lambda^-1 r / 2 - log|Psi_A| / 2 - log|Lambda| / 2.
    """
    n, states, k = index.shape
    if len(gram) == 1:
        sets = ActiveSets(index, b.shape[1])
        rows, which = sets.rows, sets.inverse
        block = gram[0][rows[:, :, None], rows[:, None]]
    else:
        rows, which = index.reshape(-1, k), torch.arange(n * states, device=b.device).view(n, states)
        owner = torch.arange(n, device=b.device).repeat_interleave(states)[:, None, None]
        block = gram[owner, rows[:, :, None], rows[:, None]]
    mean, scale = mu[rows], psi[rows]
    factor = torch.linalg.cholesky(block + torch.diag_embed(1 / scale))
    covariance = torch.cholesky_inverse(factor)
    pull = (block @ mean[:, :, None])[:, :, 0]
    constant = -0.5 * (mean * pull).sum(1) - 0.5 * scale.log().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    own = b.gather(1, index.reshape(n, -1)).view(n, states, k)
    rest = own - pull[which]
    shift = (covariance[which] @ rest[..., None])[..., 0]
    density = constant[which] + (own * mean[which]).sum(2) + 0.5 * (rest * shift).sum(2)
    return Slab(index, mean[which] + shift, covariance, which), density
