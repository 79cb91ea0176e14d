"""Expectation maximisation with annealing, the data cut, noise on parameters, and data divided among processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import NumericsError
from .anneal import Anneal, Settings
from .model import Batch, Inference, Model, Moments, Params, Stats, normal
from .reducer import Reducer

log = logging.getLogger(__name__)

NUMBERS = 1 << 23  # that a batch may hold (64 MiB of float64)


@dataclass
class Run:
    """A finished EM: parameters, and per step the log-likelihood before it, points used, and temperature."""

    params: Params
    history: dict[str, list[float]] = field(default_factory=dict)
    log_likelihood: float = -math.inf
    steps: int = 0


def moments(data: Batch, reducer: Reducer) -> Moments:
    """Mean and variance over the observed values of all processes."""
    here = torch.ones_like(data.y) if data.mask is None else data.mask.to(data.y)
    first = reducer.sum({"y": data.y.sum(0), "n": here.sum(0), "points": data.y.new_tensor(float(len(data.y)))})
    mean = first["y"] / first["n"].clamp(min=1)
    second = reducer.sum({"v": ((data.y - mean).square() * here).sum(0)})
    return Moments(mean, second["v"] / first["n"].clamp(min=1), int(first["points"]))


def batches(model: Model, data: Batch) -> Iterator[slice]:
    """Slices of the data that inference can hold at once."""
    size = max(1, NUMBERS // model.width(data.y.shape[1]))
    for start in range(0, max(1, len(data.y)), size):
        yield slice(start, start + size)


def part(data: Batch, where: slice | Tensor) -> Batch:
    """Some points of the data."""
    return Batch(data.y[where], None if data.mask is None else data.mask[where])


def log_likelihood(model: Model, params: Params, data: Batch, reducer: Reducer) -> float:
    """Mean log evidence of all points of all processes."""
    found = [model.infer(params, part(data, where), Settings()).evidence for where in batches(model, data)]
    total = torch.cat(found).sum() if found else data.y.new_zeros(())
    sums = reducer.sum({"total": total, "points": data.y.new_tensor(float(len(data.y)))})
    return float(sums["total"] / sums["points"])


def em_step(
    model: Model, params: Params, data: Batch, settings: Settings, reducer: Reducer
) -> tuple[Params, float, int]:
    """One E-step and M-step: (new parameters, log-likelihood of the old ones, number of points used)."""
    slices = list(batches(model, data))
    first = [model.infer(params, part(data, where), settings) for where in slices[:1]]

    def infer(index: int) -> Inference:
        # one batch is kept; several would not fit, so each is computed again where it is needed
        return first[0] if index == 0 else model.infer(params, part(data, slices[index]), settings)

    evidence, tempered = [], []
    stats: Stats = {}
    cut = settings.ncut > 0 and model.kept(params) < 1.0
    if cut:
        for index in range(len(slices)):
            found = infer(index)
            evidence.append(found.evidence)
            tempered.append(found.tempered)
    weights = _cut(torch.cat(tempered), model.kept(params), settings.ncut, reducer) if cut else None
    for index, where in enumerate(slices):
        found = infer(index)
        if not cut:
            evidence.append(found.evidence)
        chosen = torch.ones_like(found.evidence) if weights is None else weights[where]
        for name, value in model.statistics(params, part(data, where), found, chosen).items():
            stats[name] = stats[name] + value if name in stats else value
    points = data.y.new_tensor(float(len(data.y)))
    sums = reducer.sum(stats | {"_evidence": torch.cat(evidence).sum(), "_points": points})
    likelihood = float(sums.pop("_evidence") / sums.pop("_points"))
    return model.update(params, sums, settings), likelihood, int(sums["points"])


def _cut(evidence: Tensor, kept: float, factor: float, reducer: Reducer) -> Tensor:
    """1 for the points of largest evidence, as many as the prior expects to have few enough active units."""
    everywhere = reducer.concatenate(evidence)
    use = max(1, math.floor(len(everywhere) * (1 - (1 - kept) * factor)))
    least = everywhere.topk(use).values[-1]
    return (evidence >= least).to(evidence)


def run(
    model: Model,
    data: Batch,
    steps: int,
    anneal: Anneal,
    generator: torch.Generator,
    reducer: Reducer,
    params: Params | None = None,
    tol: float = 0.0,
    say: Callable[[str], None] = log.warning,
) -> Run:
    """EM from random (or the given) parameters.

    Args:
        data: this process's share of the points.
        generator: of initial parameters and noise; must be in one state on all processes.
        tol: stop when the log-likelihood of a step is less than so much above the last, once nothing is annealed any
            more; 0 never stops.
    Raises:
        NumericsError: the likelihood is not finite.
    """
    start, total = reducer.offset(len(data.y))
    params = model.initial(moments(data, reducer), generator) if params is None else params
    result = Run(params, {"log_likelihood": [], "points": [], "T": []})
    curve = result.history["log_likelihood"]
    final = anneal.at(steps - 1, steps)
    for step in range(steps):
        settings = anneal.at(step, steps)
        params = _revive(model.perturb(params, settings, generator), data, reducer, generator, say)
        chosen = _partial(data, settings, start, total, generator)
        params, likelihood, points = em_step(model, params, chosen, settings, reducer)
        if not math.isfinite(likelihood):
            raise NumericsError(f"the log-likelihood became {likelihood} in step {step}: scale the data to about 1")
        settled = settings == final and len(curve) > 0 and abs(likelihood - curve[-1]) < tol
        for name, value in (("log_likelihood", likelihood), ("points", points), ("T", settings.T)):
            result.history[name].append(value)
        if settled and anneal.at(step - 1, steps) == final:
            break
    result.params, result.steps = params, len(curve)
    result.log_likelihood = log_likelihood(model, params, data, reducer)
    return result


def _partial(data: Batch, settings: Settings, start: int, total: int, generator: torch.Generator) -> Batch:
    """The points of this step, with noise; what is drawn does not depend on how the data are divided."""
    end = start + len(data.y)
    if settings.data_noise > 0:
        noise = settings.data_noise * normal((total, data.y.shape[1]), generator, data.y)[start:end]
        data = Batch(data.y + (noise if data.mask is None else noise * data.mask), data.mask)
    if not 0 < settings.partial < 1:
        return data
    chosen = torch.randperm(total, generator=generator)[: math.ceil(settings.partial * total)].sort().values
    mine = chosen[(chosen >= start) & (chosen < end)] - start
    return part(data, mine.to(data.y.device))


def _revive(
    params: Params, data: Batch, reducer: Reducer, generator: torch.Generator, say: Callable[[str], None]
) -> Params:
    """Columns of the dictionary that are all zero, drawn anew: no data point could ever choose them."""
    W = params["W"]
    empty = ~W.any(0)
    if not empty.any():
        return params
    known = moments(data, reducer)
    fresh = known.mean[:, None] + known.sd / 4 * normal((len(W), int(empty.sum())), generator, W)
    say(f"{int(empty.sum())} all-zero columns of the dictionary drawn anew")
    W = W.clone()
    W[:, empty] = fresh
    return params | {"W": W}
