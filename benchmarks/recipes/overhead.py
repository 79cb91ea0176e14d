"""What a Sparsifier adds to a training step: ratio to the bare loop, side by side in one process, one thread.

Rows: static mask, RigL, SR-STE 2:4, and as peers torch.nn.utils.prune with a static mask and, where it is installed
(pip install --no-deps sparsimony==0.1.0), the RigL of sparsimony. Contestants take turns step by step; the figure is
the ratio of the medians of process CPU time, best and worst of several rounds.
Usage: python benchmarks/recipes/overhead.py [--rounds 5] [--steps 12]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune

from gossamer import recipes
from gossamer.models import build
from gossamer.sparsify import Recipe, Select, Sparsifier

Step = Callable[[], None]
SPARSITY = 0.9


def wide_mlp() -> nn.Module:
    """Four layers of 1024 x 1024 and a head."""
    layers = [m for _ in range(4) for m in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def stepper(model: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer) -> Step:
    """One bare training step."""

    def step() -> None:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all rows."""
    return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)


def contestants(model: nn.Module, batch: tuple[Tensor, Tensor], select: Select) -> dict[str, Step]:
    """A bare loop and the same loop under each method, all on equal weights."""
    steps = {"bare": stepper(model, batch, sgd(model))}
    ours: dict[str, Recipe] = {
        "gossamer static": recipes.random(SPARSITY),
        "gossamer rigl, between updates": recipes.rigl(SPARSITY, every=1000),
        "gossamer rigl, update in every step": recipes.rigl(SPARSITY, every=1),
        "gossamer sr-ste 2:4": recipes.sr_ste(2, 4, select=select),
    }
    for name, recipe in ours.items():
        net = copy.deepcopy(model)
        optimizer = sgd(net)
        Sparsifier(net, optimizer, recipe, 10_000)
        steps[name] = stepper(net, batch, optimizer)
    net = copy.deepcopy(model)
    for module in net.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            torch_prune.random_unstructured(module, "weight", SPARSITY)
    steps["torch.nn.utils.prune static"] = stepper(net, batch, sgd(net))
    if find_spec("sparsimony"):
        steps["sparsimony rigl, between updates"] = sparsimony_rigl(copy.deepcopy(model), batch, every=1000)
        steps["sparsimony rigl, update in every step"] = sparsimony_rigl(copy.deepcopy(model), batch, every=1)
    return steps


def sparsimony_rigl(model: nn.Module, batch: tuple[Tensor, Tensor], every: int) -> Step:
    """The same loop under sparsimony's RigL with ERK densities, whose `step` follows the optimiser's."""
    from sparsimony.distributions.base import ERKDistribution
    from sparsimony.dst.rigl import RigL
    from sparsimony.schedulers.base import CosineDecayScheduler

    optimizer = sgd(model)
    # init_method: its prepare() would re-draw the kept weights
    rigl = RigL(CosineDecayScheduler(0.3, 7500, every), ERKDistribution(), optimizer, SPARSITY, init_method=None)
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it builds on torch.ao, which announces its end
        rigl.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in layers])

    def step() -> None:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        rigl.step()
        optimizer.zero_grad()

    return step


def ratios(steps: dict[str, Step], rounds: int, count: int) -> dict[str, list[float]]:
    """Per contestant: in each round the median CPU time of its steps over that of the bare loop."""
    for step in steps.values():
        step()
    out: dict[str, list[float]] = {name: [] for name in steps if name != "bare"}
    for _ in range(rounds):
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(count):
            for name, step in steps.items():
                began = time.process_time()
                step()
                times[name].append(time.process_time() - began)
        bare = statistics.median(times["bare"])
        for name in out:
            out[name].append(statistics.median(times[name]) / bare)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    cases = {
        "ResNet-20, batch 128": (build("resnet-20"), (images, labels), Select(first_dense=True)),
        "MLP 4x1024, batch 128": (wide_mlp(), (torch.randn(128, 1024), labels), Select(last_dense=True)),
        "ViT-tiny, batch 32": (build("vit-tiny"), (images[:32], labels[:32]), Select(layers=("linear",))),
    }
    print("| model | method | ratio (median) | best | worst |\n|---|---|---|---|---|")
    for case, (model, batch, select) in cases.items():
        for name, found in ratios(contestants(model, batch, select), options.rounds, options.steps).items():
            print(f"| {case} | {name} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |")


if __name__ == "__main__":
    main()
