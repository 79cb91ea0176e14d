"""What N:M training adds to a step: ratio to the dense step, side by side in one process, one thread.

ResNet-20 by five recipes, and a wide perceptron, where torch.ao's WeightNormSparsifier at 2:4 runs too (it fails on the
weights of convolutions), ranking anew after each step as ours do. The authors' code needs a torch from before 2.0.
Usage: python benchmarks/recipes/nm_step.py [--rounds 5] [--steps 8] [--batch 128]
"""

from __future__ import annotations

import argparse
import copy
import statistics

import torch
from overhead import Step, ratios, sgd, stepper, wide_mlp
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier

from gossamer import recipes
from gossamer.models import build
from gossamer.sparsify import Recipe, Select, Sparsifier

BOUND = 1.10  # for SR-STE at 2:4 on ResNet-20
Batch = tuple[Tensor, Tensor]


def ours(select: Select) -> dict[str, Recipe]:
    """The measured recipes."""
    return {
        "ste 2:4": recipes.ste(2, 4, select=select),
        "sr-ste 2:4": recipes.sr_ste(2, 4, select=select),
        "sr-ste 1:16": recipes.sr_ste(1, 16, select=select),
        "mdgf-exponential 2:4": recipes.mdgf_exponential(2, 4, select=select),
        "sdgf-stepwise 2:4": recipes.sdgf_stepwise(2, 4, select=select),
    }


def contestants(model: nn.Module, batch: Batch, select: Select) -> dict[str, Step]:
    """The dense loop and the same loop under each recipe, all on equal weights."""
    steps = {"bare": stepper(model, batch, sgd(model))}
    for name, recipe in ours(select).items():
        net = copy.deepcopy(model)
        optimizer = sgd(net)
        Sparsifier(net, optimizer, recipe, 10_000)
        steps[f"gossamer {name}"] = stepper(net, batch, optimizer)
    return steps


def torch_ao(net: nn.Module, batch: Batch) -> Step:
    """2:4 masks of all Linear layers but the last by torch.ao, renewed after every step."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)][:-1]
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(net, [{"tensor_fqn": f"{name}.weight"} for name in layers])
    bare = stepper(net, batch, sgd(net))

    def step() -> None:
        bare()
        sparsifier.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(10, (options.batch,))
    images, vectors = torch.randn(options.batch, 3, 32, 32), torch.randn(options.batch, 1024)
    mlp = wide_mlp()
    cases = {
        "ResNet-20": contestants(build("resnet-20"), (images, labels), Select(layers=("conv",), first_dense=True)),
        "MLP 4x1024": contestants(mlp, (vectors, labels), Select(last_dense=True))
        | {"torch.ao 2:4": torch_ao(copy.deepcopy(mlp), (vectors, labels))},
    }
    print(f"batch {options.batch}; bound of SR-STE 2:4 on ResNet-20: {BOUND}")
    print("| model | method | ratio (median) | best | worst |\n|---|---|---|---|---|")
    for case, steps in cases.items():
        for name, found in ratios(steps, options.rounds, options.steps).items():
            row = f"{statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f}"
            print(f"| {case} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
