"""Sparsity of unified multimodal models: what each part can lose, and experts for the part that cannot, on digits."""

from __future__ import annotations

from typing import Any

import torch

from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.unified_testbed import study
from gossamer.experts.probing import PRESETS, PartitionedFFN, calibrate, to_moe, tune
from gossamer.experts.probing.bagel import Bagel, BagelConfig
from gossamer.maths.statistics import mean_sd

Rows = list[dict[str, Any]]
Figures = dict[str, float]


def _studies(ctx: Context, least: int = 3) -> Rows:
    rows = []
    for seed in ctx.each_seed(least):
        rows.append(study(seed, ctx.mutant))
        ctx.say(f"  seed {seed}: dense {rows[-1]['dense']['mse']:.3f}")
    return rows


def _rise(row: dict[str, Any], name: str) -> float:
    """Relative rise of the generation error, in percent."""
    return 100 * (row[name]["mse"] / row["dense"]["mse"] - 1)


def _lost(row: dict[str, Any], name: str) -> float:
    """Points of understanding lost."""
    return float(row["dense"]["understanding"] - row[name]["understanding"])


def _summary(columns: dict[str, list[float]]) -> tuple[Figures, Figures]:
    pairs = {name: mean_sd(values) for name, values in columns.items()}
    return {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()}


def _asymmetry(ctx: Context) -> Measured:
    rows = _studies(ctx)
    columns = {
        f"{part} {cut}": [_rise(row, f"{part} {cut}, generation scores") for row in rows]
        for cut in ("depth", "width")
        for part in ("und", "gen")
    }
    means, spread = _summary(columns)
    holds = all(means[f"gen {cut}"] >= max(5.0, 5 * means[f"und {cut}"]) for cut in ("depth", "width"))
    return Measured(means, spread, "gen at least 5 times und, and 5 %", len(rows), holds)


def _tasks_differ(ctx: Context) -> Measured:
    rows = _studies(ctx)
    name = "und depth, understanding scores"
    means, spread = _summary(
        {"error rise, %": [_rise(r, name) for r in rows], "points lost": [_lost(r, name) for r in rows]}
    )
    wanted = {"error rise, %": 5.0, "points lost": 5.0}
    holds = means["error rise, %"] <= 5.0 and means["points lost"] >= 5.0
    return Measured(means, spread, wanted, len(rows), holds)


def _own_scores(ctx: Context) -> Measured:
    rows = _studies(ctx)
    gains = [
        row["und width, understanding scores"]["understanding"] - row["und width, generation scores"]["understanding"]
        for row in rows
    ]
    mean, spread = mean_sd(gains)
    return Measured(mean, spread, 0.0, len(rows), mean > 0)


LADDER = ("4 of 8 experts, untuned", "4 of 8 experts, router tuned", "4 of 8 experts, all tuned", "dense")


def _ladder(ctx: Context) -> Measured:
    rows = _studies(ctx)
    means, spread = _summary({name: [row[name]["mse"] for row in rows] for name in LADDER})
    untuned, router, full, dense = (means[name] for name in LADDER)
    recovered = (untuned - router) / (untuned - dense)
    holds = untuned > router > full > dense and recovered >= 0.5
    return Measured(means | {"recovered by routers": recovered}, spread, 0.5, len(rows), holds)


def _exact(ctx: Context) -> Measured:
    rows = _studies(Context(ctx.seeds, ctx.budget_s, ctx.quick, ctx.workers, say=ctx.say))
    # the faults: a cut that stays, experts of which half are left out
    after = "und width, generation scores" if ctx.mutant == "no_undo" else "restored"
    dealt = "4 of 8 experts, untuned" if ctx.mutant == "half_of_the_experts" else "8 of 8 experts, zero router"
    changed = max(abs(row[after][k] - v) for row in rows for k, v in row["dense"].items())
    moved = max(abs(row[dealt]["mse"] - row["dense"]["mse"]) for row in rows)
    return Measured({"after undo": changed, "as experts": moved}, None, 1e-6, len(rows), changed == 0 and moved <= 1e-6)


def _table(ctx: Context) -> Measured:
    rows = _studies(ctx)
    names = [name for name in rows[0] if name != "restored"]
    columns = {f"{name}: {k}": [float(row[name][k]) for row in rows] for name in names for k in rows[0][name]}
    means, spread = _summary(columns)
    return Measured(means, spread, None, len(rows))


def _starts(ctx: Context) -> Measured:
    """Calibration, conversion and a step of tuning of a model of BAGEL's form, narrow and with all of its 28 layers."""
    torch.manual_seed(0)
    model = Bagel(BagelConfig(width=56, hidden=128, vocabulary=64, latent=8, side=4))
    tokens, latents, t = torch.randint(64, (2, 6)), torch.randn(2, 16, 8), torch.rand(2)

    def run(m: Any, batch: Any) -> Any:
        return m(*batch, (4, 4))

    component = PRESETS["bagel"][1]
    found = calibrate(model, component, [(tokens, latents, t)], run)
    moe = to_moe(model, component, found, 16, 8).model
    tune(moe, lambda m, b: run(m, b)[1].square().mean(), [(tokens, latents, t)], phase="router")
    layers = sum(isinstance(m, PartitionedFFN) for m in moe.modules())
    return Measured(
        {"layers of experts": float(layers), "velocity": float(run(moe, (tokens, latents, t))[1].shape[-1])}
    )


ABOUT = "Six mixture-of-transformers layers on 8 x 8 digits; "
PAPER = Paper(
    slug="unified-multimodal-sparsity",
    title="Understanding and Harnessing Sparsity in Unified Multimodal Models",
    year=2025,
    venue="arXiv 2512.02351",
    code="https://github.com/Shwai-He/SparseUnifiedModel",
    kind="layers and neurons; experts chosen by input",
    summary=(
        "Cuts without training show that the understanding part of a unified model can lose half when it only serves "
        "generation, while the generation part cannot. Its feed-forwards are then dealt to experts, half active."
    ),
    modules=(
        "gossamer.experts.probing.components",
        "gossamer.experts.probing.calibration",
        "gossamer.experts.probing.cuts",
        "gossamer.experts.probing.partition",
    ),
    claims=(
        Claim(
            "asymmetry",
            "asserted",
            "Half of the layers or neurons gone, the error of generation rises 5 times as much for gen as for und.",
            "und can lose about half with little loss in generation; gen collapses",
            ABOUT + "one seed of the specification: 46 % against 3 % (depth), 11 % against 0.1 % (width).",
            _asymmetry,
            300,
            3,
            mutants=("no_cut",),
        ),
        Claim(
            "tasks-differ",
            "asserted",
            "Half of the und layers gone costs generation at most 5 % of error and understanding at least 5 points.",
            "understanding tasks need the part more than generation does",
            ABOUT + "one seed of the specification: +0.4 % and -31 points.",
            _tasks_differ,
            300,
            3,
            mutants=("no_cut",),
        ),
        Claim(
            "own-scores",
            "asserted",
            "Neurons scored on understanding calls serve understanding better than those scored on generation calls.",
            "which neurons matter depends on the task",
            ABOUT + "one seed of the specification: 93.9 against 88.1 %.",
            _own_scores,
            300,
            3,
            mutants=("no_cut", "random_scores"),
        ),
        Claim(
            "ladder",
            "asserted",
            "Half of the experts active: untuned > routers tuned > all tuned > dense in error; routers recover half.",
            "expert-frozen tuning recovers part, full tuning more",
            ABOUT + "one seed of the specification: .820, .654, .626, .576; routers recovered 68 %.",
            _ladder,
            300,
            3,
            mutants=("no_tuning",),
        ),
        Claim(
            "exact",
            "asserted",
            "A cut taken back leaves every figure as it was, and all experts with a zero router are the dense model.",
            "none",
            "Exact for undo; 1e-6 for sums in another order.",
            _exact,
            300,
            3,
            mutants=("no_undo", "half_of_the_experts"),
        ),
        Claim(
            "table",
            "reported",
            "Adapted experts beat a static cut of the same size, tuned as long.",
            "GenEval .86 dense, .89 with half of the experts (BAGEL, model card)",
            "Does not show at this size: the static half, tuned, is better in error. Beside it: the share of drawn "
            "digits that a classifier takes for what was asked.",
            _table,
            300,
            3,
        ),
        Claim(
            "bagel",
            "needs_gpu",
            "BAGEL-7B with 8 of 16 generation experts keeps its GenEval score.",
            "GenEval .86 to .89",
            "Needs an 80 GB GPU, the public checkpoint and the released pipeline of pictures, which is no part of "
            "gossamer (its transformer is: experts.probing.bagel.load_bagel). Here calibration, 16 experts and a step "
            "of tuning on a narrow model of that form with all of its layers.",
            _starts,
            60,
            1,
        ),
    ),
)
