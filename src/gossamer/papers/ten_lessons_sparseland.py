"""Ten lessons of the "sparseland": flags verified by instrumentation, counting rules, and traps that lint finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from gossamer import recipes
from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.testbeds import HIDDEN, one_thread, summary, train_arms
from gossamer.data.digits import digits
from gossamer.maths.schedules import geometric_densities
from gossamer.maths.statistics import paired_interval
from gossamer.models.mlp import mlp
from gossamer.models.zoo import build
from gossamer.report.card import ReportCard
from gossamer.report.lint import lint
from gossamer.report.taxonomy import TAXONOMIES, classify, dense_state, observe, verify
from gossamer.sparsify.accounting.flops import flops
from gossamer.sparsify.accounting.memory import memory
from gossamer.sparsify.accounting.training import rigl_step_flops
from gossamer.sparsify.allocation import ERK, Allocation, Uniform, keep_counts
from gossamer.sparsify.groups import select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training.config import TrainConfig
from gossamer.training.stages import Stage

Rows = dict[str, list[dict[str, Any]]]
SPARSITY = 0.9
SHORT, LONG = 400, 2000  # steps of the unequal comparison: x1 and x5
SMALL = (44, 20)  # a dense perceptron with as many weights as 144-300-100-10 keeps at 90 %
INSTRUMENTED = 40  # steps of an instrumented run

# ---------------------------------------------------------------- taxonomy


def methods() -> Iterator[tuple[str, Recipe, bool]]:
    """(row of the taxonomy, recipe, whether it starts from trained weights) of every recipe and procedure."""
    for name, make in recipes.RECIPES.items():
        often = {"every": 10} if "every" in signature(make).parameters else {}
        yield name, make(**often), name == "asp"
    yield "rigl", recipes.granet(SPARSITY, initial=0.5, every=10), False  # sparse-to-sparse, so RigL's row
    train = TrainConfig(steps=INSTRUMENTED)
    for name, stages in (
        ("imp", recipes.imp(SPARSITY, 2, train)),
        ("train_prune_finetune", recipes.train_prune_finetune(SPARSITY, train, train)),
    ):
        yield from ((name, recipe, True) for recipe in _recipes(stages) if recipe.updates)


def _recipes(stages: Sequence[Stage]) -> list[Recipe]:
    return [stage.recipe for stage in stages if isinstance(stage.recipe, Recipe)]


def contradictions(name: str, claimed: Recipe, run: Recipe, trained: bool) -> list[str]:
    """Train `run` and return what disagrees with the row of the taxonomy for `claimed`."""
    if name not in TAXONOMIES:
        return [f"{name} has no row in the taxonomy"]
    row = TAXONOMIES[name]
    found = [] if classify(claimed, trained) == row else [f"{name}: the parts say {classify(claimed, trained)}"]
    data = digits(batch_size=100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mlp(shape=data.shape, hidden=(64, 64))  # every N:M of the recipes divides 64
    if trained:
        _train(model, torch.optim.SGD(model.parameters(), 0.1), data.train.batch)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsifier = Sparsifier(model, optimizer, run, INSTRUMENTED, data=data.train)
    _train(model, optimizer, data.train.batch)
    sparsifier.finalize()
    seen = observe(sparsifier.history, INSTRUMENTED, dense_state=trained or dense_state(run))
    return found + [f"{name}: {text}" for text in verify(row, seen)]


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    for step in range(INSTRUMENTED):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def _taxonomy(ctx: Context) -> Measured:
    wrong: list[str] = []
    count = 0
    with one_thread():
        for name, recipe, trained in methods():
            wrong += contradictions(name, recipe, ctx.recipe(recipe), trained)
            count += 1
    for text in wrong:
        ctx.say(text)
    return Measured({"methods": float(count), "contradictions": float(len(wrong))}, None, 0.0, 1, not wrong)


# ---------------------------------------------------------------- counting rules


MODELS: dict[str, tuple[int, ...]] = {
    "mlp": (1, 12, 12),
    "convnet": (3, 32, 32),
    "mobilenet-digits": (1, 12, 12),
    "resnet-20": (3, 32, 32),
    "resnet-50": (3, 224, 224),
}


def _flop_differences() -> dict[str, float]:
    """|our count - torch's counter| of dense networks, and of density-weighted sums at density 1/2."""
    found = {}
    for name, shape in MODELS.items():
        model = build(name, shape=shape, classes=1000 if name == "resnet-50" else 10).eval()
        example = torch.zeros(1, *shape)
        ours = flops(model, example)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(example)
        found[name] = abs(ours.dense - counter.get_total_flops())
        found[f"{name} at half density"] = abs(ours.at({row.name: 0.5 for row in ours.layers}) - ours.dense / 2)
        if name == "resnet-50":
            found["resnet-50 GMACs off 4.09"] = abs(round(ours.macs / 1e9, 2) - 4.09)
            found["resnet-50 parameters off 25557032"] = abs(sum(p.numel() for p in model.parameters()) - 25557032)
    return found


def _counting(ctx: Context) -> Measured:
    wrong = _flop_differences()
    wrong["RigL's formula, equal passes"] = abs(rigl_step_flops(7.0, 7.0, 100) - 21.0)
    wrong["RigL's formula, rare updates"] = abs(rigl_step_flops(1.0, 10.0, 1e15) - 3.0) // 1e-9
    layer = nn.Linear(40, 30, bias=False)
    mask = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) < 0.1
    csr = csr_matrix((layer.weight.detach() * mask).numpy())
    stored = csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes
    wrong["CSR bytes"] = abs(memory(layer, {"weight": mask}, "csr").total - stored)
    return Measured(wrong, None, 0.0, 1, not any(wrong.values()))


def ratio_of_flops(name: str, shape: tuple[int, ...]) -> float:
    """Inference FLOPs of ERK over uniform densities at 90 % sparsity, from exact counts."""
    model = build(name, shape=shape, classes=10)
    counts = flops(model, torch.zeros(1, *shape))
    shapes = {group.name: tuple(group.shape) for group in select(model)}

    def cost(allocation: Allocation) -> float:
        kept = keep_counts(allocation, shapes, dict.fromkeys(shapes, 1), 1 - SPARSITY)
        return counts.at({layer: kept[layer] / torch.Size(shape).numel() for layer, shape in shapes.items()})

    return cost(ERK()) / cost(Uniform())


def _erk_costs_more(ctx: Context) -> Measured:
    ratios = {name: ratio_of_flops(name, shape) for name, shape in MODELS.items() if name != "mlp"}
    asserted = ("convnet", "resnet-20", "resnet-50")
    return Measured(ratios, None, 1.5, 1, min(ratios[name] for name in asserted) > 1.5)


# ---------------------------------------------------------------- traps


def card(name: str, rows: list[dict[str, Any]], steps: int, recipe: Recipe | None, **fields: Any) -> ReportCard:
    """The report card of one arm."""
    sparse = {} if recipe is None else {"taxonomy": classify(recipe), "sparsity_target": SPARSITY}
    known = {"sparsity_scope": "prunable", "optimizer": "sgd", "batch_size": 128, "selection": "last"}
    seeds = list(range(len(rows)))
    values = [row["accuracy"] for row in rows]
    return ReportCard(
        method=name,
        model="mlp-300-100",
        data="digits-shifted",
        steps=steps,
        seeds=seeds,
        values=values,
        **{**known, **sparse, **fields},
    )


def _train_arms(ctx: Context, arms: Mapping[str, Recipe | None], **protocol: Any) -> Rows:
    """All seeds whatever the clock says: claims compare arms of several calls seed by seed."""
    return train_arms(ctx, arms, least=ctx.seeds, **protocol)


def _codes(*cards: ReportCard) -> set[str]:
    return {finding.code for finding in lint(list(cards))}


def _unequal_length(ctx: Context) -> Measured:
    """Five times the steps against another method, and where W1 is raised."""
    static, rigl = recipes.random(SPARSITY), recipes.rigl(SPARSITY, every=0.05)
    arms = _train_arms(ctx, {"static": static, "rigl": rigl}, steps=SHORT)
    long = _train_arms(ctx, {"static x5": static}, steps=LONG)
    means, _ = summary(arms | long, "accuracy")
    gains = {
        "five times the steps": 100 * (means["static x5"] - means["static"]),
        "another method": 100 * (means["rigl"] - means["static"]),
    }
    one, two = card("static", arms["static"], SHORT, static), card("rigl", arms["rigl"], SHORT, rigl)
    five = card("static x5", long["static x5"], LONG, static)
    declared = five.model_copy(update={"epochs_multiplier": LONG / SHORT})
    exact = "W1" in _codes(one, five) and "W1" in _codes(two, five)
    exact = exact and "W1" not in _codes(one, two) | _codes(one, declared)
    spread = {
        "five times the steps": _half(long["static x5"], arms["static"]),
        "another method": _half(arms["rigl"], arms["static"]),
    }
    holds = exact and gains["five times the steps"] > gains["another method"]
    return Measured(gains, spread, gains["another method"], len(arms["static"]), holds)


def _half(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> float:
    """Half of the 95 % interval of a - b in points."""
    gain = paired_interval([100 * row["accuracy"] for row in a], [100 * row["accuracy"] for row in b])
    return gain.high - gain.mean


def _untuned_control(ctx: Context) -> Measured:
    """W16 is raised against a badly trained dense control, and not against a tuned one."""
    rigl = recipes.rigl(SPARSITY, every=0.05)
    arms = _train_arms(ctx, {"dense": None, "rigl": rigl}, steps=SHORT)
    arms["dense, learning rate / 100"] = _train_arms(ctx, {"dense": None}, steps=SHORT, lr=0.001)["dense"]
    means, spreads = summary(arms, "accuracy")
    method = card("rigl", arms["rigl"], SHORT, rigl)
    good, bad = (card(name, rows, SHORT, None, role="dense") for name, rows in arms.items() if name != "rigl")
    holds = "W16" in _codes(method, bad) and "W16" not in _codes(method, good)
    return Measured(means, spreads, None, len(arms["rigl"]), holds)


def _wide_sparse(ctx: Context) -> Measured:
    """Small dense, wide static and wide RigL with the same number of weights."""
    sparse = {"wide rigl": ctx.recipe(recipes.rigl(SPARSITY)), "wide static": recipes.random(SPARSITY)}
    arms = _train_arms(ctx, sparse, hidden=HIDDEN)
    arms |= _train_arms(ctx, {"small dense": None}, hidden=SMALL)
    means, spreads = summary(arms, "accuracy")
    weights = sum(a * b for a, b in zip((144, *SMALL), (*SMALL, 10), strict=True))
    equal = all(abs(row["kept"] - weights) <= 5 for name in sparse for row in arms[name])
    holds = equal and means["wide rigl"] - means["small dense"] >= 0.01
    holds = holds and means["wide rigl"] - means["wide static"] >= 0.003
    return Measured(means, spreads, means["small dense"] + 0.01, len(arms["small dense"]), holds)


def _search_cost(ctx: Context) -> Measured:
    """Training FLOPs of a ticket search relative to one dense training, and the lint rule that asks for them."""
    phases = _recipes(recipes.imp(SPARSITY, 5, TrainConfig(steps=INSTRUMENTED)))
    densities = [1.0, *geometric_densities(1 - SPARSITY, 5)]
    bare = card("imp", [], SHORT, phases[-1], search_rounds=len(phases) - 1)
    paid = bare.model_copy(update={"search_flops": sum(densities)})
    holds = "W8" in _codes(bare) and "W8" not in _codes(paid)
    return Measured(
        {"trainings": float(len(densities)), "dense trainings' worth": sum(densities)}, None, None, 1, holds
    )


PAPER = Paper(
    slug="ten-lessons-sparseland",
    title="Ten Lessons We Have Learned in the New Sparseland: A Short Handbook for Sparse Neural Network Researchers",
    year=2023,
    venue="arXiv 2302.02596",
    code="none",
    kind="vocabulary and protocol of all kinds",
    summary=(
        "A handbook of what sparse methods are called, what must be counted, and how comparisons go wrong. "
        "Its themes are executable here: flags that runs verify, one accounting, and lint rules."
    ),
    modules=(
        "gossamer.report.taxonomy",
        "gossamer.report.lint",
        "gossamer.report.card",
        "gossamer.sparsify.accounting.flops",
        "gossamer.sparsify.accounting.memory",
    ),
    claims=(
        Claim(
            "taxonomy-verified",
            "asserted",
            "What every recipe and procedure does in a run agrees with its five flags.",
            "none",
            "Histories of instrumented runs; the threshold is no contradiction.",
            _taxonomy,
            60,
            1,
            mutants=("mask_of_ones", "no_growth"),
        ),
        Claim(
            "counting-rules",
            "asserted",
            "FLOPs equal torch's counter on five networks, and training formulas and CSR bytes their definitions.",
            "ResNet-50 at 224: 4.09 GMACs, 25.557 M parameters",
            "Absolute differences; the threshold is 0.",
            _counting,
            60,
            1,
        ),
        Claim(
            "erk-costs-more",
            "asserted",
            "At equal 90 % sparsity ERK needs over 1.5 times the inference FLOPs of uniform densities.",
            "ResNet-50: 0.24 against 0.13 of dense, with the first layer dense in the latter",
            "Exact counts; asserted for convnet, ResNet-20 and ResNet-50. On 12 x 12 digits the ratio is smaller.",
            _erk_costs_more,
            60,
            1,
        ),
        Claim(
            "unequal-length",
            "asserted",
            "Five times the training changes a static mask more than another method does, and lint raises W1 for it.",
            "none",
            "90 %, 400 against 2000 steps; W1 only where lengths differ undeclared.",
            _unequal_length,
            200,
            5,
        ),
        Claim(
            "untuned-control",
            "asserted",
            "A sparse method beats a badly trained dense control, and lint raises W16 for it alone.",
            "none",
            "The same dense network with a hundredth of the learning rate.",
            _untuned_control,
            200,
            5,
        ),
        Claim(
            "wide-sparse-above-small-dense",
            "asserted",
            "With equally many weights, a wide network trained by RigL beats a small dense one by one point.",
            "bigger and sparse wins over smaller and dense",
            "And a static wide one by 0.3; batch normalisation in all arms; a static mask alone does not win here.",
            _wide_sparse,
            300,
            5,
            mutants=("random_prune_score", "no_growth"),
        ),
        Claim(
            "search-cost",
            "asserted",
            "A lottery ticket of 90 % costs several dense trainings, and lint asks for them with W8.",
            "iterative magnitude pruning is no efficiency method",
            "Five phases and the dense training, weighted by density.",
            _search_cost,
            10,
            1,
        ),
    ),
)
