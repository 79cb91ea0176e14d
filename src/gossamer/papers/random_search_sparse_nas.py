"""Random search for sparse networks: a better start is no better ticket, in paired comparisons with an oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gossamer.architectures.masks import MaskSpace
from gossamer.architectures.paired import Arm, compare
from gossamer.architectures.random_search import SearchResult, random_search
from gossamer.architectures.space import Architecture
from gossamer.architectures.study import ARMS, Study, parent, run_seed, train
from gossamer.claims.cells import cell
from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.testbeds import one_thread
from gossamer.data.dataset import Batches, Dataset
from gossamer.maths.statistics import mean_sd, paired_interval

Figures = dict[str, float]
Row = dict[str, Any]
LEVELS = (0.5, 0.8, 0.9)
SEEDS = 10
HE = {"init": "he", "fan_in": "surviving", "steps": 800}
MNIST = {
    "data": "mnist",
    "data_options": {"batch_size": 50},
    "optim": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant"},
}


def _random_choice(found: SearchResult) -> Architecture:
    """The fault `random_score`: the search's scores are ignored."""
    others = found.evaluations[1:]
    return others[int(np.random.default_rng(0).integers(len(others)))].architecture


def _row(study: Study, seed: int, mutant: str | None, arms: tuple[str, ...] = ARMS) -> Row:
    if mutant == "too_dense":
        study = replace(study, sparsity=0.5)
    settings = {"study": study.as_json(), "seed": seed, "arms": arms, "random": mutant == "random_score"}

    def compute() -> Row:
        with one_thread():
            if mutant == "random_score":
                return run_seed(study, seed, arms=arms, choose=_random_choice)
            return run_seed(study, seed, arms=arms)

    return cell(__name__, settings, compute)


def _rows(ctx: Context, arms: tuple[str, ...] = ARMS, least: int = SEEDS, **settings: Any) -> list[Row]:
    study = Study(device="cpu", standardise=True, **settings)
    rows = []
    for seed in ctx.each_seed(least):
        row = _row(study, seed, ctx.mutant, arms)
        told = ", ".join(f"{arm} {100 * row[arm]['accuracy']:.2f}" for arm in arms)
        ctx.say(f"  sparsity {study.sparsity:g}, seed {seed}: {told}")
        rows.append(row)
    return rows


def _points(rows: list[Row], arm: str) -> list[float]:
    return [100 * row[arm]["accuracy"] for row in rows]


def _no_better(ctx: Context) -> Measured:
    gains, widths, lower = {}, {}, True
    for level in LEVELS:
        rows = _rows(ctx, sparsity=level)
        gain = paired_interval(_points(rows, "searched"), _points(rows, "random"))
        gains[f"at {level:g}"], widths[f"at {level:g}"] = gain.mean, gain.high - gain.mean
        lower &= all(row["searched"]["init_loss"] < row["random"]["init_loss"] for row in rows)
    return Measured(gains, widths, 0.6, len(rows), lower and max(map(abs, gains.values())) < 0.6)


def _near_dense(ctx: Context) -> Measured:
    rows = _rows(ctx, sparsity=0.9)
    gap = paired_interval(_points(rows, "random"), _points(rows, "dense"))
    inner = min(row["random"]["zeros"]["fc2.weight"] for row in rows)
    sparse = abs(inner - (1 - (26 / 256) ** 2)) < 1e-6
    figures = {"random minus dense": gap.mean, "zeros between the hidden layers, %": 100 * inner}
    return Measured(figures, {"random minus dense": gap.high - gap.mean}, -2.0, len(rows), sparse and gap.mean >= -2)


def _oracle(ctx: Context) -> Measured:
    rows = _rows(ctx, ("random", "searched"), sparsity=0.9, score="trained", draws=20)
    gain = paired_interval(_points(rows, "searched"), _points(rows, "random"))
    return Measured(gain.mean, gain.high - gain.mean, 0.0, len(rows), gain.low > 0)


def _verdicts(ctx: Context) -> Measured:
    figures = {}
    for level in LEVELS:
        rows = _rows(ctx, sparsity=level)
        seeds = tuple(row["seed"] for row in rows)
        arms = [Arm(name, seeds, tuple(_points(rows, name))) for name in ("random", "searched")]
        found = compare(arms, "random", 0.5)[1]
        figures[f"at {level:g}"] = found.tost.p if found.tost else float("nan")
        ctx.say(f"  at {level:g}: {found.verdict}")
    return Measured(figures, seeds=len(rows), threshold=0.05)


def _speed(ctx: Context) -> Measured:
    """Steps to 95 % of the dense accuracy, searched minus random; runs that never arrive count as the whole run."""
    means, widths = {}, {}
    for level in LEVELS:
        rows = _rows(ctx, sparsity=level)
        steps = {arm: [float(row[arm]["to_95"] or 300) for row in rows] for arm in ("random", "searched")}
        gain = paired_interval(steps["searched"], steps["random"])
        means[f"at {level:g}"], widths[f"at {level:g}"] = gain.mean, gain.high - gain.mean
    return Measured(means, widths, seeds=len(rows))


def _table(*levels: float, least: int = SEEDS, **settings: Any) -> Callable[[Context], Measured]:
    """Accuracies of all arms and the paired difference at each sparsity."""

    def measure(ctx: Context) -> Measured:
        means: Figures = {}
        spreads: Figures = {}
        for level in levels:
            rows = _rows(ctx, least=least, sparsity=level, **settings)
            for arm in ARMS:
                means[f"{arm} at {level:g}"], spreads[f"{arm} at {level:g}"] = mean_sd(_points(rows, arm))
            gain = paired_interval(_points(rows, "searched"), _points(rows, "random"))
            name = f"searched minus random at {level:g}"
            means[name], spreads[name] = gain.mean, gain.high - gain.mean
            for arm in ("random", "searched"):
                means[f"loss at init, {arm} at {level:g}"] = mean_sd([r[arm]["init_loss"] for r in rows])[0]
        return Measured(means, spreads, seeds=len(rows))

    return measure


def _scores(ctx: Context) -> Measured:
    means, widths = {}, {}
    for score in ("accuracy", "gradient_norm", "snip"):
        rows = _rows(ctx, ("random", "searched"), 5, sparsity=0.9, score=score)
        gain = paired_interval(_points(rows, "searched"), _points(rows, "random"))
        means[score], widths[score] = gain.mean, gain.high - gain.mean
    return Measured(means, widths, seeds=len(rows))


def _large(ctx: Context) -> Measured:
    """Two draws and two steps of ResNet-18 on noise."""
    study = Study(model="resnet-18", model_options={}, sparsity=0.9, draws=2, steps=2, device="cpu")
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 32, 32, generator=source), torch.arange(8) % 10
    data = Dataset(Batches([x, y], 4, shuffle=True), None, Batches([x, y], 4), 10, (3, 32, 32))
    model = parent(study, data, 0)
    space = MaskSpace.nodes(model, x[:1], study.sparsity)
    found = random_search(space.space, lambda a: float(a[0][0]), study.draws)  # type: ignore[index]
    made = train(model, space.masks(found.best.architecture), data, study, 0, study.steps)
    return Measured({"loss after two steps": made["loss"]}, seeds=1)


ABOUT = "Standardised digits, 64-256-256-10, torch's initialisation, K = 200, SGD 0.05, batches of 50, 15 epochs; "
PAPER = Paper(
    slug="random-search-sparse-nas",
    title="Random Search as a Baseline for Sparse Neural Network Architecture Search",
    year=2024,
    venue="arXiv",
    code="none",
    kind="structured: nodes, random",
    summary=(
        "Of many random sub-networks of one initialised parent, the one with the lowest loss before training is kept. "
        "Trained, it is no better than the first one drawn, so random search is the baseline for searches."
    ),
    modules=(
        "gossamer.architectures.space",
        "gossamer.architectures.evaluator",
        "gossamer.architectures.masks",
        "gossamer.architectures.initial",
        "gossamer.architectures.random_search",
        "gossamer.architectures.paired",
        "gossamer.architectures.study",
    ),
    claims=(
        Claim(
            "no-better-than-random",
            "asserted",
            "At 50, 80 and 90 % of the nodes masked, search changes accuracy by less than 0.6 points on average, "
            "though it lowers the loss at initialisation in every seed.",
            "found networks do not perform better than random ones of the same sparsity",
            ABOUT + "the specification's ten seeds gave -0.19, -0.18 and +0.15.",
            _no_better,
            240,
            SEEDS,
            mutants=("random_score",),
        ),
        Claim(
            "near-dense",
            "asserted",
            "With 90 % of the nodes masked (1 % of the weights between the hidden layers left) a random sub-network "
            "stays within 2 points of its dense parent.",
            "a significant level of performance remains at high sparsity",
            ABOUT + "the zeros are counted in the trained network; the specification gave 95.7 against 97.2.",
            _near_dense,
            120,
            SEEDS,
            mutants=("too_dense",),
        ),
        Claim(
            "oracle-differs",
            "asserted",
            "Chosen by the test loss after training (20 draws), the sub-network is better than the first one drawn: "
            "the comparison can see an effect.",
            "none",
            "The positive control of the specification; the 95 % interval of the paired difference must exclude 0.",
            _oracle,
            240,
            SEEDS,
            mutants=("random_score",),
        ),
        Claim(
            "equivalence",
            "reported",
            "p of two one-sided tests that search and chance lie within 0.5 points of each other.",
            "none",
            ABOUT + "below 0.05 they are equivalent; above it the difference is merely not shown.",
            _verdicts,
            120,
            SEEDS,
        ),
        Claim(
            "no-faster",
            "reported",
            "Steps to 95 % of the dense parent's accuracy, searched minus random, with 95 % intervals.",
            "found networks do not converge faster",
            ABOUT + "measured once an epoch of 20 steps. Ten seeds gave 0, -10 and -12: searched networks may be "
            "sooner by less than that epoch, so it is not asserted that they are not.",
            _speed,
            120,
            SEEDS,
        ),
        Claim(
            "few-nodes",
            "reported",
            "The same at 95 and 98 % (5 nodes a layer), where a sub-network may be dead at initialisation.",
            "none",
            ABOUT + "the specification found +0.9 and +9.5, ten seeds here -0.3 and +4.4: search helps at "
            "98 % only, where training is far from converged.",
            _table(0.95, 0.98),
            120,
            SEEDS,
        ),
        Claim(
            "converged",
            "reported",
            "The same with He's initialisation by the surviving fan-in and 40 epochs, at 90 and 95 %.",
            "none",
            "The specification's ten and six seeds gave +0.19 +- 0.25 and +0.96 +- 0.56 (standard errors).",
            _table(0.9, 0.95, least=6, **HE),
            180,
            6,
        ),
        Claim(
            "other-scores",
            "reported",
            "Searched minus random at 90 % where accuracy, gradient norm or SNIP's sum at initialisation chooses.",
            "none",
            ABOUT + "no figure was known before.",
            _scores,
            120,
            5,
        ),
        Claim(
            "mnist",
            "reported",
            "The same on MNIST, 784-256-256-10 at 90 %.",
            "none",
            "300 steps of 50 images, a quarter of an epoch; scores on 1,000 training images.",
            _table(0.9, least=5, **MNIST),
            120,
            5,
            needs=("mnist",),
        ),
        Claim(
            "large-parent",
            "needs_gpu",
            "Channels of ResNet-18 on CIFAR-10, 1,000 draws, 200 epochs.",
            "none",
            "gossamer search random --model resnet-18 --data cifar10 --draws 1000 --steps 78200 --seeds 10; here two "
            "draws and two steps on noise.",
            _large,
            60,
            1,
        ),
    ),
)
