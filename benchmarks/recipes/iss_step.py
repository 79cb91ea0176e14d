"""What ranking all weights at every step adds to it: ratio to the dense step, side by side in one process, one thread.

ISS-P with the exact ranking and with thresholds from a sample, ISS-H and ISS-R; on ResNet-20, on the EDSR baseline and
on SwinIR-light with the patches that `gossamer superres train` takes. The authors rank on the host with numpy's argsort
in every step; "argsort on the host" is that way of ranking, written anew, in place of ours.
Usage: python benchmarks/recipes/iss_step.py [--rounds 5] [--steps 4] [--batch 128] [--patches 16] [--only EDSR]
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable

import numpy as np
import torch
from overhead import Step, ratios
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer import recipes
from gossamer.domains.superres import Patches, build
from gossamer.domains.superres.generated import leaf_pairs
from gossamer.models import build as build_classifier
from gossamer.sparsify import Recipe, Select, Sparsifier
from gossamer.sparsify.lowest import SAMPLE, kept_count

BOUND = 1.05  # for ISS-P
SPARSITY, ALPHA = 0.9, 0.95
Loss = Callable[[nn.Module], Tensor]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all rows, as the authors take it."""
    return torch.optim.Adam(model.parameters(), 2e-4, (0.9, 0.99))


def stepper(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> Step:
    """One bare training step."""

    def step() -> None:
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def on_the_host(model: nn.Module, loss: Loss, names: list[str]) -> Step:
    """The same loop with every layer ranked by numpy after the step."""
    bare = stepper(model, loss, adam(model))
    weights = [model.get_parameter(name) for name in names]

    def step() -> None:
        bare()
        with torch.no_grad():
            for weight in weights:
                flat = weight.detach().reshape(-1)
                gone = len(flat) - kept_count(SPARSITY, len(flat))
                lowest = np.argsort(flat.abs().cpu().numpy())[:gone]
                flat[torch.from_numpy(lowest).to(flat.device)] *= ALPHA

    return step


def contestants(model: nn.Module, loss: Loss, select: Select) -> dict[str, Step]:
    """The dense loop and the same loop under each recipe, all on equal weights."""
    ours: dict[str, Recipe] = {
        "gossamer iss-p": recipes.iss_p(SPARSITY, ALPHA, select=select),
        "gossamer iss-p, sampled": recipes.iss_p(SPARSITY, ALPHA, select=select, sample=SAMPLE),
        "gossamer iss-h": recipes.iss_h(SPARSITY, select=select),
        "gossamer iss-r": recipes.iss_r(SPARSITY, select=select),
    }
    steps = {"bare": stepper(model, loss, adam(model))}
    names: list[str] = []
    for name, recipe in ours.items():
        net = copy.deepcopy(model)
        optimizer = adam(net)
        names = list(Sparsifier(net, optimizer, recipe, 1_000_000).masks)
        steps[name] = stepper(net, loss, optimizer)
    steps["argsort on the host"] = on_the_host(copy.deepcopy(model), loss, names)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128, help="images for ResNet-20")
    parser.add_argument("--patches", type=int, default=16, help="of 64 pixels, a quarter of them for SwinIR")
    parser.add_argument("--only", default="", help="models whose names begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    low, high = Patches(leaf_pairs(2, 2), 2, batch_size=options.patches).batch(0)
    few = max(1, options.patches // 4)
    body = Select(exclude=("tail*",))
    cases: dict[str, tuple[nn.Module, Loss, Select]] = {
        f"ResNet-20, batch {options.batch}": (
            build_classifier("resnet-20"),
            lambda net: F.cross_entropy(net(images), labels),
            Select(layers=("conv",), first_dense=True),
        ),
        f"EDSR baseline, {options.patches} patches": (
            build("edsr-baseline", 2),
            lambda net: F.l1_loss(net(low), high),
            body,
        ),
        f"SwinIR-light, {few} patches": (
            build("swinir-light", 2),
            lambda net: F.l1_loss(net(low[:few]), high[:few]),
            body,
        ),
    }
    print(f"{SPARSITY:.0%} sparse; bound of ISS-P: {BOUND}")
    print("| model | method | ratio (median) | best | worst |\n|---|---|---|---|---|")
    for case, (model, loss, select) in cases.items():
        if not case.startswith(options.only):
            continue
        for name, found in ratios(contestants(model, loss, select), options.rounds, options.steps).items():
            row = f"{statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f}"
            print(f"| {case} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
