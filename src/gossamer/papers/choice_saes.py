"""Mutual Choice and Feature Choice sparse autoencoders: adaptive budgets against a fixed one per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.sae_activations_testbed import BUDGETS, KINDS, digits_arm, first_steps, language_arm
from gossamer.claims.sae_testbed import ARMS, arm

Figures = dict[str, float]
Rows = dict[str, list[dict[str, Any]]]


def _rows(ctx: Context, names: Sequence[str], features: int = 96) -> Rows:
    """Every arm with every seed; all arms of one seed before the next."""
    rows: Rows = {name: [] for name in names}
    for seed in ctx.each_seed():
        for name in names:
            rows[name].append(arm(name, seed, features, ctx.mutant))
        ctx.say(f"  seed {seed}: " + ", ".join(f"{name} {rows[name][-1]['fvu']:.4f}" for name in names))
    return rows


def _table(rows: Rows, *keys: str) -> tuple[Figures, Figures]:
    """Means and deviations over seeds, by "arm, key" (or "arm" for a single key)."""
    means, spread = {}, {}
    for name, found in rows.items():
        for key in keys:
            values = [row[key] for row in found]
            label = name if len(keys) == 1 else f"{name}: {key}"
            means[label], spread[label] = mean(values), stdev(values) if len(values) > 1 else 0.0
    return means, spread


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def _mutual_beats_token(ctx: Context) -> Measured:
    rows = _rows(ctx, ("token", "mutual"))
    ratios = [m["fvu"] / t["fvu"] for m, t in zip(rows["mutual"], rows["token"], strict=True)]
    equal = max(row["l0"] for row in rows["mutual"]) <= 4.0
    deviation = stdev(ratios) if len(ratios) > 1 else 0.0
    return Measured(mean(ratios), deviation, 0.85, len(ratios), equal and mean(ratios) <= 0.85)


def _adapts(ctx: Context) -> Measured:
    rows = _rows(ctx, ("token", "mutual", "feature, uniform", "feature, Zipf"))
    means, spread = _table(rows, "corr")
    others = min(value for name, value in means.items() if name != "token")
    holds = means["token"] == 0 and others >= 0.6
    return Measured(means, spread, {"token": 0.0, "others": 0.6}, _count(rows), holds)


def _no_dead(ctx: Context) -> Measured:
    rows = _rows(ctx, ("mutual", "feature, uniform", "feature, Zipf"))
    means, spread = _table(rows, "dead")
    alive = means["feature, uniform"] == means["feature, Zipf"] == 0
    return Measured(means, spread, {"feature": 0.0, "mutual above": 0.0}, _count(rows), alive and means["mutual"] > 0)


def _zipf_budgets(ctx: Context) -> Measured:
    rows = _rows(ctx, ("feature, uniform", "feature, Zipf"))
    pairs = zip(rows["feature, Zipf"], rows["feature, uniform"], strict=True)
    gains = [1 - zipf["fvu"] / uniform["fvu"] for zipf, uniform in pairs]
    return Measured(mean(gains), stdev(gains) if len(gains) > 1 else 0.0, 0.08, len(gains), mean(gains) >= 0.08)


def _phased(ctx: Context) -> Measured:
    rows = _rows(ctx, ("token", "feature, uniform", "feature, Zipf", "phased"))
    means, spread = _table(rows, "fvu")
    best = min(value for name, value in means.items() if name != "phased")
    return Measured(means, spread, best, _count(rows), means["phased"] < best)


def _all_arms(features: int) -> Callable[[Context], Measured]:
    def measure(ctx: Context) -> Measured:
        names = tuple(ARMS) if features == 96 else ("token", "mutual", "mutual+aux_k", "mutual+aux_zipf")
        rows = _rows(ctx, names, features)
        means, spread = _table(rows, "fvu", "l0", "l0_std", "corr", "dead", "found")
        return Measured(means, spread, None, _count(rows))

    return measure


def _both_modes(ctx: Context) -> Measured:
    rows = _rows(ctx, ("mutual", "feature, uniform", "feature, Zipf", "phased"))
    means, spread = _table(rows, "l0", "threshold_l0", "fvu", "threshold_fvu")
    return Measured(means, spread, None, _count(rows))


def _shakespeare(ctx: Context) -> Measured:
    """FVU against L0 of every variant, by thresholds, and the loss recovered at the middle budget."""
    rows: Rows = {f"{name}, k={k}": [] for name in KINDS for k in BUDGETS}
    for seed in ctx.each_seed():
        for name in KINDS:
            found = [language_arm(name, k, seed) for k in BUDGETS]
            for k, row in zip(BUDGETS, found, strict=True):
                rows[f"{name}, k={k}"].append(row)
            ctx.say(f"  {name}, seed {seed}: " + ", ".join(f"L0 {r['l0']:.1f} FVU {r['fvu']:.3f}" for r in found))
    means, spread = _table(rows, "l0", "fvu", "dead", "recovered")
    return Measured(means, spread, None, _count(rows))


def _digits(ctx: Context) -> Measured:
    names = ("TopK", "mutual", "feature", "phased")
    rows: Rows = {name: [] for name in names}
    for seed in ctx.each_seed():
        for name in names:
            rows[name].append(digits_arm(name, seed))
    means, spread = _table(rows, "fvu", "l0", "dead")
    return Measured(means, spread, None, _count(rows))


def _full_size(ctx: Context) -> Measured:
    return Measured(first_steps(), seeds=1)


ABOUT = "Generated tokens of 80 known features, 96 in the dictionary, 4 active in the mean in every arm, 700 steps; "
PAPER = Paper(
    slug="choice-saes",
    title="Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders",
    year=2024,
    venue="arXiv 2411.02124",
    code="none",
    kind="activations: dictionary codes",
    summary=(
        "A batch of tokens and the features of a dictionary are matched under one budget, so that hard tokens get more "
        "features (mutual choice), or each feature has its own budget, so that none dies (feature choice). Budgets "
        "follow the Zipf law of the features' densities; the law's fit, its use and aux_zipf are reconstructed here."
    ),
    modules=(
        "gossamer.autoencoders.selection",
        "gossamer.autoencoders.budgets",
        "gossamer.autoencoders.model",
        "gossamer.autoencoders.losses",
        "gossamer.autoencoders.training",
        "gossamer.autoencoders.metrics",
        "gossamer.kernels.codes",
        "gossamer.kernels.topk",
        "gossamer.sparsify.usage",
    ),
    claims=(
        Claim(
            "mutual-beats-token",
            "asserted",
            "At equal L0 mutual choice leaves at most 0.85 of the variance unexplained that token choice leaves.",
            "lower loss at equal L0 on GPT-2 small (figures not read)",
            ABOUT + "the specification's seeds gave 0.74.",
            _mutual_beats_token,
            60,
            3,
            mutants=("random_choice", "token_budgets"),
        ),
        Claim(
            "adaptive-computation",
            "asserted",
            "A token's L0 follows its true number of features (correlation 0.6) under mutual and feature choice.",
            "none",
            ABOUT + "0.75 to 0.81 in the specification; exactly 0 for token choice, where L0 is constant.",
            _adapts,
            60,
            3,
            mutants=("random_choice", "token_budgets"),
        ),
        Claim(
            "no-dead-features",
            "asserted",
            "Feature choice leaves no feature dead; mutual choice does.",
            "about 0 dead features up to a width of 34M",
            ABOUT + "mutual 0.069, feature 0 in the specification.",
            _no_dead,
            60,
            3,
            mutants=("shared_budget", "token_budgets"),
        ),
        Claim(
            "zipf-budgets",
            "asserted",
            "Zipf budgets leave 8 % less unexplained than uniform ones with the same total.",
            "none",
            ABOUT + "15 % in the specification, whose uniform budgets were rounded down to an L0 of 3.75; here both "
            "spend exactly 4.",
            _zipf_budgets,
            60,
            3,
            mutants=("uniform_budgets", "shared_budget"),
        ),
        Claim(
            "phased",
            "asserted",
            "Mutual choice for 70 % of the steps and then feature choice beats token choice and pure feature choice.",
            "none",
            ABOUT + "0.239 against 0.263, 0.298 and 0.253 in the specification.",
            _phased,
            60,
            3,
            mutants=("random_choice", "never_switch"),
        ),
        Claim(
            "all-arms",
            "reported",
            "All arms: unexplained variance, L0 and its spread, correlation, dead share, true features found.",
            "fewer dead features and lower loss than TopK at equal L0",
            ABOUT + "the table behind the asserted claims. Lower loss does not mean better features: the share of true "
            "features that a dictionary row matches (cosine above 0.9) is small in every arm at this length.",
            _all_arms(96),
            90,
            3,
        ),
        Claim(
            "wide-dictionary",
            "reported",
            "The same with 192 features for 80 true ones: dead features with aux_k and with aux_zipf.",
            "aux_zipf lowers dead and under-used features",
            "The specification measured that aux_zipf does not (0.375 against 0.276 without, 0.211 with aux_k): its "
            "weight 1/32 and c = 0.5 are untuned. Reported as measured here.",
            _all_arms(192),
            90,
            3,
        ),
        Claim(
            "single-token-mode",
            "reported",
            "By thresholds, one token at a time, L0 and loss stay near those of the selection over a batch.",
            "none",
            ABOUT + "thresholds are moving averages of the training; feature choice's are lower in L0, as each "
            "feature's smallest selected activation varies. `calibrate_threshold` sets them from data instead.",
            _both_modes,
            60,
            3,
        ),
        Claim(
            "digits",
            "reported",
            "On hidden activations of a perceptron trained on digits: FVU, L0 and dead share at k = 6.",
            "none",
            "A second data set without synthesis: 64 ReLU units, 192 features, 1,000 tokens to train, 400 steps. "
            "Nothing was measured before, so nothing is asserted.",
            _digits,
            60,
            3,
        ),
        Claim(
            "shakespeare",
            "reported",
            "FVU against L0 of all variants on the residual stream of a small language model, one token at a time.",
            "lower loss than TopK at equal L0 and fewer dead features, on GPT-2 small",
            "A Llama of 4 blocks and width 64, trained here on TinyShakespeare; output of its second block, 256 "
            "features, 300 steps of 256 tokens for every arm. The same by hand: gossamer train --model llama --data "
            "tiny-shakespeare --set task=language -o out/shakespeare; gossamer sae curves --model out/shakespeare "
            "--text tiny-shakespeare --module blocks.1 --features 256 --k 4,8,16. L1 kinds reach L0 by a strength that "
            "follows it, thresholds of mutual and feature choice are calibrated on training tokens.",
            _shakespeare,
            420,
            3,
            needs=("tiny-shakespeare",),
        ),
        Claim(
            "gpt2",
            "needs_gpu",
            "On GPT-2 small's activations feature choice has no dead features at a width where TopK has many.",
            "about 0 dead features up to 34M features",
            "gossamer sae train --model hf:GPT2-FOLDER --text CORPUS.txt --module transformer.h.8 --features 24576 "
            "--k 32 --switch-at 0.7 --aux aux_zipf --batch 4096 --steps 100000 -o out/gpt2; here two such steps on "
            "noise.",
            _full_size,
            60,
            1,
        ),
    ),
)
