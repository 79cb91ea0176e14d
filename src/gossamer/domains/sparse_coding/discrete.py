"""Linear sparse coding with discrete latents: BSC (0, 1), TSC (-1, 0, 1) and DSC (any values with 0) are one model."""

from __future__ import annotations

import torch
from torch import Tensor

from .anneal import Settings
from .gaussian import data_sums, deviation, dictionary, precision, project, spread
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
from .states import StateSpace
from .truncation import binomial_moments, corrected_activity

ALL = frozenset(("W", "prior", "sigma"))


class DiscreteLinear(Model):
    """y = W s + noise with s_h in {0, *values}, independent, of equal prior.

    Parameters: `W` (D, H), `prior` (1 + values,) with that of zero first, `sigma` (0-d).

    Args:
        space: the states. tied: all non-zero values have one probability (TSC).
        penalty: least prior probability of zero.
        learn: which of "W", "prior", "sigma" are updated.
    Source: prosper sections 3.1-3.5; Henniges et al. 2010 (BSC), Exarchakis and Lücke 2017 (DSC).
    """

    missing = True

    def __init__(
        self, space: StateSpace, tied: bool = False, penalty: float = 0.0, learn: frozenset[str] = ALL
    ) -> None:
        self.space, self.tied, self.penalty, self.learn = space, tied, penalty, learn

    def initial(self, data: Moments, generator: torch.Generator) -> Params:
        h, kinds = self.space.units, len(self.space.values)
        share = torch.rand(kinds, generator=generator, dtype=torch.float64) + 0.1
        share = torch.full_like(share, 1 / kinds) if self.tied or kinds == 1 else share / share.sum()
        # one unit of two would make the odds of a single unit 1/1
        active = min(1 / h, 0.5)
        prior = torch.cat([torch.tensor([1 - active], dtype=torch.float64), active * share]).to(data.mean)
        W = initial_dictionary(data, h, generator)
        return {"W": W, "prior": prior, "sigma": data.mean.new_tensor(max(data.sd, 1e-6))}

    def infer(self, params: Params, batch: Batch, settings: Settings) -> Inference:
        space, W, prior = self.space, params["W"], params["prior"]
        odds = prior[1:].log() - prior[0].log()
        b, gram, base = project(W, precision(params["sigma"], len(W)), batch)
        power = gram.diagonal(dim1=1, dim2=2)  # (1 or n, H)
        single = b[:, :, None] * space.values - 0.5 * power[:, :, None] * space.values.square()
        candidates = candidates_of((single + odds).amax(2), space.candidates)
        likelihood = torch.cat([b.new_zeros(len(b), 1), single.flatten(1), self._multi(b, gram, candidates)], 1)
        prior_part = torch.cat([b.new_zeros(1), odds.repeat(space.units), space.counts @ odds])
        base = base + space.units * prior[0].log()
        joint = likelihood + prior_part
        beta = settings.beta
        half = None if beta == 1.0 or settings.anneal_prior else prior_part + beta * likelihood
        q, evidence, tempered = posterior(joint, base, beta, half)
        return Inference(candidates, q, evidence, tempered)

    def _multi(self, b: Tensor, gram: Tensor, candidates: Tensor) -> Tensor:
        """y'Ws - s'Gs/2 of the states on candidates, (n, S): one product with the table of monomials."""
        space = self.space
        i, j = candidates[:, space.first], candidates[:, space.second]
        row = torch.arange(len(gram), device=b.device)[:, None]
        twice = torch.where(space.first == space.second, 0.5, 1.0).to(b)
        linear, square = b.gather(1, candidates), gram[row, i, j] * twice
        return torch.cat([linear, -square], 1) @ torch.cat([space.multi, space.products], 1).T

    def statistics(self, params: Params, batch: Batch, found: Inference, weights: Tensor) -> Stats:
        q = found.q * weights[:, None]
        codes = self.space.mean(found.candidates, found.q)
        second = self.space.second_moment(found.candidates, q, per_point=batch.mask is not None)
        return data_sums(batch, weights, codes) | {
            "ss": spread(batch, second),
            "values": self.space.occurrences(q),
            "points": weights.sum(),
        }

    def update(self, params: Params, stats: Stats, settings: Settings) -> Params:
        new = dict(params)
        if "W" in self.learn:
            new["W"] = dictionary(params["W"], stats)
        if "sigma" in self.learn:
            new["sigma"] = deviation(new["W"], stats)
        if "prior" in self.learn:
            new["prior"] = self._prior(params["prior"], stats)
        return new

    def _prior(self, prior: Tensor, stats: Stats) -> Tensor:
        """Share of each value, with the bias of truncation taken out of the total."""
        space, kinds = self.space, len(self.space.values)
        total = stats["values"].sum()
        mean = float(total / (stats["points"] * space.units))
        active = corrected_activity(space.units, float(1 - prior[0]), space.active, mean)
        active = min(max(active, FLOOR), 1 - max(FLOOR, self.penalty))
        share = torch.full_like(stats["values"], 1 / kinds) if self.tied else stats["values"] / total.clamp(min=1e-300)
        values = (active * share).clamp(min=1e-6)
        return torch.cat([(1 - values.sum())[None], values])

    def kept(self, params: Params) -> float:
        return binomial_moments(self.space.units, float(1 - params["prior"][0]), self.space.active)[0]

    def codes(self, found: Inference) -> Tensor:
        return self.space.mean(found.candidates, found.q)

    def reconstruct(self, params: Params, found: Inference) -> Tensor:
        return self.codes(found) @ params["W"].T

    def decode(self, found: Inference, index: Tensor) -> Tensor:
        return self.space.decode(found.candidates, index)

    def sample(self, params: Params, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return sample_linear(params, self.space.values, n, generator)

    def width(self, dimensions: int) -> int:
        h = self.space.units
        return 4 * self.space.size + (3 * h * h if self.missing else 0) + 2 * dimensions

    def bounded(self, name: str, value: Tensor, before: Tensor) -> Tensor:
        value = super().bounded(name, value, before)
        if name != "prior":
            return value
        if self.tied:
            value = torch.cat([value[:1], value[1:].mean().expand(len(value) - 1)])
        return value / value.sum()


def sample_linear(params: Params, values: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Data (n, D) and latents (n, H) of the linear discrete model."""
    W, prior = params["W"], params["prior"]
    drawn = torch.multinomial(prior.cpu().double(), n * W.shape[1], True, generator=generator).view(n, -1)
    s = torch.cat([values.new_zeros(1), values])[drawn.to(W.device)]
    return s @ W.T + params["sigma"] * normal((n, len(W)), generator, W), s
