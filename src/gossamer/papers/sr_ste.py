"""SR-STE: N:M sparsity from scratch, against straight-through training without the pull on pruned weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.claims.cells import cell
from gossamer.claims.nm_testbed import train_nm_arms
from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.testbeds import one_thread, summary
from gossamer.data.cifar import cifar10_jpeg
from gossamer.maths.statistics import Estimate, paired_interval
from gossamer.metrics.classification import accuracy
from gossamer.models import build
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

Rows = dict[str, list[dict[str, Any]]]
QUARTER: dict[str, Any] = {"steps": 1200}  # the protocol at 1:4
SIXTEENTH: dict[str, Any] = {"steps": 800}  # and at 1:16
SCALED = 5e-3  # 3 e-folds of pruned weights in 1200 steps; the authors' 2e-4 makes 60 in theirs and 0.1 here
STRONG = 5e-2
IMAGES, EPOCHS, BATCH = 200, 6, 64  # CIFAR-10: training images of each class


def family(n: int, m: int) -> dict[str, Recipe | None]:
    """Dense training, STE, and SR-STE with the published and with scaled lambdas."""
    return {
        "dense": None,
        "ste": recipes.ste(n, m),
        "published": recipes.sr_ste(n, m),
        "scaled": recipes.sr_ste(n, m, SCALED),
        "strong": recipes.sr_ste(n, m, STRONG),
    }


def _arms(ctx: Context, n: int, m: int, names: tuple[str, ...], tested: tuple[str, ...] = (), **protocol: Any) -> Rows:
    """Train the arms; a mutant is planted in those of `tested` only."""
    table = family(n, m)
    arms = {name: table[name] for name in names}
    for name in tested:
        arms[name] = ctx.recipe(table[name] or Recipe())
    return train_nm_arms(ctx, arms, **protocol)


def _gain(arms: Rows, method: str, control: str) -> Estimate:
    """Paired interval of method minus control, in points of accuracy."""
    first, second = ([100 * row["accuracy"] for row in arms[name]] for name in (method, control))
    return paired_interval(first, second)


def _at_least(arms: Rows, method: str, control: str, margin: float) -> Measured:
    gain = _gain(arms, method, control)
    return Measured(gain.mean, gain.high - gain.mean, margin, gain.n, gain.mean >= margin)


def _above_ste(ctx: Context) -> Measured:
    return _at_least(_arms(ctx, 1, 16, ("ste", "scaled"), ("scaled",), **SIXTEENTH), "scaled", "ste", 1.0)


def _not_below_ste(ctx: Context) -> Measured:
    return _at_least(_arms(ctx, 1, 4, ("ste", "scaled"), ("scaled",), **QUARTER), "scaled", "ste", 0.0)


def _flips_fall(ctx: Context) -> Measured:
    arms = _arms(ctx, 1, 4, ("ste", "scaled", "strong"), ("scaled", "strong"), **QUARTER)
    figures: dict[str, float] = {}
    spreads: dict[str, float] = {}
    falling = []
    for what in ("flips", "sad"):
        means, sds = summary(arms, what)
        figures |= {f"{what} at lambda {lam}": means[name] for name, lam in _LAMBDAS.items()}
        spreads |= {f"{what} at lambda {lam}": sds[name] for name, lam in _LAMBDAS.items()}
        falling.append(means["ste"] > means["scaled"] > means["strong"])
    share = figures[f"flips at lambda {SCALED:g}"] / figures["flips at lambda 0"]
    return Measured(figures, spreads, "flips x 0.75", len(arms["ste"]), all(falling) and share <= 0.75)


_LAMBDAS = {"ste": "0", "scaled": f"{SCALED:g}", "strong": f"{STRONG:g}"}


def _exact(ctx: Context) -> Measured:
    illegal, seeds = {}, 0
    for m, protocol in ((4, QUARTER), (16, SIXTEENTH)):
        arms = _arms(ctx, 1, m, ("ste", "scaled"), ("scaled",), **protocol)
        seeds = len(arms["ste"])
        for name, rows in arms.items():
            illegal[f"{name} 1:{m}"] = float(sum(not row["legal"] or row["kept"] != 1 / m for row in rows))
    return Measured(illegal, None, 0.0, seeds, not any(illegal.values()))


def _identities(ctx: Context) -> Measured:
    pairs = {
        "lambda 0 is STE": (recipes.ste(1, 4), ctx.recipe(recipes.sr_ste(1, 4, 0.0))),
        "4:4 is dense": (None, ctx.recipe(recipes.sr_ste(4, 4, SCALED))),
    }
    differing = {}
    for name, (one, two) in pairs.items():
        arms = train_nm_arms(ctx, {"one": one, "two": two}, steps=200)
        keys = ("accuracy",) if one is None else ("accuracy", "flips", "sad", "noise")
        rows = zip(arms["one"], arms["two"], strict=True)
        differing[name] = float(sum(a[key] != b[key] for a, b in rows for key in keys))
    return Measured(differing, None, 0.0, ctx.seeds, not any(differing.values()))


def _points(arms: Rows) -> Measured:
    means, spreads = summary(arms, "accuracy")
    hundred = ({name: 100 * value for name, value in found.items()} for found in (means, spreads))
    return Measured(next(hundred), next(hundred), seeds=min(map(len, arms.values())))


def _quarter_table(ctx: Context) -> Measured:
    arms = _arms(ctx, 1, 4, tuple(family(1, 4)), **QUARTER)
    arms["asp after as long dense training"] = train_nm_arms(
        ctx, {"asp": recipes.asp(1, 4)}, pretrain=QUARTER["steps"], **QUARTER
    )["asp"]
    return _points(arms)


def _sixteenth_table(ctx: Context) -> Measured:
    return _points(_arms(ctx, 1, 16, ("ste", "published", "scaled", "strong"), **SIXTEENTH))


def _order(ctx: Context) -> Measured:
    kinds = {f"{n}:{m}": recipes.sr_ste(n, m, SCALED) for n, m in ((4, 8), (2, 4), (2, 8), (1, 4))}
    return _points(train_nm_arms(ctx, kinds, **QUARTER))


def _cifar_row(name: str, recipe: Recipe | None, seed: int) -> dict[str, Any]:
    settings = {"recipe": recipe.to_yaml() if recipe else name, "seed": seed, "protocol": [IMAGES, EPOCHS, BATCH]}

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {"accuracy": _cifar(recipe, seed)}

    return cell(__name__, settings, compute)


def _cifar(recipe: Recipe | None, seed: int) -> float:
    """Accuracy, on every fifth test image, of ResNet-20 after a short training on few images."""
    data = cifar10_jpeg(batch_size=BATCH, seed=seed, per_class=IMAGES)
    model = build("resnet-20")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    steps = EPOCHS * (10 * IMAGES // BATCH)
    sparsifier = Sparsifier(model, optimizer, recipe or Recipe(), steps, seed=seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        x, y = data.train.batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = data.test.tensors()
    return _accuracy(sparsifier.finalize(), x[::5], y[::5])  # test images lie class by class


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return accuracy(torch.cat([model(part) for part in x.split(BATCH)]), y)


def _cifar_table(ctx: Context) -> Measured:
    convolutions = Select(layers=("conv",), first_dense=True)
    lam = recipes.nm.lambda_for(6.0, lr_sum=0.05 * EPOCHS * (10 * IMAGES // BATCH), momentum=0.9)
    arms: dict[str, Recipe | None] = {
        "dense": None,
        "ste 1:4": recipes.ste(1, 4, select=convolutions),
        "sr-ste 1:4": recipes.sr_ste(1, 4, lam, select=convolutions),
    }
    rows: Rows = {name: [] for name in arms}
    for seed in ctx.each_seed(least=1):
        for name, recipe in arms.items():
            rows[name].append(_cifar_row(name, recipe, seed))
            ctx.say(f"  {name}, seed {seed}: accuracy {rows[name][-1]['accuracy']:.4f}")
    return _points(rows)


def _full_size(ctx: Context) -> Measured:
    """Two steps of ResNet-50 on noise, in the published selection."""
    torch.manual_seed(0)
    model = build("resnet-50")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-5)
    select = Select(layers=("conv",), first_dense=True)
    sparsifier = Sparsifier(model, optimizer, recipes.sr_ste(2, 4, select=select), 600_000)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
        optimizer.step()
    sparsifier.check()
    return Measured({"steps": 2.0, "density": sparsifier.density()}, seeds=1)


PAPER = Paper(
    slug="sr-ste",
    title="Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch",
    year=2021,
    venue="ICLR",
    code="https://github.com/NM-sparsity/NM-sparsity",
    kind="N:M, dense-to-sparse",
    summary=(
        "Of every m consecutive weights the n largest take part in each step, and gradients go straight to all. "
        "A pull on the others towards zero keeps masks from flipping to and fro."
    ),
    modules=("gossamer.recipes.nm", "gossamer.sparsify.patterns", "gossamer.sparsify.estimators"),
    claims=(
        Claim(
            "flips-fall",
            "asserted",
            "Mask flips and the divergence from the first mask fall as lambda grows, flips by a quarter at 5e-3.",
            "SR-STE lowers the sparse architecture divergence of STE",
            "1:4, 1200 steps; earlier runs gave 4.5, 2.5 and 1.8 flips a weight. Without the pull nothing falls.",
            _flips_fall,
            120,
            3,
            mutants=("plain_ste",),
        ),
        Claim(
            "exact-masks",
            "asserted",
            "Every group of m has exactly n weights, and all others are exactly 0 at the end.",
            "2:4 runs on sparse tensor cores",
            "Runs that miss the pattern are counted; the threshold is 0.",
            _exact,
            200,
            3,
            mutants=("mask_of_ones",),
        ),
        Claim(
            "above-ste-1:16",
            "asserted",
            "At 1:16 SR-STE with lambda scaled to the run beats STE by one point.",
            "ImageNet: +0.6 to +1.3 points at 2:4",
            "Earlier runs gave +2.1; at 1:16 masks flip most.",
            _above_ste,
            120,
            3,
            mutants=("plain_ste",),
        ),
        Claim(
            "not-below-ste-1:4",
            "asserted",
            "At 1:4 SR-STE with lambda scaled to the run is not below STE.",
            "ImageNet: +0.6 to +1.3 points at 2:4",
            "Earlier runs gave +0.6, close to the noise, so 0 is the bound.",
            _not_below_ste,
            120,
            3,
            mutants=("random_prune_score",),
        ),
        Claim(
            "identities",
            "asserted",
            "SR-STE with lambda 0 is STE, and 4:4 is dense training, bit for bit.",
            "none",
            "Follows from the equations; any differing figure of the trained networks counts.",
            _identities,
            60,
            2,
            mutants=("random_prune_score",),
        ),
        Claim(
            "table-1:4",
            "reported",
            "Accuracy at 1:4 of dense training, STE, SR-STE (lambda 2e-4, 5e-3, 5e-2) and a trained network, pruned.",
            "ImageNet, ResNet-50, 2:4: dense 77.3, STE 76.4, SR-STE 77.0, pruned and retrained 76.6 to 76.9",
            "The published lambda shrinks pruned weights by 0.1 e-folds in so short a run, so it is STE here; "
            "the last arm trains twice as long.",
            _quarter_table,
            200,
            3,
        ),
        Claim(
            "table-1:16",
            "reported",
            "Accuracy of STE and SR-STE (lambda 2e-4, 5e-3, 5e-2) at 1:16.",
            "ImageNet, ResNet-50, 1:16: about 71.5",
            "Shows the optimum at a moderate lambda; only the order may be compared.",
            _sixteenth_table,
            120,
            3,
        ),
        Claim(
            "order-of-patterns",
            "reported",
            "More weights and larger groups are better: 4:8, then 2:4, 2:8, 1:4.",
            "ImageNet, ResNet-50: 77.4, 77.0, 76.4, 75.9",
            "Neighbours may lie within the noise of three seeds here.",
            _order,
            200,
            3,
        ),
        Claim(
            "cifar-resnet-20",
            "reported",
            "ResNet-20 on 2000 CIFAR-10 images at 1:4: dense, STE, SR-STE.",
            "none",
            "Real images, but 6 epochs and one seed only: shows that the recipe trains a CNN, not who is best.",
            _cifar_table,
            400,
            1,
            needs=("cifar10-jpeg",),
        ),
        Claim(
            "imagenet-resnet-50",
            "needs_gpu",
            "ResNet-50 at 2:4 on ImageNet reaches 77.0.",
            "77.0 (dense 77.3)",
            "gossamer train --recipe sr_ste --model resnet-50 --data images --set data.options.path=IMAGENET "
            "--set 'recipe.options.only=[\"layer*\"]' --steps 600000; here two steps on noise.",
            _full_size,
            60,
            1,
        ),
    ),
)
