"""The slimming testbed: one mask of channels, and three ways to come to it, on the shifted digits, MNIST and CIFAR.

Protocol of MaskSparsity's small reproduction: 144-300-100-10 with batch normalisation, hidden units are the channels;
dense training 800 steps, learning rate 0.1, batches of 128; sparsity trainings 800 steps from the dense weights,
0.05; the mask drops the lowest 60 % of the scales after the search, all layers together; fine-tuning 400 steps, 0.01.
All rates fall along a cosine, weight decay 1e-4, every penalty has the same strength 1.5e-2; shorter trainings get a
stronger one, so that strength times steps is 12 as here. On CIFAR the search has a fifth of it, or ResNet-20 would lose
all of its scales. The fourth arm drops the same share of every layer by the L1 norms of the dense filters. Finished
seeds are kept on disk.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.claims.cells import cell
from gossamer.claims.mutants import MUTANTS, mutate
from gossamer.claims.testbeds import one_thread
from gossamer.data.cifar import cifar10_jpeg
from gossamer.data.dataset import Batches, Dataset
from gossamer.data.digits import shifted_digits
from gossamer.data.idx import mnist
from gossamer.errors import unknown
from gossamer.models.mlp import mlp
from gossamer.models.resnet import CifarResNet
from gossamer.recipes.slimming import cost, mask_sparsity, network_slimming, prune_channels
from gossamer.sparsify.channels import Choice, Ratio
from gossamer.training import Classification, Memory, OptimConfig, Stage, TrainConfig, run_stages

ARMS = ("unregularised", "global_l1", "mask_sparsity")  # one mask for all
TABLE = (*ARMS, "l1_norm")  # and one with a mask of its own


@dataclass(frozen=True)
class Setting:
    """One row of the protocol: data, steps of each training, strength of the penalty (and of the search, if another),
    share of channels that go."""

    data: str
    dense: int
    sparse: int
    finetune: int
    lam: float = 1.5e-2
    sparsity: float = 0.6
    scope: Literal["layer", "global"] = "global"
    search_lam: float | None = None


SETTINGS = {
    "digits": Setting("digits", 800, 800, 400),
    "mnist": Setting("mnist", 400, 400, 100, lam=3e-2),
    "cifar": Setting("cifar", 150, 80, 20, lam=0.15, sparsity=0.5, scope="layer", search_lam=0.03),
}


def slim(setting: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Train everything once from one seed; the result is cached on disk.

    Args:
        setting: a key of SETTINGS. seed: of weights and data order. mutant: a fault of `claims.mutants` in
            MaskSparsity's penalty, "no_fold": constants are lost, or "keep_channels": none is removed.
    Returns:
        by arm of TABLE {"before", "silent" (scales of channels that go set to 0), "cut" (channels removed, constants
        lost), "folded", "tuned" (accuracies as fractions), "largest_pruned", "mean_kept" (scales), "kept" (channels),
        "cost", "dense_cost"}, and "dense", "seconds".
    Raises:
        ConfigError: an unknown setting.
    """
    if setting not in SETTINGS:
        raise unknown("setting", setting, SETTINGS)

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            return _Bench(SETTINGS[setting], seed, mutant).run()

    key = {"setting": setting, "seed": seed, "mutant": mutant, "threads": 1}
    return cell("gossamer.claims.slim_testbed", key, compute)


def _digits(seed: int) -> Dataset:
    return shifted_digits(seed=seed)


def _mnist(seed: int) -> Dataset:
    return mnist(seed=seed)


def _cifar(seed: int) -> Dataset:
    """2000 training images, and every 20th of the test images, which lie class by class."""
    data = cifar10_jpeg(batch_size=64, seed=seed, per_class=200)
    few = data.test.source[torch.arange(0, data.test.samples, 20)]
    return replace(data, test=Batches(list(few), 250, transform=data.test.transform))


DATA: dict[str, Callable[[int], Dataset]] = {"digits": _digits, "mnist": _mnist, "cifar": _cifar}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits": mlp,
    "mnist": lambda: mlp(shape=(1, 28, 28)),
    "cifar": lambda: CifarResNet(20),
}


class _Bench:
    """All arms of one seed."""

    def __init__(self, setting: Setting, seed: int, mutant: str | None) -> None:
        self.setting, self.seed, self.mutant = setting, seed, mutant
        self.data = DATA[setting.data](seed)
        self.example = torch.zeros(1, *self.data.shape)
        self.train, self.sparse, self.finetune = (
            TrainConfig(
                steps=steps,
                seed=seed,
                device="cpu",
                log_every=0,
                optim=OptimConfig(name="nesterov", lr=lr, weight_decay=1e-4),
            )
            for steps, lr in ((setting.dense, 0.1), (setting.sparse, 0.05), (setting.finetune, 0.01))
        )

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        torch.manual_seed(self.seed)
        task = Classification(MODELS[self.setting.data]())
        stages, slimmed = self._stages(), self._stages(network_slimming)
        memory = run_stages(stages[:1], task, self.data)
        dense = copy.deepcopy(task.model)
        run_stages([slimmed[1]], task, self.data, memory=memory)
        result: dict[str, Any] = {"dense": self._accuracy(dense)}
        trained = {"unregularised": dense, "global_l1": task.model, "mask_sparsity": self._masked(dense, memory)}
        for name, model in trained.items():
            result[name] = self._arm(model, dense, memory)
        result["l1_norm"] = self._arm(dense, dense, self._by_norm(dense))
        return result | {"seconds": round(time.perf_counter() - began, 1)}

    def _stages(self, procedure: Callable[..., list[Stage]] = mask_sparsity, fold: bool = True) -> list[Stage]:
        lam = self.setting.lam
        if procedure is network_slimming and self.setting.search_lam is not None:
            lam = self.setting.search_lam
        return procedure(
            self.train,
            self.example,
            sparse=self.sparse,
            finetune=self.finetune,
            lam=lam,
            choice=Choice(rule=Ratio(self.setting.sparsity, self.setting.scope)),
            fold=fold,
        )

    def _by_norm(self, dense: nn.Module) -> Memory:
        """Channels chosen by the L1 norms of dense filters, layer by layer: norms of two layers do not compare."""
        smallest = Choice("l1", Ratio(self.setting.sparsity, "layer"))
        decide = prune_channels(self.train, self.example, finetune=self.finetune, choice=smallest)[1]
        return run_stages([decide], Classification(dense), self.data)

    def _masked(self, dense: nn.Module, memory: Memory) -> nn.Module:
        """The dense weights after MaskSparsity's own training."""
        task = Classification(copy.deepcopy(dense))
        stage = self._stages()[2]
        if self.mutant in MUTANTS:
            assert callable(stage.recipe)  # it waits for the mask
            recipe = mutate(stage.recipe(task.model, memory), self.mutant)
            stage = replace(stage, recipe=recipe)
        run_stages([stage], task, self.data, memory=memory)
        return task.model

    def _arm(self, model: nn.Module, dense: nn.Module, memory: Memory) -> dict[str, Any]:
        """Removal with and without folding, and fine-tuning after it."""
        if self.mutant == "keep_channels":
            masks: Any = memory.values["channels"]
            memory = Memory(values={"channels": {name: torch.ones_like(mask) for name, mask in masks.items()}})
        row: dict[str, Any] = {"before": self._accuracy(model)} | self._scales(model, memory)
        row["silent"] = self._accuracy(self._silent(model, memory))
        for name, fold in (("cut", False), ("folded", self.mutant != "no_fold")):
            task = Classification(copy.deepcopy(model))
            *_, removed, finetune = self._stages(fold=fold)
            run_stages([removed], task, self.data, memory=memory)
            row[name] = self._accuracy(task.model)
        row["cost"], row["dense_cost"] = (asdict(cost(m, self._batch())) for m in (task.model, dense))
        run_stages([finetune], task, self.data, memory=memory)
        return row | {"tuned": self._accuracy(task.model)}

    def _batch(self) -> Tensor:
        return torch.zeros(64, *self.data.shape)

    def _accuracy(self, model: nn.Module) -> float:
        return Classification(model).evaluate(self.data.test)["accuracy"]

    def _silent(self, model: nn.Module, memory: Memory) -> nn.Module:
        """A copy in which the channels that go emit the constant of their shifts."""
        masks: Any = memory.values["channels"]
        silent = copy.deepcopy(model)
        for group, mask in masks.items():
            self._norm(silent, group).weight.data[~mask] = 0.0
        return silent

    def _scales(self, model: nn.Module, memory: Memory) -> dict[str, float]:
        """Scales of the channels that go and of those that stay; group "x.conv1" has its scales in "x.bn1"."""
        masks: Any = memory.values["channels"]
        pruned, kept = [torch.zeros(1)], []
        for group, mask in masks.items():
            scale = self._norm(model, group).weight.detach().abs()
            pruned.append(scale[~mask])
            kept.append(scale[mask])
        return {
            "largest_pruned": float(torch.cat(pruned).max()),
            "mean_kept": float(torch.cat(kept).mean()),
            "kept": float(sum(len(part) for part in kept)),
        }

    @staticmethod
    def _norm(model: nn.Module, group: str) -> Any:
        path, _, layer = group.rpartition(".")
        name = layer.replace("conv", "bn").replace("fc", "bn")
        return model.get_submodule(f"{path}.{name}" if path else name)
