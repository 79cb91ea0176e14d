"""Unlearn-sparse at the authors' size: ResNet-18 on CIFAR-10, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gossamer.data.dataset import Dataset
from gossamer.models.small_pictures import resnet18
from gossamer.reuse.unlearning import METHODS, ForgetSplit, PruneFirst, make_method, unlearn
from gossamer.reuse.unlearning.descent import train
from gossamer.reuse.unlearning.masks import Job
from gossamer.reuse.unlearning.pruned import paper_training
from gossamer.sparsify.groups import Select
from gossamer.training.config import TrainConfig
from gossamer.training.task import Classification


def full_size(data: Dataset, run: str | None, how: str = "omp", epochs: int = 182) -> dict[str, dict[str, float]]:
    """ResNet-18 with CIFAR's stem: prune, let it forget class 0 by every method with the paper's settings; resumable.

    Args:
        data: the paper's: CIFAR-10. run: folder of the runs, or None. how: see `PruneFirst`; "dense" does not prune.
        epochs: of training and retraining; those of the methods shrink alike.
    Returns:
        method -> {"ua", "mia", "ra", "ta", "gap"}.
    """
    config = paper_training(max(1, len(data.train)), epochs)
    folder = Path(run) if run else None
    trained, masks = _original(data, folder, how, config)
    split = ForgetSplit.by_class(data, 0)
    reference: nn.Module | None = None
    found = {}
    for name in ("retrain", *(n for n in METHODS if n != "retrain")):
        method = make_method(name, _shortened(name, config, epochs))
        where = folder / name if folder else None
        made, report = unlearn(
            trained, split, method=method, masks=masks, references=reference, run=where, resume=folder is not None
        )
        reference = made if name == "retrain" else reference
        if folder:
            report.save(folder / "audits" / name)
        found[name] = {f: getattr(report.after, f) for f in ("ua", "mia", "ra", "ta")} | {
            "gap": report.gaps.get("retrain", 0.0)
        }
    return found


def _original(data: Dataset, folder: Path | None, how: str, config: TrainConfig) -> tuple[nn.Module, dict[str, Tensor]]:
    network = resnet18(shape=data.shape, classes=data.classes)
    where, resume = (folder / "train" if folder else None), folder is not None
    if how == "dense":
        return train(Classification(network), data.train, config, Job({}, run=where, resume=resume)), {}
    way = PruneFirst(how, 0.95, config, select=Select(layers=("conv",)))
    return way.apply(network, data, where, resume=resume)


def _shortened(name: str, config: TrainConfig, epochs: int) -> dict[str, Any]:
    if name == "retrain":
        return {"train": config}
    if name in ("ff", "iu"):
        return {"samples": 1000 if epochs > 10 else 2}
    return {} if epochs > 10 else {"epochs": 1}
