"""Maximal causes: the largest active component gives each value (MCA), or the largest in magnitude (MMCA), not the sum.

Learning uses a softened maximum (sum_h s_h |W_dh|^rho)^(1/rho), whose rho rises as the temperature falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anneal import Settings
from .discrete import ALL
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
from .truncation import binomial_moments, corrected_activity

LEAST = 1e-4  # |W| is kept above it: the softened maximum has no derivative at 0
MOST_RHO = 35.0
INERTIA = 2.5  # expected uses of a value after which MMCA believes 1 - 1/e of its update
LEAST_TRUST = 0.2


def softmax_power(temperature: float, coldest: float) -> float:
    """rho = 1 / (1 - 1 / max(T, coldest)), at most 35; 1 at infinite temperature, where the maximum is a sum."""
    return min(1.0 / (1.0 - 1.0 / max(temperature, coldest)), MOST_RHO)


def soft_maximum(W: Tensor, rows: Tensor, rho: float) -> Tensor:
    """Softened (magnitude) maximum over sets of columns.

    Args:
        W: (D, H). rows: (U, k) columns of each set; H stands for none.
    Returns:
        (U, D): sign(t) |t|^(1/rho), t = sum_h sign(W_dh) |W_dh|^rho over the set.
    """
    scale = W.abs().amax().clamp(min=1e-300)  # powers of numbers up to 1 cannot overflow
    relative = W / scale
    power = (relative.sign() * relative.abs() ** rho).T
    padded = torch.cat([power, power.new_zeros(1, len(W))])
    t = padded[rows[:, 0]]
    for column in rows.T[1:]:
        t = t + padded[column]
    return scale * t.sign() * t.abs() ** (1.0 / rho)


def derivative(W: Tensor, rows: Tensor, mean: Tensor, rho: float) -> Tensor:
    """d soft_maximum / d W of the members of each set: (U, k, D), at most 1, 0 for padding."""
    padded = torch.cat([W.T, W.new_zeros(1, len(W))])[rows].abs()
    ratio = padded / mean.abs().clamp(min=1e-300)[:, None]
    return ratio.clamp(max=1.0) ** (rho - 1.0) * (rows < W.shape[1])[:, :, None]


class MaximalCauses(Model):
    """y_d = max_h s_h W_dh + noise (or the value of largest magnitude), s_h in {0, 1} with one prior.

    Parameters: `W` (D, H), |W| >= 1e-4, `pi` and `sigma` (0-d).

    Args:
        magnitude: MMCA, whose W may have either sign; else MCA, whose W is positive.
    Source: prosper sections 3.2-3.5; Puertas et al. 2010 (MCA), Bornschein et al. 2013 (MMCA).
    """

    priors = ("pi",)

    def __init__(self, space: StateSpace, magnitude: bool = False, learn: frozenset[str] = ALL) -> None:
        self.space, self.magnitude, self.learn = space, magnitude, learn
        self.coldest = 1.2 if magnitude else 1.05

    def initial(self, data: Moments, generator: torch.Generator) -> Params:
        W = initial_dictionary(data, self.space.units, generator)
        like = data.mean
        pi, sigma = min(1 / self.space.units, 0.5), max(data.sd, 1e-6)
        return {
            "W": self.bounded("W", W if self.magnitude else W.abs(), W),
            "pi": like.new_tensor(pi),
            "sigma": like.new_tensor(sigma),
        }

    def bounded(self, name: str, value: Tensor, before: Tensor) -> Tensor:
        if name != "W":
            return super().bounded(name, value, before)
        if not self.magnitude:
            return value.abs().clamp(min=LEAST)
        return torch.where(value < 0, -1.0, 1.0).to(value) * value.abs().clamp(min=LEAST)

    def rho(self, settings: Settings) -> float:
        """Exponent of the softened maximum in this step."""
        return softmax_power(settings.T, self.coldest)

    def _select(self, W: Tensor, y: Tensor) -> Tensor:
        """MCA: least total by which a component exceeds the data; MMCA: least distance to the data."""
        if self.magnitude:
            return candidates_of(2 * y @ W - W.square().sum(0), self.space.candidates)
        excess = torch.stack([(column - y).clamp(min=0).sum(1) for column in W.T], 1)
        return candidates_of(-excess, self.space.candidates)

    def sets(self, candidates: Tensor) -> ActiveSets:
        """The sets of two and more active units; smaller ones are filled up with the number H."""
        n, h = len(candidates), self.space.units
        parts = []
        for subset in self.space.subsets:
            index = candidates[:, subset]  # (n, S_k, k)
            empty = index.new_full((n, len(subset), self.space.active - subset.shape[1]), h)
            parts.append(torch.cat([index, empty], 2))
        if not parts:
            parts = [candidates.new_zeros(n, 0, 1)]
        return ActiveSets(torch.cat(parts, 1), h + 1)

    def infer(self, params: Params, batch: Batch, settings: Settings) -> Inference:
        space, W, y, sigma = self.space, params["W"], batch.y, params["sigma"]
        odds = torch.logit(params["pi"])
        candidates = self._select(W, y)
        sets, rho = self.sets(candidates), self.rho(settings)
        mean = soft_maximum(W, sets.rows, rho)
        many = sets.dot(y, mean) - 0.5 * mean.square().sum(1)[sets.inverse]
        likelihood = torch.cat([y.new_zeros(len(y), 1), y @ W - 0.5 * W.square().sum(0), many], 1) / sigma.square()
        sizes = torch.cat([y.new_zeros(1), y.new_ones(space.units), space.multi.sum(1)])
        base = (
            space.units * (-params["pi"]).log1p()
            - 0.5 * y.square().sum(1) / sigma.square()
            - y.shape[1] * (sigma * (2 * torch.pi) ** 0.5).log()
        )
        q, evidence, tempered = posterior(likelihood + sizes * odds, base, settings.beta)
        return Inference(candidates, q, evidence, tempered, (sets, mean, rho))

    def statistics(self, params: Params, batch: Batch, found: Inference, weights: Tensor) -> Stats:
        W, y = params["W"], batch.y
        sets, mean, rho = found.extra
        q = found.q * weights[:, None]
        single, multi = self.space.split(q)
        single = single[:, :, 0]
        used = single.sum(0)
        over, under = (single.T @ y).T, used.expand_as(W)
        weight, total = sets.pool(multi, y)
        slope = derivative(W, sets.rows, mean, rho)
        rest = (weights * y.square().sum(1)).sum() - 2 * (W * over).sum() + used @ W.square().sum(0)
        return {
            "over": over + self._per_unit(sets, slope * total[:, None]),
            "under": under + self._per_unit(sets, slope * weight[:, None, None]),
            "rest": rest - 2 * (mean * total).sum() + weight @ mean.square().sum(1),
            "active": used.sum() + multi.sum(0) @ self.space.multi.sum(1),
            "points": weights.sum(),
            "values": weights.sum() * y.shape[1],
        }

    def _per_unit(self, sets: ActiveSets, parts: Tensor) -> Tensor:
        """Sum of (U, k, D) over the sets that hold a unit: (D, H)."""
        h = self.space.units
        sums = parts.new_zeros(h + 1, parts.shape[2])
        return sums.index_add_(0, sets.rows.reshape(-1), parts.flatten(0, 1))[:h].T

    def update(self, params: Params, stats: Stats, settings: Settings) -> Params:
        new = dict(params)
        if "W" in self.learn:
            new["W"] = self.bounded("W", self._dictionary(params["W"], stats), params["W"])
        if "sigma" in self.learn:
            new["sigma"] = (stats["rest"] / stats["values"].clamp(min=1)).clamp(min=1e-12).sqrt()
        if "prior" in self.learn:
            mean = float(stats["active"] / (stats["points"] * self.space.units))
            pi = corrected_activity(self.space.units, float(params["pi"]), self.space.active, mean)
            new["pi"] = params["pi"].new_tensor(pi).clamp(FLOOR, 1 - FLOOR)
        return new

    def _dictionary(self, W: Tensor, stats: Stats) -> Tensor:
        """Data averaged with the derivatives as weights; values that no point used stay."""
        over, under = stats["over"], stats["under"]
        found = torch.where(under > 1e-10, over / under.clamp(min=1e-10), W)
        if not self.magnitude:
            return found.clamp(min=LEAST)  # not |.|: a value below 0 means a component that is dark there
        trust = (1 - (-under / INERTIA).exp()).clamp(min=LEAST_TRUST)
        return trust * found + (1 - trust) * W

    def kept(self, params: Params) -> float:
        return binomial_moments(self.space.units, float(params["pi"]), self.space.active)[0]

    def codes(self, found: Inference) -> Tensor:
        return self.space.mean(found.candidates, found.q)

    def reconstruct(self, params: Params, found: Inference) -> Tensor:
        sets, mean, _ = found.extra
        single, multi = self.space.split(found.q)
        return single[:, :, 0] @ params["W"].T + sets.expect(multi, mean)

    def decode(self, found: Inference, index: Tensor) -> Tensor:
        return self.space.decode(found.candidates, index)

    def sample(self, params: Params, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        W = params["W"]
        s = torch.rand(n, W.shape[1], generator=generator, dtype=torch.float64).to(W) < params["pi"]
        mean = superpose(W, s.to(W))
        return mean + params["sigma"] * normal(mean.shape, generator, W), s.to(W)

    def width(self, dimensions: int) -> int:
        return self.space.size * (8 + 2 * self.space.active) + 2 * dimensions + len(self.space.multi) * dimensions


def superpose(W: Tensor, s: Tensor) -> Tensor:
    """The hard maximum in magnitude of active components: (D, H), (n, H) -> (n, D); 0 where none is active."""
    mean = W.new_zeros(len(s), len(W))
    for h, column in enumerate(W.T):
        other = s[:, h, None] * column
        mean = torch.where(other.abs() > mean.abs(), other, mean)
    return mean
