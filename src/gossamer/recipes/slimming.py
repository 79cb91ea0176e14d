"""Channels out of a network for good: network slimming, MaskSparsity, and pruning by a given choice.

All are lists of stages that end with "removed" (surgery, no training) and "finetune". `Memory.values` holds "dense",
the trained weights from which sparsity training starts, and "channels", the unit mask of every group.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError
from ..sparsify.accounting import flops
from ..sparsify.accounting.flops import quiet
from ..sparsify.channels import Choice, Ratio, channel_graph, channel_rows, check_channels, choose_channels
from ..sparsify.recipe import Recipe
from ..sparsify.regularizers import BNL1
from ..sparsify.surgery import remove_channels
from ..training.config import OptimConfig, TrainConfig
from ..training.stages import Memory, Stage
from .static import dense

LAMBDA = 5e-4  # the authors' strength, for one full schedule


@dataclass(frozen=True)
class _Remember:
    """Keeps the weights of the dense training."""

    def __call__(self, model: nn.Module, memory: Memory) -> None:
        memory.values["dense"] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


@dataclass(frozen=True)
class _Restore:
    """Goes back to the weights of the dense training."""

    def __call__(self, model: nn.Module, memory: Memory) -> None:
        saved: Any = memory.values["dense"]
        model.load_state_dict(saved)


@dataclass(frozen=True)
class _Choose:
    """Decides which channels stay."""

    example: Any = field(repr=False)
    choice: Choice

    def __call__(self, model: nn.Module, memory: Memory) -> None:
        masks = choose_channels(model, channel_graph(model, self.example), self.choice)
        memory.values["channels"] = {name: mask.cpu() for name, mask in masks.items()}


@dataclass(frozen=True)
class _Given:
    """Takes masks that come from elsewhere."""

    example: Any = field(repr=False)
    masks: Mapping[str, Tensor]

    def __call__(self, model: nn.Module, memory: Memory) -> None:
        masks = check_channels(channel_graph(model, self.example), self.masks)
        memory.values["channels"] = {name: mask.cpu() for name, mask in masks.items()}


@dataclass(frozen=True)
class _Penalise:
    """The recipe that penalises the scales of the channels that will go."""

    example: Any = field(repr=False)
    lam: float = LAMBDA
    proximal: bool = False

    def __call__(self, model: nn.Module, memory: Memory) -> Recipe:
        masks: Any = memory.values["channels"]
        rows = channel_rows(model, channel_graph(model, self.example), masks)
        return Recipe("mask-sparsity", regularizers=(BNL1(self.lam, channels=rows, proximal=self.proximal),))


@dataclass(frozen=True)
class _Remove:
    """Surgery: the channels leave every tensor, their constants are folded."""

    example: Any = field(repr=False)
    fold: bool = True

    def __call__(self, model: nn.Module, memory: Memory) -> nn.Module:
        masks: Any = memory.values["channels"]
        return remove_channels(model, self.example, masks, fold_constants=self.fold).model


def slimming(lam: float = LAMBDA, proximal: bool = False) -> Recipe:
    """Network slimming's training: an L1 penalty on every batch-norm scale (Liu et al. 2017).

    Raises:
        ConfigError: lam < 0 or infinite.
    """
    return Recipe("slimming", regularizers=(BNL1(_strength(lam), proximal=proximal),))


def _strength(lam: float) -> float:
    if not 0 <= lam < math.inf:
        raise ConfigError(f"the strength of a penalty must not be negative or infinite, got lam={lam}")
    return lam


def _begin(train: TrainConfig, pretrained: bool) -> list[Stage]:
    """Dense training; a trained model is only remembered."""
    return [Stage("dense", dense(), None if pretrained else train, on_exit=_Remember())]


def _end(finetune: TrainConfig, example: Any, fold: bool) -> list[Stage]:
    return [Stage("removed", surgery=_Remove(example, fold)), Stage("finetune", dense(), finetune)]


def network_slimming(
    train: TrainConfig,
    example: Any,
    *,
    sparse: TrainConfig | None = None,
    finetune: TrainConfig,
    lam: float = LAMBDA,
    choice: Choice = Choice(),
    fold: bool = True,
    proximal: bool = False,
    pretrained: bool = False,
) -> list[Stage]:
    """Train, train on with a penalty on all scales, remove the channels whose scales are small, fine-tune.

    Arguments and errors as in `mask_sparsity`. Stages: dense, search, removed, finetune.
    """
    search = Stage("search", slimming(lam, proximal), sparse or train, on_exit=_Choose(example, choice))
    return [*_begin(train, pretrained), search, *_end(finetune, example, fold)]


def prune_channels(
    train: TrainConfig,
    example: Any,
    *,
    finetune: TrainConfig,
    choice: Choice = Choice("l1"),
    masks: Mapping[str, Tensor] | None = None,
    fold: bool = True,
    pretrained: bool = False,
) -> list[Stage]:
    """Train, remove channels without any sparsity training, fine-tune: the baseline, by `choice` or given `masks`.

    Stages: dense, search (decides, does not train), removed, finetune. Arguments and errors as in `mask_sparsity`.
    """
    decide = _Choose(example, choice) if masks is None else _Given(example, masks)
    return [*_begin(train, pretrained), Stage("search", on_enter=decide), *_end(finetune, example, fold)]


def mask_sparsity(
    train: TrainConfig,
    example: Any,
    *,
    sparse: TrainConfig | None = None,
    finetune: TrainConfig,
    lam: float = LAMBDA,
    search_lam: float | None = None,
    choice: Choice = Choice(),
    masks: Mapping[str, Tensor] | None = None,
    fold: bool = True,
    proximal: bool = False,
    pretrained: bool = False,
) -> list[Stage]:
    """MaskSparsity: decide which channels go, then train again from the dense weights with a strong penalty on the
    scales of those alone, so that removal costs nothing and the kept ones lose no capacity (Jiang et al. 2022).

    Stages: dense, search, sparse, removed, finetune. With all channels chosen to go, "sparse" is network slimming.

    Args:
        train: of the dense training. sparse: of the search and of the sparsity training; default: as `train`.
        example: one input (B, ...), on which channels are followed.
        lam: strength of the penalty; the authors' 5e-4. search_lam: of the search; default: `lam`.
        choice: how channels are chosen. "bn_scale" needs a search with a penalty on all scales; "l1" and "fpgm" decide
            on the dense weights.
        masks: group -> bool unit mask, True = kept, in place of a search.
        fold: fold the constants of removed channels. proximal: exact zeros, see `BNL1`.
        pretrained: the model is trained already.
    Raises:
        ConfigError: lam < 0 or infinite; when run, a group without scales, unknown groups, channels that must stay.
        MaskError: a group would be emptied. ShapeError: a mask that does not fit.
    """
    sparse = sparse or train
    if masks is None and choice.score == "bn_scale":
        weaker = slimming(lam if search_lam is None else search_lam, proximal)
        search = Stage("search", weaker, sparse, on_exit=_Choose(example, choice))
    else:
        search = Stage("search", on_enter=_Choose(example, choice) if masks is None else _Given(example, masks))
    _strength(lam)  # a bad one is refused now, not hours later
    again = Stage("sparse", _Penalise(example, lam, proximal), sparse, on_enter=_Restore())
    return [*_begin(train, pretrained), search, again, *_end(finetune, example, fold)]


# --------------------------------------------------------------------------- what removal gains


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs.

    Attributes:
        parameters: all of them. flops: per sample, by our accounting. torch_flops: per sample, by torch's counter.
        milliseconds: median time of a pass on the example, on this machine and thread count.
    """

    parameters: int
    flops: float
    torch_flops: float
    milliseconds: float


def cost(model: nn.Module, example: Tensor, repeats: int = 5) -> Cost:
    """Measure `model` on `example` (B, ...), in evaluation mode, twice unmeasured and then `repeats` times."""
    counter = FlopCounterMode(display=False)
    seconds = []
    with quiet(model):
        with counter:
            model(example)
        model(example)
        for _ in range(repeats):
            began = time.perf_counter()
            model(example)
            seconds.append(time.perf_counter() - began)
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops(model, example, masks={}).dense,
        torch_flops=counter.get_total_flops() / len(example),
        milliseconds=1000 * median(seconds),
    )


# --------------------------------------------------------------------------- full size


def cifar_resnet(epochs: int = 160, steps_per_epoch: int = 390) -> dict[str, Any]:
    """Keywords of `mask_sparsity` for ResNet-56 or -110 on CIFAR-10: half of the channels of every group.

    The publication's CIFAR schedule is not known to us; this is the usual one of He et al. 2016.
    """
    train = _config(epochs * steps_per_epoch, lr=0.1, milestones=(0.5, 0.75))
    return {
        "train": train,
        "finetune": _config(40 * steps_per_epoch, lr=5e-4, milestones=(0.25, 0.5, 0.75)),
        "choice": Choice(rule=Ratio(0.5)),
        "example": torch.zeros(1, 3, 32, 32),
    }


def imagenet_resnet50(steps_per_epoch: int = 5005) -> dict[str, Any]:
    """Keywords of `mask_sparsity` for ResNet-50 on ImageNet, the authors' schedule.

    Batches of 256; 100 epochs each for the dense training, the search and the sparsity training, 40 to fine-tune;
    channels with scales below 0.01 go.
    """
    train = _config(100 * steps_per_epoch, lr=0.1, milestones=(0.3, 0.6, 0.9))
    return {
        "train": train,
        "finetune": _config(40 * steps_per_epoch, lr=5e-4, milestones=(0.25, 0.5, 0.75)),
        "choice": Choice(),
        "example": torch.zeros(1, 3, 224, 224),
    }


def _config(steps: int, lr: float, milestones: tuple[float, ...]) -> TrainConfig:
    optim = OptimConfig(name="nesterov", lr=lr, weight_decay=1e-4, schedule="step", milestones=milestones)
    return TrainConfig(steps=steps, optim=optim)
