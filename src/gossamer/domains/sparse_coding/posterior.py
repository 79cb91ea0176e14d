"""The approximate posterior of data points, and its refinement where the truncation was too tight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .anneal import Settings
from .em import batches, part
from .model import Batch, Inference, Model, Params

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Posterior:
    """What is known about the latents of n data points.

    Attributes:
        states: (n, k, H) the most probable states (spike and slab: with the mean of the slab given the state).
        probs: (n, k) their probabilities, largest first; they do not add up to 1 when there are more states.
        marginals: (n, H) probability that a unit is active. mean: (n, H) posterior mean of the latents.
        evidence: (n,) lower bound of log p(y).
        n_candidates, max_active: (n,) the truncation that was used.
        saturated: (n,) whether the most probable state has as many active units as that allows (and not all).
    """

    states: Array
    probs: Array
    marginals: Array
    mean: Array
    evidence: Array
    n_candidates: NDArray[np.int64]
    max_active: NDArray[np.int64]
    saturated: NDArray[np.bool_]

    @property
    def map(self) -> Array:
        """(n, H) the most probable state."""
        return self.states[:, 0]


def posterior_of(model: Model, params: Params, data: Batch, top_k: int) -> Posterior:
    """The posterior under the model's truncation."""
    pieces = [
        _piece(model, model.infer(params, part(data, where), Settings()), top_k)
        for where in batches(model, data)
    ]  # fmt: skip
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    active = (joined["states"][:, 0] != 0).sum(1)
    space, n = model.space, len(data.y)
    return Posterior(
        **joined,
        n_candidates=np.full(n, space.candidates),
        max_active=np.full(n, space.active),
        saturated=(active >= space.active) & (space.active < space.units),
    )


def _piece(model: Model, found: Inference, top_k: int) -> dict[str, Array]:
    probs, index = found.q.topk(min(top_k, found.q.shape[1]), dim=1)
    tensors = {
        "states": model.decode(found, index),
        "probs": probs,
        "marginals": model.activity(found),
        "mean": model.codes(found),
        "evidence": found.evidence,
    }
    return {name: value.double().cpu().numpy() for name, value in tensors.items()}


def adapted(
    widen: Callable[[int, int], Model], first: Posterior, params: Params, data: Batch, top_k: int, most: tuple[int, int]
) -> Posterior:
    """Infer saturated points again with one more candidate and active unit, until none is left or `most` is reached.

    Args:
        widen: (n_candidates, max_active) -> the model with that truncation.
        most: largest n_candidates and max_active.
    Source: prosper section 3.10.
    """
    fields = {name: np.array(value) for name, value in vars(first).items()}
    candidates, active = int(first.n_candidates[0]), int(first.max_active[0])
    while fields["saturated"].any() and (candidates < most[0] or active < most[1]):
        candidates, active = min(candidates + 1, most[0]), min(active + 1, most[1])
        active = min(active, candidates)
        todo = np.flatnonzero(fields["saturated"])
        again = posterior_of(widen(candidates, active), params, part(data, torch.from_numpy(todo)), top_k)
        for name in ("states", "probs"):  # a narrow truncation may have had fewer states than were asked for
            extra = vars(again)[name].shape[1] - fields[name].shape[1]
            fields[name] = np.pad(fields[name], [(0, 0), (0, extra)] + [(0, 0)] * (fields[name].ndim - 2))
        for name, value in vars(again).items():
            fields[name][todo] = value
    return Posterior(**fields)
