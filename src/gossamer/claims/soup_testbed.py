"""The soup testbed: one dense training, then soups and all that they are compared with, from the same weights.

Protocol of the soups' small reproduction: SGD with Nesterov momentum 0.9, weight decay 5e-4, learning rate 0.1,
batches of 64; dense training along a cosine, then three phases of magnitude pruning, each retrained along a straight
line to 0 ("llr"); batch statistics are recalibrated for every model. On CIFAR ResNet-20 does the same in two phases.
Finished seeds are kept on disk.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.claims.cells import cell
from gossamer.claims.mutants import MUTANTS, mutate
from gossamer.claims.testbeds import one_thread
from gossamer.data.cifar import cifar10_jpeg
from gossamer.data.dataset import Batches, Dataset, generator
from gossamer.data.digits import shifted_digits
from gossamer.data.idx import mnist
from gossamer.errors import unknown
from gossamer.metrics import calibration, classification
from gossamer.models.mlp import mlp
from gossamer.models.resnet import CifarResNet
from gossamer.recipes import gmp
from gossamer.recipes.soups import average_of_runs, reprune, sms, soft_vote, soup_after, spread
from gossamer.sparsify.averaging import recalibrate_bn
from gossamer.sparsify.recipe import Recipe
from gossamer.training import Classification, OptimConfig, Stage, TrainConfig, run_stages

BRANCHES = 3
NOISE, FOREIGN_NOISE = 0.25, 0.4  # of the test images, and of those that count as another distribution
DRAWS = 8  # of every training image, in a fixed training set


@dataclass(frozen=True)
class Setting:
    """One row of the protocol: data, steps of the dense training, steps of a phase, final sparsity, phases, batches of
    256 for batch statistics, and whether there is a soup after gradual pruning."""

    data: str
    dense: int
    phase: int
    sparsity: float
    phases: int = 3
    statistics: int = 40
    gmp: bool = True


SETTINGS = {
    "fixed": Setting("fixed", 2500, 500, 0.95),
    "fresh": Setting("fresh", 1200, 250, 0.98),
    "mnist": Setting("mnist", 600, 150, 0.98),
    "cifar": Setting("cifar", 80, 20, 0.9, phases=2, statistics=2, gmp=False),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "fixed": mlp,
    "fresh": mlp,
    "mnist": partial(mlp, shape=(1, 28, 28)),
    "cifar": partial(CifarResNet, 20),
}


def soups(setting: str, seed: int, mutant: str | None = None) -> dict[str, Any]:
    """Train everything once from one base seed; the result is cached on disk.

    Args:
        setting: a key of SETTINGS. seed: the base seed. mutant: a fault of `claims.mutants` in the soups' recipes, or
            "one_branch": the first branch in place of the mean.
    Returns:
        {"dense", "phases" (of the soup: {"mean", "best", "soup"} each), "ensemble", "imp", "imp_best", "imp_longer",
        "imp_avg", "reprune", "after_gmp": {"mean", "best", "soup"} or {}, "spread", "exact" (every soup as sparse as
        its branches), "seconds"}; models are {"accuracy", "foreign", "worst_class", "ece", "density"}, all fractions.
    Raises:
        ConfigError: an unknown setting.
    """
    if setting not in SETTINGS:
        raise unknown("setting", setting, SETTINGS)

    def compute(part: str, mutant: str | None) -> dict[str, Any]:
        def train() -> dict[str, Any]:
            with one_thread(), torch.random.fork_rng(devices=[]):
                return _Bench(SETTINGS[setting], seed, mutant).run(part)

        key = {"setting": setting, "seed": seed, "mutant": mutant, "part": part, "threads": 1}
        return cell("gossamer.claims.soup_testbed", key, train)

    soup, rest = compute("soup", mutant), compute("rest", None)  # faults are planted in the soup only
    return soup | rest | {"seconds": soup["seconds"] + rest["seconds"]}


@cache
def _fixed(seed: int) -> tuple[Tensor, Tensor]:
    """A training set of `DRAWS` draws of every image."""
    batches = shifted_digits(batch_size=1000, seed=seed).train
    draws = [batches.batch(step) for step in range(DRAWS)]
    return torch.cat([x for x, _ in draws]), torch.cat([y for _, y in draws])


@cache
def _tests(data: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Test samples, and noisier ones."""
    if data == "cifar":  # every 20th image; they lie class by class
        x, y = (part[::20] for part in cifar10_jpeg().test.tensors())
        return (x, y), (x + FOREIGN_NOISE * torch.randn(x.shape, generator=generator(5)), y)
    if data != "mnist":
        near, far = (shifted_digits(noise=noise).test.tensors() for noise in (NOISE, FOREIGN_NOISE))
        return (near[0], near[1]), (far[0], far[1])
    x, y = mnist().test.tensors()
    return (x, y), (x + torch.randn(x.shape, generator=generator(5)), y)  # pixels have a deviation of 1


def _data(setting: Setting, seed: int) -> Dataset:
    test = Batches(list(_tests(setting.data)[0]), 512)
    if setting.data == "cifar":
        train = cifar10_jpeg(batch_size=64, seed=seed, per_class=200).train
    elif setting.data == "mnist":
        train = mnist(batch_size=64, seed=seed).train
    elif setting.data == "fixed":
        train = Batches(list(_fixed(seed)), 64, seed=seed, shuffle=True)
    else:
        train = shifted_digits(batch_size=64, seed=seed).train
    return Dataset(train, None, test, 10, tuple(test.source[torch.arange(1)][0].shape[1:]))


class _Bench:
    """All arms of one base seed."""

    def __init__(self, setting: Setting, seed: int, mutant: str | None) -> None:
        self.setting, self.mutant, self.seed = setting, mutant, 10 * seed  # branch j has the seed 10 seed + j
        self.data = _data(setting, self.seed)
        source = self.data.train
        wide = Batches(source.source, 256, seed=self.seed + 9, shuffle=True, transform=source.transform)
        self.statistics = [wide.batch(step) for step in range(setting.statistics)]
        optim = OptimConfig(name="nesterov", lr=0.1, weight_decay=5e-4)
        self.train = TrainConfig(steps=setting.dense, seed=self.seed, optim=optim, device="cpu", log_every=0)

    def run(self, part: str) -> dict[str, Any]:
        """The "soup", or the "rest": all that it is compared with; both begin with the same dense training."""
        began = time.perf_counter()
        torch.manual_seed(self.seed)
        dense = Classification(self._fresh())
        run_stages([self._stages(1)[0]], dense, self.data)
        result = self._soup(dense.model) if part == "soup" else self._rest(dense.model)
        return result | {"seconds": round(time.perf_counter() - began, 1)}

    def _fresh(self) -> nn.Module:
        return MODELS[self.setting.data]()

    def _rest(self, dense: nn.Module) -> dict[str, Any]:
        singles = [self._single(dense, number) for number in range(BRANCHES)]
        rows = [self.measure([model]) for model in singles]
        mean_model = self._recalibrated(average_of_runs(singles))
        thin = self._recalibrated(reprune(mean_model, self.setting.sparsity))
        return {
            "dense": self.measure([dense]),
            "imp": _mean(rows),
            "imp_best": max(rows, key=lambda row: row["accuracy"]),
            "imp_longer": self.measure([self._single(dense, 0, BRANCHES)]),
            "imp_avg": self.measure([mean_model]),
            "reprune": self.measure([thin]),
            "after_gmp": self._after_gmp() if self.setting.gmp else {},
        }

    def _stages(self, m: int, offset: int = 0, times: int = 1, faulty: bool = False) -> list[Stage]:
        stages = sms(
            self.setting.sparsity,
            self.setting.phases,
            self.train,
            vary={"seed": [self.seed + offset + j for j in range(m)]},
            retrain_steps=times * self.setting.phase,
            merge=(1.0, *[0.0] * (m - 1)) if faulty and self.mutant == "one_branch" else "uniform",
            recalibrate=self.statistics,
        )
        return [self._planted(stage) for stage in stages] if faulty else stages

    def _planted(self, stage: Stage) -> Stage:
        if self.mutant not in MUTANTS or not isinstance(stage.recipe, Recipe):
            return stage
        return replace(stage, recipe=mutate(stage.recipe, self.mutant))

    def _soup(self, dense: nn.Module) -> dict[str, Any]:
        """The phases of the soup, its last branches' ensemble, and how far these lie apart."""
        task = Classification(copy.deepcopy(dense))
        phases, exact = [], True
        states: Sequence[dict[str, Tensor]] = ()
        models: list[nn.Module] = []
        for stage in self._stages(BRANCHES, faulty=True)[1:]:
            memory = run_stages([stage], task, self.data)
            states = list(memory.candidates or ())
            models = [self._loaded(state) for state in states]
            phases.append(self._phase(models, task.model))
            exact &= len({_count(model) for model in [*models, task.model]}) == 1
        apart = spread(states)
        return {"phases": phases, "ensemble": self.measure(models), "spread": apart, "exact": exact}

    def _phase(self, models: Sequence[nn.Module], soup: nn.Module) -> dict[str, Any]:
        rows = [self.measure([model]) for model in models]
        best = max(rows, key=lambda row: row["accuracy"])
        return {"mean": _mean(rows), "best": best, "soup": self.measure([soup])}

    def _single(self, dense: nn.Module, number: int, times: int = 1) -> nn.Module:
        """An independent run of iterative pruning, `times` as long."""
        task = Classification(copy.deepcopy(dense))
        run_stages(self._stages(1, number, times)[1:], task, self.data)
        return task.model

    def _after_gmp(self) -> dict[str, Any]:
        """Gradual pruning in the dense budget, then a soup under its mask."""
        torch.manual_seed(self.seed)
        task = Classification(self._fresh())
        stages = soup_after(
            gmp(self.setting.sparsity, every=self.setting.dense // 25),
            self.train,
            retrain_steps=self.setting.phase,
            m=BRANCHES,
            recalibrate=self.statistics,
        )
        memory = run_stages(stages, task, self.data)
        return self._phase([self._loaded(state) for state in memory.candidates or ()], task.model)

    def _loaded(self, state: dict[str, Tensor]) -> nn.Module:
        model = self._fresh()
        model.load_state_dict(state)
        return self._recalibrated(model)

    def _recalibrated(self, model: nn.Module) -> nn.Module:
        recalibrate_bn(model, self.statistics)
        return model

    def measure(self, models: Sequence[nn.Module]) -> dict[str, float]:
        """Figures of a model, or of several models that vote."""

        def logits(x: Tensor) -> Tensor:
            with torch.no_grad():
                return soft_vote(model.eval()(x) for model in models) if len(models) > 1 else models[0].eval()(x)

        (x, y), (far, labels) = _tests(self.setting.data)
        near = logits(x)
        return {
            "accuracy": classification.accuracy(near, y),
            "foreign": classification.accuracy(logits(far), labels),
            "worst_class": classification.worst_class(near, y)[1],
            "ece": calibration.ece(near, y),
            "density": _count(models[0]) / sum(p.numel() for p in models[0].parameters() if p.ndim > 1),
        }


def _count(model: nn.Module) -> int:
    return sum(int(p.count_nonzero()) for p in model.parameters() if p.ndim > 1)


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: mean(row[name] for row in rows) for name in rows[0]}
