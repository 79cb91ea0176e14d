"""FVU against L0: every kind of sparse autoencoder on the same activations, with equal budgets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from gossamer.autoencoders.losses import AuxK
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import FeatureChoice, Gated, JumpReLU, MutualChoice, ReLU, Selection, TokenChoice
from gossamer.autoencoders.training import Plan, Switch, optimiser, train
from gossamer.errors import CheckpointError, unknown
from gossamer.runs.files import write_json
from gossamer.training.config import TrainConfig

# What an arm gives: FVU, L0, dead share, ...
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A kind at some budget: its selection, a later one, whether the dictionary is nested."""

    select: Selection
    switch: Switch | None = None
    nested: bool = False


VARIANTS: dict[str, Callable[[float], Variant]] = {
    "ReLU": lambda k: Variant(ReLU(k)),
    "gated": lambda k: Variant(Gated(k)),
    "JumpReLU": lambda k: Variant(JumpReLU(k)),
    "TopK": lambda k: Variant(TokenChoice(int(k))),
    "mutual": lambda k: Variant(MutualChoice(k)),
    "Matryoshka": lambda k: Variant(MutualChoice(k), nested=True),
    "feature": lambda k: Variant(FeatureChoice(k)),
    "phased": lambda k: Variant(MutualChoice(k), Switch(0.7, FeatureChoice(k, "zipf"))),
}


@dataclass(frozen=True)
class Budget:
    """What every arm may spend.

    Args:
        features: of the dictionary; nested ones have prefixes of an eighth and three eighths of it. steps: of Adam.
        lr: rises over 100 steps (a tenth at most) and falls in the last fifth. seed: of weights.
        window: tokens without activation after which a feature is dead and the auxiliary loss revives it.
        device: that trains.
    """

    features: int
    steps: int
    lr: float = 3e-3
    seed: int = 0
    window: int = 20_000
    device: Literal["auto", "cpu", "cuda"] = "auto"


def fit_variant(name: str, k: float, data: Any, budget: Budget) -> SparseAutoencoder:
    """Train one kind at one budget; kinds that select over a batch get thresholds from the first 8,192 rows of `data`.

    Args:
        name: of VARIANTS. k: mean active features of a token. data: batches by the step, as `train` takes them.
    Raises:
        ConfigError: an unknown name. Besides, as `train`.
    """
    if name not in VARIANTS:
        raise unknown("kind of curve", name, VARIANTS)
    made, n = VARIANTS[name](k), budget.features
    first = data.batch(0)[0]
    prefixes = (n // 8, 3 * n // 8, n) if made.nested else None
    sae = SparseAutoencoder(first.shape[1], n, made.select, prefixes=prefixes, seed=budget.seed)
    optim = optimiser(n, budget.steps, budget.lr, 100)
    settings = TrainConfig(steps=budget.steps, seed=budget.seed, optim=optim, clip=1.0, device=budget.device)
    config = settings.model_copy(update={"checkpoint_every": 0, "log_every": 0})
    train(sae, data, config, Plan(AuxK(max(1, sae.d // 2), window=budget.window), made.switch))
    sae.cpu()
    if sae.select.couples:
        count = min(-(-8192 // len(first)), budget.steps)
        sae.calibrate_threshold(data.batch(step)[0] for step in range(count))
    return sae


def sweep(
    names: Iterable[str],
    ks: Sequence[float],
    data: Any,
    budget: Budget,
    measured: Callable[[SparseAutoencoder], Row],
    path: Path,
    about: dict[str, Any],
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Train all kinds at all budgets; every finished arm is kept in a file, and not trained again.

    Args:
        measured: figures of a trained autoencoder, at least "fvu" and "l0". path: of the JSON file.
        about: what else the figures depend on, such as model and text.
    Returns:
        {"kind", "k", **figures} of every arm.
    Raises:
        CheckpointError: the file belongs to other settings.
    """
    settings = json.loads(json.dumps(about | asdict(budget)))
    rows: list[Row] = _kept(path, settings)
    done = {(row["kind"], row["k"]): row for row in rows}
    wanted = [(name, float(k)) for name in names for k in ks]
    for name, k in wanted:
        if (name, k) not in done:
            done[name, k] = {"kind": name, "k": k, **measured(fit_variant(name, k, data, budget))}
            write_json(path, {"settings": settings, "rows": list(done.values())})
        say(f"{name}, k = {k:g}: L0 {done[name, k]['l0']:.2f}, FVU {done[name, k]['fvu']:.4f}")
    return [done[key] for key in wanted]


def _kept(path: Path, settings: dict[str, Any]) -> list[Row]:
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, rows = record["settings"], list(record["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds no curves: {error!r}; choose another folder") from error
    if found != settings:
        odd = next(name for name in {**found, **settings} if found.get(name) != settings.get(name))
        raise CheckpointError(
            f"{path} holds curves with {odd} = {found.get(odd)!r}, now it is {settings.get(odd)!r}; choose another "
            "folder or replace it (--overwrite)"
        )
    return rows
