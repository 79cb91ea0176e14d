"""The sparse coding testbed: bars with a known dictionary, prior and noise, and patches of photographs.

Bars are those of prosper's examples: 5 x 5 pixels, ten bars of value 10, each with probability 0.2, noise 2. Settings
are the published ones, or those of the specification's measurements. Finished runs are kept on disk (cells.py).
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.domains.sparse_coding import (
    BinarySparseCoding,
    DiscreteSparseCoding,
    MaximalCauses,
    MaxMagnitudeCauses,
    SparseCodingWarning,
    SpikeSlabSparseCoding,
    TernarySparseCoding,
    bars,
    match,
)
from gossamer.domains.sparse_coding.estimator import SparseCoder
from gossamer.errors import unknown

Array = NDArray[np.float64]
SIGMA, ACTIVE = 2.0, 0.2
FOUND = 1.0  # mean absolute error below which a bar counts as found: a tenth of its value

CUT = ((0, 0.0), (2 / 3, 1.0))
LINEAR: dict[str, dict[str, Any]] = {  # model -> data and settings of the test with linear superposition
    "bsc": {
        "data": {"states": (0, 1), "probabilities": (0.8, 0.2)},
        "fit": {"n_candidates": 8, "max_active": 5, "steps": 150, "anneal": {"T": ((0, 5.0), (0.8, 1.0)), "ncut": CUT}},
    },
    "tsc": {
        "data": {"states": (-1, 0, 1), "probabilities": (0.1, 0.8, 0.1)},
        "fit": {
            "n_candidates": 7,
            "max_active": 4,
            "steps": 100,
            "restarts": 3,
            "anneal": {"T": ((0, 2.0), (0.7, 1.0)), "ncut": CUT, "W_noise": ((0, 0.5), (0.6, 0.0))},
        },
    },
    "dsc": {
        "data": {"states": (0, 1, 2), "probabilities": (0.8, 0.15, 0.05)},
        "fit": {"n_candidates": 7, "max_active": 4, "steps": 100, "anneal": {"T": ((0, 2.0), (0.7, 1.0)), "ncut": CUT}},
    },
}
MODELS: dict[str, type[SparseCoder]] = {
    "bsc": BinarySparseCoding,
    "tsc": TernarySparseCoding,
    "dsc": DiscreteSparseCoding,
    "mca": MaximalCauses,
    "mmca": MaxMagnitudeCauses,
    "gsc": SpikeSlabSparseCoding,
}
# the test with bars that hide each other
HIDING = {
    "n_candidates": 5,
    "max_active": 3,
    "steps": 60,
    "restarts": 6,
    "anneal": {"T": ((0, 4.0), (0.8, 1.0)), "ncut": CUT, "W_noise": ((0, 0.5), (0.6, 0.0))},
}


def spoiled(Y: Array, options: dict[str, Any], mutant: str | None, seed: int) -> tuple[Array, dict[str, Any]]:
    """Data and settings with a deliberate fault.

    Args:
        mutant: "shuffled_data" permutes every column, "no_learning" keeps the first dictionary, None does nothing.
    """
    if mutant == "shuffled_data":
        return np.random.default_rng(seed).permuted(Y, axis=0), options
    if mutant == "no_learning":
        return Y, options | {"learn": ("prior", "sigma")}
    if mutant is not None:
        raise unknown("mutant", mutant, ("shuffled_data", "no_learning"))
    return Y, options


def fit(model: str, Y: Array, seed: int, mutant: str | None = None, **options: Any) -> SparseCoder:
    """A fitted estimator of `MODELS`, silently."""
    Y, options = spoiled(Y, options, mutant, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparseCodingWarning)
        return MODELS[model](random_state=seed, **options).fit(Y)


def described(coder: SparseCoder, W: Array, signed: bool = False) -> dict[str, Any]:
    """Bars found, mean error, learned prior and noise, and the likelihood."""
    found = match(coder.W_, W, signed)
    return {
        "found": int((found.error < FOUND).sum()),
        "error": float(found.error.mean()),
        "prior": [float(p) for p in np.atleast_1d(getattr(coder, "probabilities_", coder.prior_))],
        "sigma": float(coder.sigma_),
        "likelihood": coder.log_likelihood_,
    }


def linear_bars(model: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """One run of BSC, TSC or DSC on 1000 pictures whose bars add up; the result is cached on disk.

    Returns:
        what `described` says, and "prior_error", "sigma_error" and "seconds".
    """

    def compute() -> dict[str, Any]:
        settings = LINEAR[model]
        data = bars(1000, sigma=SIGMA, seed=seed, **settings["data"])
        extra = {"states": (0, 1, 2)} if model == "dsc" else {}
        started = time.perf_counter()
        with one_thread():
            coder = fit(model, data.Y, seed, mutant, n_components=10, **settings["fit"], **extra)
        row = described(coder, data.W, signed=model == "tsc")
        truth = settings["data"]["probabilities"] if model == "dsc" else (ACTIVE,)
        return row | {
            "prior_error": max(abs(p - t) for p, t in zip(row["prior"], truth, strict=True)),
            "sigma_error": abs(row["sigma"] - SIGMA),
            "seconds": time.perf_counter() - started,
        }

    return cell(__name__, {"what": "linear", "model": model, "seed": seed, "mutant": mutant}, compute)


def hiding_bars(model: str, combine: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """MCA, MMCA, BSC, or a peer ("nmf", "l1") on 500 pictures whose bars add up ("sum") or hide each other ("max")."""

    def compute() -> dict[str, Any]:
        data = bars(500, sigma=SIGMA, combine=combine, seed=seed)  # type: ignore[arg-type]
        with one_thread():
            if model in ("nmf", "l1"):
                return peer(model, data.Y, data.W, seed)
            return described(fit(model, data.Y, seed, mutant, n_components=10, **HIDING), data.W)

    settings = {"what": "hiding", "model": model, "combine": combine, "seed": seed, "mutant": mutant}
    return cell(__name__, settings, compute)


def peer(name: str, Y: Array, W: Array, seed: int) -> dict[str, Any]:
    """NMF, or L1 dictionary learning with positive codes and columns, each column scaled to a largest value of 10."""
    from sklearn.decomposition import NMF, DictionaryLearning

    if name == "nmf":
        columns = NMF(10, init="random", random_state=seed, max_iter=2000).fit(Y.clip(min=0)).components_.T
    else:
        options = {
            "positive_dict": True,
            "positive_code": True,
            "fit_algorithm": "cd",
            "transform_algorithm": "lasso_cd",
        }
        learner = DictionaryLearning(10, alpha=1.0, max_iter=300, random_state=seed, **options)
        columns = learner.fit(Y).components_.T
    columns = columns * (10 / np.maximum(np.sort(columns, axis=0)[-5:].mean(0), 1e-12))
    found = match(columns, W)
    return {"found": int((found.error < FOUND).sum()), "error": float(found.error.mean())}


def truncation(seed: int, mutant: str | None = None) -> dict[str, Any]:
    """BSC with 221 of 1024 states and with all, from equal parameters; both judged by the exact likelihood.

    From the published start at T = 5 either may end in a poor optimum, which says nothing about truncation: both start
    at T = 2 with noise on W, and the likelier of two runs counts.

    Args:
        mutant: "one_active" truncates to one active unit.
    """

    def compute() -> dict[str, Any]:
        data = bars(1000, sigma=SIGMA, seed=seed)
        anneal = {"T": ((0, 2.0), (0.7, 1.0)), "ncut": CUT, "W_noise": ((0, 0.5), (0.6, 0.0))}
        row: dict[str, Any] = {}
        narrow = (2, 1) if mutant == "one_active" else (8, 5)
        with one_thread():
            for name, (candidates, active) in (("truncated", narrow), ("exact", (10, 10))):
                started = time.process_time()
                options = {"n_candidates": candidates, "max_active": active, "steps": 60, "restarts": 2}
                coder = fit("bsc", data.Y, seed, n_components=10, anneal=anneal, **options)  # type: ignore[arg-type]
                seconds = time.process_time() - started
                exact = coder.set_params(n_candidates=10, max_active=10).score(data.Y)
                row[name] = described(coder, data.W) | {"likelihood": exact, "seconds": seconds}
        return row

    return cell(__name__, {"what": "truncation", "seed": seed, "mutant": mutant}, compute)


def slab_bars(
    seed: int, truncation: tuple[int, int], cut: bool, units: int = 10, mutant: str | None = None
) -> dict[str, Any]:
    """GSC on 1000 pictures with bars of normal strength, noise 1: cosines, noise and prior."""

    def compute() -> dict[str, Any]:
        side = units // 2
        random = np.random.default_rng(seed)
        W = bars(1, side=side, seed=0).W  # norm 10 sqrt(side)
        strength = (random.random((1000, units)) < ACTIVE) * random.normal(size=(1000, units))
        Y = strength @ W.T + random.normal(size=(1000, len(W)))
        anneal = {"T": ((0, 4.0), (0.8, 1.0)), "ncut": CUT if cut else 0.0}
        options = {"n_candidates": truncation[0], "max_active": truncation[1], "steps": 100, "anneal": anneal}
        with one_thread():
            coder = fit("gsc", Y, seed, mutant, n_components=units, restarts=2, **options)
        unit = coder.W_ / np.linalg.norm(coder.W_, axis=0)
        found = match(unit, W / np.linalg.norm(W, axis=0), signed=True)
        return {
            "cosine": float(found.cosine.min()),
            "found": int((found.cosine > 0.99).sum()),
            "sigma": float(coder.sigma_),
            "prior": float(np.mean(coder.prior_)),
        }

    settings = {"what": "slab", "seed": seed, "truncation": truncation, "cut": cut, "units": units, "mutant": mutant}
    return cell(__name__, settings, compute)


NATURAL = {  # model -> settings for whitened 8 x 8 patches of photographs
    "bsc": {"n_candidates": 8, "max_active": 4},
    "tsc": {"n_candidates": 6, "max_active": 3},
    "gsc": {"n_candidates": 6, "max_active": 3},
}
FIELD = 8  # pixels of a side


def natural_fields(model: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Fits of Gabor functions to 48 components from 8000 patches; "pca" and "noise" are controls.

    Returns:
        {"median_r2", "explained": share with r2 >= 0.7, "oriented": share that `is_oriented`}.
    """
    from gossamer.domains.sparse_coding.fields import fit_gabor, is_oriented
    from gossamer.domains.sparse_coding.patches import natural_patches

    def compute() -> dict[str, Any]:
        with one_thread():
            Y = natural_patches(8000, FIELD, seed)
            fields = _components(model, Y, seed, mutant)
            fits = [fit_gabor(field.reshape(FIELD, FIELD)) for field in fields]
        r2 = np.array([found.r2 for found in fits])
        oriented = [is_oriented(found, FIELD) for found in fits]
        return {
            "median_r2": float(np.median(r2)),
            "explained": float((r2 >= 0.7).mean()),
            "oriented": float(np.mean(oriented)),
        }

    return cell(__name__, {"what": "natural", "model": model, "seed": seed, "mutant": mutant}, compute)


def _components(model: str, Y: Array, seed: int, mutant: str | None) -> Array:
    if model == "noise":
        return np.random.default_rng(seed).normal(size=(48, Y.shape[1]))
    if model == "pca":
        from sklearn.decomposition import PCA

        leading: Array = PCA(48, random_state=seed).fit(Y).components_
        return leading
    learned: Array = fit(model, Y, seed, mutant, n_components=48, steps=40, **NATURAL[model]).components_
    return learned


PARTS: dict[str, Any] = {
    "n_components": 10,
    "steps": 30,
    "random_state": 0,
    "anneal": {"T": ((0, 3.0), (0.5, 1.0)), "ncut": CUT},
}


def shared(mutant: str | None = None) -> dict[str, float]:
    """Largest difference of parameters after 30 steps on 1000 bars by one process, and by two with half the data each.

    Args:
        mutant: "own_sums" lets each process learn from its half alone.
    """

    def compute() -> dict[str, Any]:
        import tempfile

        from gossamer.training.distributed import launch

        names, largest = ("bsc", "mca", "gsc"), {}
        with tempfile.TemporaryDirectory() as folder:
            launch(_learn_half, 2, names, folder, mutant != "own_sums")
            for name in names:
                alone = fit_shared(name, bars(1000, seed=0).Y, False)
                with np.load(f"{folder}/{name}.npz", allow_pickle=False) as found:
                    gaps = [float(np.abs(found[key] - value.numpy()).max()) for key, value in alone.params_.items()]
                largest[name] = max(gaps)
        return largest

    return cell(__name__, {"what": "shared", "mutant": mutant}, compute)


def fit_shared(name: str, Y: Array, distributed: bool) -> SparseCoder:
    """The estimator whose parameters the processes must agree on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SparseCodingWarning)
        return MODELS[name](**PARTS, distributed=distributed).fit(Y)


def _learn_half(rank: int, names: tuple[str, ...], folder: str, together: bool) -> None:
    Y = bars(1000, seed=0).Y
    for name in names:
        coder = fit_shared(name, Y[500 * rank : 500 * (rank + 1)], together)
        if rank == 0:
            arrays: dict[str, Any] = {key: value.numpy() for key, value in coder.params_.items()}
            np.savez(f"{folder}/{name}.npz", **arrays)
