"""Training steps of sparse layers against dense ones: forward, both gradients, optimiser and mask updates.

    python benchmarks/execution/training.py [--threads 1] [--rounds 8] [--quick] [--out FILE.md]

Dense float32, bf16 autocast and sparse steps alternate in one process, all with torch's fused optimisers. One thread
counts processor time, several count wall time, which a busy machine disturbs. The step ratio compares the best
slices; its range is that of the rounds. An update of the mask (its dense gradient and re-packing included) is measured
on cycles that hold one, and charged to every 100th step, the interval of RigL and SET here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.engine.sparse_linear import SPARSE, SparseLinear, sparsify_linears
from gossamer.recipes.dynamic import rigl, set_
from gossamer.recipes.static import random
from gossamer.sparsify.allocation import Uniform
from gossamer.sparsify.groups import Select
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

INTERVAL = 100
CYCLE = 4  # steps of the cycles that measure an update
FOREVER = 1_000_000
METHODS: dict[str, Callable[[float], Recipe]] = {
    "static": lambda s: random(s, allocation="uniform"),
    "set": lambda s: set_(s, every=CYCLE, allocation=Uniform()),
    "rigl": lambda s: rigl(s, every=CYCLE, allocation=Uniform()),
}


@dataclass(frozen=True)
class Case:
    """One model and batch."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    optimiser: Callable[..., torch.optim.Optimizer]
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95)


class FeedForward(nn.Module):
    """x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def mlp(width: int, depth: int) -> nn.Sequential:
    layers = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 16))


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, fused=True)  # type: ignore[arg-type]


def adamw(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # type: ignore[arg-type]


CASES = (
    Case("MLP 4 x 1024, batch 128", lambda: mlp(1024, 4), (128, 1024), sgd),
    Case("MLP 4 x 1024, batch 256", lambda: mlp(1024, 4), (256, 1024), sgd),
    Case("MLP 2 x 4096, batch 128", lambda: mlp(4096, 2), (128, 4096), sgd, (0.9, 0.95)),
    Case("ViT feed-forward 384 x 1536, 2 x 197 tokens", lambda: FeedForward(384, 1536), (2, 197, 384), adamw),
    Case("language-model feed-forward 768 x 3072, 128 tokens", lambda: FeedForward(768, 3072), (1, 128, 768), adamw),
)


class Run:
    """A model in training; `method` None trains it dense."""

    def __init__(self, case: Case, sparsity: float = 0.0, method: str | None = None, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.model, self.bf16 = case.build(), bf16
        self.optimizer = case.optimiser(self.model.parameters())
        self.x = torch.randn(case.shape, requires_grad=len(case.shape) == 3)  # a block inside a network passes it on
        self.labels = torch.randint(0, 16, case.shape[:1])
        if method:
            recipe = METHODS[method](sparsity)
            # the output layer of an MLP stays dense
            recipe = Recipe(recipe.name, select=Select(min_numel=100_000), updates=recipe.updates)
            self.sparsifier = Sparsifier(self.model, self.optimizer, recipe, FOREVER)
            assert set(sparsify_linears(self.sparsifier).values()) == {SPARSE}

    def loss(self) -> Tensor:
        y = self.model(self.x)
        return nn.functional.cross_entropy(y, self.labels) if y.dim() == 2 else y.square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = self.loss()
        loss.backward()
        self.optimizer.step()


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(step: Callable[[], None], count: int) -> float:
    start = clock()
    for _ in range(count):
        step()
    return (clock() - start) / count


def check(case: Case, sparsity: float) -> None:
    """The sparse step is that of the masked dense model: same loss, same gradients."""
    run = Run(case, sparsity, "static")
    loss = run.loss()
    loss.backward()
    layer = next(m for m in run.model.modules() if isinstance(m, SparseLinear))
    mine, name = layer.values.grad, next(iter(run.sparsifier.entry_masks))
    pattern, mask = layer.pattern, run.sparsifier.entry_masks[name]
    plain = run.sparsifier.finalize()
    plain.zero_grad()
    expected = run.loss()
    expected.backward()
    dense = dict(plain.named_parameters())[name].grad
    packed = dense[mask].sort().values
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.sort().values, packed, rtol=1e-2, atol=1e-3 * float(packed.abs().max()))
    assert pattern.nonzeros == int(mask.sum())


def measure(case: Case, sparsity: float, rounds: int) -> dict[str, object]:
    """Ratios of one row."""
    check(case, sparsity)
    runs = {"dense": Run(case), "bf16": Run(case, bf16=True), "sparse": Run(case, sparsity, "static")}
    slices: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        seconds(run.step, 2)
    count = max(1, int(0.06 / seconds(runs["dense"].step, 1)))
    for _ in range(rounds):
        for name, run in runs.items():
            slices[name].append(seconds(run.step, count))
    best = {name: min(times) for name, times in slices.items()}
    each = [d / s for d, s in zip(slices["dense"], slices["sparse"], strict=True)]
    row: dict[str, object] = {
        "case": case.name,
        "sparsity": sparsity,
        "static": best["dense"] / best["sparse"],
        "range": (min(each), statistics.median(each), max(each)),
    }
    del runs
    for method in ("set", "rigl"):
        run = Run(case, sparsity, method)
        seconds(run.step, CYCLE)
        plain, cycle = [], []
        for _ in range(max(3, rounds // 2)):
            times = [seconds(run.step, 1) for _ in range(CYCLE)]
            cycle.append(times[-1])
            plain.extend(times[:-1])
        update = max(0.0, min(cycle) - min(plain))
        row[f"{method} update"] = update / best["sparse"]
        row[method] = best["dense"] / (best["sparse"] + update / INTERVAL)
        row[f"{method} bf16"] = best["bf16"] / (best["sparse"] + update / INTERVAL)
    return row


def table(rows: list[dict[str, object]]) -> str:
    head = (
        "| model | sparsity | static | rounds: worst / median / best | SET | RigL | RigL over bf16 autocast "
        "| one update in steps: SET / RigL |\n|---|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {r['case']} | {r['sparsity']:.0%} | {r['static']:.1f}x | "
        + " / ".join(f"{v:.1f}" for v in r["range"])  # type: ignore[attr-defined]
        + f" | {r['set']:.1f}x | {r['rigl']:.1f}x | {r['rigl bf16']:.1f}x | "
        + f"{r['set update']:.1f} / {r['rigl update']:.1f} |"
        for r in rows
    ]
    return head + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="the first model at 90 %% only")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for case in CASES if options.only in case.name]
    rows = []
    for case in cases[:1] if options.quick else cases:
        for sparsity in (0.9,) if options.quick else case.sparsities:
            rows.append(measure(case, sparsity, options.rounds))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    if options.out:
        options.out.write_text(table(rows))


if __name__ == "__main__":
    main()
