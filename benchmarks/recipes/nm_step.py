"""What N:M training adds to a step: ratio to the dense step, side by side in one process, one thread.

ResNet-20 by five recipes, and a wide perceptron, where torch.ao's WeightNormSparsifier at 2:4 runs too (it fails on the
weights of convolutions), ranking anew after each step as ours do. The authors' layers run beside them from a file of
theirs, devkit/sparse_ops/sparse_ops.py of NM-sparsity/NM-sparsity, which is not part of this repository; its import of
torch._six, which it does not use and torch no longer has, is stubbed.
Usage: python benchmarks/recipes/nm_step.py [--rounds 5] [--steps 8] [--batch 128] [--authors sparse_ops.py]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import torch
from overhead import Step, ratios, sgd, stepper, wide_mlp
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn.utils import parametrize

from gossamer import recipes
from gossamer.models import build
from gossamer.sparsify import Recipe, Select, Sparsifier
from gossamer.sparsify.groups import select as select_groups

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


def authors_layers(path: Path) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The authors' pruning functions (weight, n, m) -> weight for convolutions and Linear layers."""
    stub = ModuleType("torch._six")
    stub.container_abcs = None  # type: ignore[attr-defined]
    sys.modules.setdefault("torch._six", stub)
    spec = spec_from_file_location("sparse_ops", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Sparse_NHWC.apply, module.Sparse.apply


class Pruned(nn.Module):
    """A parametrisation that calls the authors' function in every forward pass."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, weight: Tensor) -> Tensor:
        return self.function(weight, 2, 4)


def authors(net: nn.Module, batch: Batch, select: Select, path: Path) -> Step:
    """SR-STE at 2:4 as the authors compute it, in the layers that ours masks."""
    convolution, linear = authors_layers(path)
    for group in select_groups(net, select):
        module = net.get_submodule(group.name.rpartition(".")[0])
        function = convolution if isinstance(module, nn.Conv2d) else linear
        parametrize.register_parametrization(module, "weight", Pruned(function))
    return stepper(net, batch, sgd(net))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--authors", type=Path, help="the authors' sparse_ops.py")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.randint(10, (options.batch,))
    images, vectors = torch.randn(options.batch, 3, 32, 32), torch.randn(options.batch, 1024)
    models = {
        "ResNet-20": (build("resnet-20"), (images, labels), Select(layers=("conv",), first_dense=True)),
        "MLP 4x1024": (wide_mlp(), (vectors, labels), Select(last_dense=True)),
    }
    cases = {name: contestants(*parts) for name, parts in models.items()}
    mlp, batch, _ = models["MLP 4x1024"]
    cases["MLP 4x1024"]["torch.ao 2:4"] = torch_ao(copy.deepcopy(mlp), batch)
    if options.authors:
        for name, (model, batch, select) in models.items():
            cases[name]["the authors' sr-ste 2:4"] = authors(copy.deepcopy(model), batch, select, options.authors)
    print(f"batch {options.batch}; bound of SR-STE 2:4 on ResNet-20: {BOUND}")
    print("| model | method | ratio (median) | best | worst |\n|---|---|---|---|---|")
    for case, steps in cases.items():
        for name, found in ratios(steps, options.rounds, options.steps).items():
            row = f"{statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f}"
            print(f"| {case} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
