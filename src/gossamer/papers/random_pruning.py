"""Random pruning at initialisation: network width and layer ratios decide, positions do not."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from gossamer import recipes
from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.testbeds import summary, train_arms
from gossamer.data.digits import shifted_digits
from gossamer.errors import ConfigError, MaskError
from gossamer.maths.statistics import Estimate, mean_sd, paired_interval
from gossamer.models.mlp import mlp
from gossamer.recipes.static import ALLOCATIONS, RATIOS
from gossamer.report.connectivity import connectivity
from gossamer.sparsify.allocation import ERK, Given, budget
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import Random
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.sparsify.updates import SetTo

DENSITY = 0.1
WIDE_DENSITY = 0.6  # the first layer of uniform+ alone takes half of the weights
STEPS = 1200
WIDTHS = (16, 32, 64, 128, 512)
# ER is ERK where there are no kernels, and tests/papers holds us to it.
ARMS = tuple(name for name in (*ALLOCATIONS, *RATIOS) if name != "er")
Rows = dict[str, list[dict[str, Any]]]


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Weights of the 144-w-w-10 perceptron."""
    return {"fc1.weight": (width, 144), "fc2.weight": (width, width), "head.weight": (10, width)}


def _sparsifier(recipe: Recipe, width: int, seed: int) -> Sparsifier:
    data = shifted_digits(seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mlp(hidden=(width, width))
    return Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), recipe, 1, data=data.train, seed=seed)


def _feasible(name: str, width: int, seeds: int) -> bool:
    """Whether an allocation gives every layer some weights, and none more than it has."""
    try:
        for seed in range(seeds):
            _sparsifier(recipes.random(1 - DENSITY, name), width, seed).remove()
    except (ConfigError, MaskError):
        return False
    return True


def _train(ctx: Context, arms: dict[str, Recipe | None], width: int, **protocol: Any) -> Rows:
    # all seeds whatever the clock says: claims compare arms of several calls seed by seed
    return train_arms(ctx, arms, least=ctx.seeds, steps=STEPS, hidden=(width, width), **protocol)


def _static(name: str) -> Recipe:
    return recipes.random(1 - DENSITY, name)


def _sweep(ctx: Context) -> dict[int, Rows]:
    """Dense and every feasible allocation at every width."""
    found = {}
    for width in WIDTHS:
        arms: dict[str, Recipe | None] = {"dense": None}
        arms |= {name: _static(name) for name in ARMS if _feasible(name, width, ctx.seeds)}
        found[width] = _train(ctx, arms, width)
    return found


def _points(rows: list[dict[str, Any]], field: str = "accuracy") -> list[float]:
    return [100 * row[field] for row in rows]


def _gain(arms: Rows, one: str, two: str) -> Estimate:
    return paired_interval(_points(arms[one]), _points(arms[two]))


def _erk_above_uniform(ctx: Context) -> Measured:
    gains = {}
    for width in (32, 64):
        arms = _train(ctx, {"erk": ctx.recipe(_static("erk")), "uniform": _static("uniform")}, width)
        gains[f"w{width}"] = _gain(arms, "erk", "uniform")
    means = {name: gain.mean for name, gain in gains.items()}
    widths = {name: gain.high - gain.mean for name, gain in gains.items()}
    return Measured(means, widths, 3.0, min(gain.n for gain in gains.values()), min(means.values()) >= 3.0)


def _width_closes_gap(ctx: Context) -> Measured:
    ratio, gap, seeds = {}, {}, []
    for width in WIDTHS[1:]:
        arms = _train(ctx, {"dense": None, "erk": ctx.recipe(_static("erk"))}, width)
        (dense, _), (sparse, _) = (mean_sd(_points(arms[name])) for name in ("dense", "erk"))
        ratio[f"ratio w{width}"], gap[f"gap w{width}"] = sparse / dense, dense - sparse
        seeds.append(len(arms["erk"]))
    rises = all(a < b for a, b in pairwise(ratio.values()))
    closes = gap["gap w512"] < gap["gap w64"] / 4
    return Measured(ratio | gap, None, gap["gap w64"] / 4, min(seeds), rises and closes)


def reversed_ratios(width: int) -> Given:
    """ERK's densities in reverse order of the layers, scaled to the same number of weights."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes(width).items()}
    usual = ERK().densities(shapes(width), DENSITY)
    turned = dict(zip(usual, reversed(usual.values()), strict=True))
    scale = DENSITY * sum(sizes.values()) / sum(turned[name] * sizes[name] for name in sizes)
    return Given(tuple((name, scale * density) for name, density in turned.items()))


def _positions_do_not_matter(ctx: Context) -> Measured:
    """Two-sided: shuffled positions within 2 points of the original, reversed layer ratios 5 points below it."""
    width = 64
    turned = Recipe("random", updates=(SetTo(Random(), DENSITY, reversed_ratios(width)),))
    arms = _train(ctx, {"erk": _static("erk"), "ratios reversed": turned}, width)
    arms |= {"positions shuffled": _train(ctx, {"erk": _static("erk")}, width, control="shuffle")["erk"]}
    gains = {name: _gain(arms, name, "erk") for name in ("positions shuffled", "ratios reversed")}
    means = {name: gain.mean for name, gain in gains.items()}
    holds = abs(means["positions shuffled"]) <= 2.0 and means["ratios reversed"] <= -5.0
    spread = {name: gain.high - gain.mean for name, gain in gains.items()}
    return Measured(
        means, spread, {"positions shuffled": 2.0, "ratios reversed": -5.0}, gains["ratios reversed"].n, holds
    )


def _mask_is_fixed(ctx: Context) -> Measured:
    """Flips and missing weights over all feasible allocations; and the infeasible ones must say so."""
    width, wrong = 64, {"flips": 0.0, "miscounted": 0.0, "not zero": 0.0}
    names = [name for name in ARMS if _feasible(name, width, ctx.seeds)]
    arms = _train(ctx, {name: ctx.recipe(_static(name)) for name in names}, width)
    wanted = budget(DENSITY, sum(torch.Size(shape).numel() for shape in shapes(width).values()))
    for row in (row for rows in arms.values() for row in rows):
        wrong["flips"] += row["flips"]
        wrong["miscounted"] += abs(row["kept"] - wanted)
        wrong["not zero"] += not row["zeros_exact"]
    refused = not any(_feasible("uniform_plus", small, 1) for small in (16, 32))
    return Measured(wrong, None, 0.0, len(arms["erk"]), refused and not any(wrong.values()))


def _connectivity(ctx: Context) -> Measured:
    """Share of the kept weights on a path from the input to an output, and outputs without any, by width."""
    effective, lost = {}, {}
    example = torch.zeros(1, 1, 12, 12)
    for width in WIDTHS:
        shares, missing = [], 0
        for seed in range(ctx.seeds):
            sparsifier = _sparsifier(_static("erk"), width, seed)
            found = connectivity(sparsifier.model, example, sparsifier.entry_masks)
            missing += len(found.unreached)
            shares.append(found.effective)
        effective[f"w{width} effective"] = mean_sd(shares)[0]
        lost[f"w{width} unreached"] = float(missing)
    return Measured(effective | lost, None, 0.0, ctx.seeds, not any(list(lost.values())[1:]))


def _where_all_fit(ctx: Context) -> Measured:
    """Accuracy at a density that every allocation can give, uniform+ included."""
    recipe = {name: recipes.random(1 - WIDE_DENSITY, name) for name in ARMS}
    arms = _train(ctx, {"dense": None, **recipe}, 128)
    means, spreads = ({name: 100 * v for name, v in table.items()} for table in summary(arms, "accuracy"))
    return Measured(means, spreads, seeds=len(arms["dense"]))


def _table(field: str, scale: float) -> Callable[[Context], Measured]:
    """A claim that reports one figure over the whole sweep, "w64 erk" and so on; infeasible ones are null."""

    def run(ctx: Context) -> Measured:
        means, spreads, seeds = {}, {}, []
        for width, arms in _sweep(ctx).items():
            mean, spread = summary(arms, field)
            for name in ("dense", *ARMS):
                means[f"w{width} {name}"] = scale * mean.get(name, float("nan"))
                spreads[f"w{width} {name}"] = scale * spread.get(name, float("nan"))
            seeds.append(len(arms["dense"]))
        return Measured(means, spreads, seeds=min(seeds))

    return run


def _reported(field: str, scale: float, statement: str, published: str, why: str) -> Claim:
    return Claim(f"sweep-{field}", "reported", statement, published, why, _table(field, scale), 600, 3)


PAPER = Paper(
    slug="random-pruning",
    title="The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
    year=2022,
    venue="ICLR",
    code="https://github.com/VITA-Group/Random_Pruning",
    kind="unstructured, static from the start",
    summary=(
        "Masks are drawn at random before training and never change. "
        "If the network is wide enough and the layer densities are well chosen, little accuracy is lost."
    ),
    modules=("gossamer.recipes.static", "gossamer.sparsify.allocation", "gossamer.report.connectivity"),
    claims=(
        Claim(
            "erk-above-uniform",
            "asserted",
            "At density 0.1, ERK beats uniform densities by 3 points at widths 32 and 64.",
            "ERK >= ER > uniform+ > uniform, growing with sparsity",
            "An earlier measurement found 5 and 9 points over 3 seeds.",
            _erk_above_uniform,
            120,
            5,
            mutants=("uniform_allocation",),
        ),
        Claim(
            "width-closes-the-gap",
            "asserted",
            "Sparse over dense accuracy rises with width, and the gap at 512 is below a quarter of the gap at 64.",
            "small networks match dense at 20-30 % sparsity, large ones at 70-80 %",
            "Widths 32, 64, 128 and 512 at density 0.1; an earlier measurement found gaps of 48, 39, 23 and 4 points.",
            _width_closes_gap,
            600,
            3,
        ),
        Claim(
            "ratios-not-positions",
            "asserted",
            "Shuffling the mask inside its layers changes nothing; reversing the layer ratios does.",
            "positions drawn at random within the ratios of SNIP do as well as SNIP",
            "The control that a hollow random mask fails: within 2 points against at least 5 points lost, width 64.",
            _positions_do_not_matter,
            120,
            5,
        ),
        Claim(
            "mask-is-fixed",
            "asserted",
            "The mask never changes, the density is exact, and infeasible allocations are refused.",
            "the authors' masks have their density in expectation only",
            "Exact counts; every allocation at width 64, and uniform+ at widths 16 and 32 must raise.",
            _mask_is_fixed,
            300,
            3,
            mutants=("mask_of_ones",),
        ),
        Claim(
            "every-output-reached",
            "asserted",
            "At density 0.1 every output keeps a path from the input at widths from 32 up.",
            "none",
            "Not at width 16, where the check finds lost outputs; and the share of kept weights that lie on a path.",
            _connectivity,
            60,
            5,
        ),
        Claim(
            "where-all-fit",
            "reported",
            "Accuracy of every allocation at density 0.6 and width 128.",
            "uniform+ lies between uniform and ER",
            "In points. Uniform+ keeps the first layer dense, which density 0.1 cannot pay for at any width here.",
            _where_all_fit,
            300,
            3,
        ),
        _reported(
            "accuracy",
            100.0,
            "Accuracy of every allocation at every width.",
            "random subnetworks match dense at high sparsity when the network is wide",
            "In points. At density 0.1 a gap remains at width 512. Null: infeasible at this width, so not trained.",
        ),
        _reported(
            "ece",
            1.0,
            "Calibration error of every allocation at every width.",
            "random subnetworks are better calibrated than dense",
            "Networks near chance are calibrated for want of confidence; from width 64 up dense is better calibrated.",
        ),
        _reported(
            "nll",
            1.0,
            "Negative log likelihood of every allocation at every width.",
            "random subnetworks have better likelihood than dense",
            "In nats. Does not show here: dense has the better likelihood at every width.",
        ),
        _reported(
            "auroc",
            1.0,
            "Area under the curve of test images against pure noise, by the top probability.",
            "random subnetworks detect foreign data better than dense",
            "Does not show here: dense separates the noise better at every width, by little at 512.",
        ),
        _reported(
            "fgsm_accuracy",
            100.0,
            "Accuracy under a one-step attack of 8/255.",
            "random subnetworks are more robust than dense",
            "In points. Does not show here: dense keeps the larger share of its accuracy at every width.",
        ),
    ),
)
