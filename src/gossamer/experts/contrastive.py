"""Diversified multiplet upcycling: stages that must each learn what earlier ones overlook, and router training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.experts.clusters import accumulate, cluster, cluster_batches
from gossamer.experts.layer import moe_layers, routed
from gossamer.experts.loose import gather
from gossamer.experts.losses import balance_loss
from gossamer.experts.upcycling import identical

# model, first views, second views -> embeddings (B, d) of both, not yet normalised
Encode = Callable[[nn.Module, Any, Any], tuple[Tensor, Tensor]]
Say = Callable[[str], None]


class Pairs(Protocol):
    """A training set of pairs, such as images and captions."""

    def __len__(self) -> int: ...

    def batch(self, index: Tensor) -> tuple[Any, Any]:
        """Both views of these pairs, as the towers take them."""
        ...


@dataclass(frozen=True)
class TensorPairs:
    """Pairs that fit in memory. Raises ShapeError for unequal lengths."""

    first: Tensor
    second: Tensor

    def __post_init__(self) -> None:
        if len(self.first) != len(self.second) or not len(self.first):
            raise ShapeError(f"pairs need equally many views, got {len(self.first)} and {len(self.second)}")

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.first[index], self.second[index]


@dataclass(frozen=True)
class Training:
    """How one phase trains. The defaults are CLIP-MoE's for a stage.

    Args:
        steps: None is one epoch. batch: pairs of a step (800 there). lr, weight_decay: of AdamW.
        warmup: steps of linear warm-up before the cosine to 0. scale: of the cosines, e^4.60517 = 100, kept fixed.
        smoothing: of the labels. mask_duplicates: equal second views in a batch are no negatives of each other.
    """

    steps: int | None = None
    batch: int = 800
    lr: float = 1e-5
    weight_decay: float = 0.2
    warmup: int = 200
    scale: float = 100.0
    smoothing: float = 0.1
    mask_duplicates: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch < 2 or (self.steps is not None and self.steps < 1) or not (self.lr > 0 and self.scale > 0):
            raise ConfigError(f"training needs batch >= 2, steps >= 1, lr > 0 and scale > 0, got {self}")


def clip_loss(
    first: Tensor, second: Tensor, scale: float = 100.0, smoothing: float = 0.1, same: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE with label smoothing over a batch of embeddings (B, d), normalised here.

    Args:
        same: (B, B) bool, pairs off the diagonal that are no negatives: duplicates.
    Raises:
        NumericsError: NaN or infinite embeddings.
    Source: Zhang et al. 2024 (CLIP-MoE), eq. 1; smoothing from the authors' code.
    """
    logits = scale * F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError("embeddings hold NaN or infinity; lower the learning rate or look at the input")
    off = torch.zeros_like(logits, dtype=torch.bool) if same is None else same & ~torch.eye(len(same)).bool().to(same)
    return (_smoothed(logits, off, smoothing) + _smoothed(logits.T, off.T, smoothing)) / 2


def _smoothed(logits: Tensor, off: Tensor, smoothing: float) -> Tensor:
    """Cross entropy of the diagonal with label smoothing over all columns but those that are off."""
    log_p = logits.masked_fill(off, -torch.inf).log_softmax(-1)
    spread = log_p.masked_fill(off, 0.0).sum(-1) / (~off).sum(-1)
    return -((1 - smoothing) * log_p.diagonal() + smoothing * spread).mean()


@torch.no_grad()
def embed(model: nn.Module, pairs: Pairs, encode: Encode, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Normalised embeddings (n, d) of both views of a whole set, in evaluation mode. Raises NumericsError."""
    mode = model.training
    model.eval()
    parts = [encode(model, *pairs.batch(index)) for index in torch.arange(len(pairs)).split(batch)]
    model.train(mode)
    first, second = (F.normalize(torch.cat(side).float(), dim=-1).cpu() for side in zip(*parts, strict=True))
    for name, side in (("first", first), ("second", second)):
        if not bool(torch.isfinite(side).all()):
            raise NumericsError(f"embeddings of the {name} views hold NaN or infinity; the model has diverged")
    return first, second


def train_pairs(
    model: nn.Module,
    pairs: Pairs,
    encode: Encode,
    parameters: Sequence[nn.Parameter],
    how: Training,
    labels: Tensor | None = None,
    extra: float = 0.0,
) -> list[float]:
    """Train these parameters and no others with the contrastive loss; all flags are as before at the end.

    Args:
        labels: (n,) clusters; batches then come from one cluster each. None: random batches.
        extra: coefficient of the balance loss of the model's expert layers, 0 for none.
    Returns:
        the loss of every step.
    """
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    chosen = {id(p) for p in parameters}
    for p in model.parameters():
        p.requires_grad_(id(p) in chosen)
    optimizer = torch.optim.AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay)
    clusters = torch.zeros(len(pairs), dtype=torch.long) if labels is None else labels
    epoch, total = 0, how.steps or 1  # an epoch's length is known with its batches
    queue: list[Tensor] = []
    losses: list[float] = []
    model.train()
    try:
        while len(losses) < total:
            if not queue:
                queue = cluster_batches(clusters, how.batch, seed=how.seed + 1000 * epoch)
                total, epoch = how.steps or len(queue), epoch + 1
            for group in optimizer.param_groups:
                group["lr"] = how.lr * _warm_cosine(len(losses), total, how.warmup)
            first, second = pairs.batch(queue.pop(0))
            loss = _loss(model, first, second, encode, how, extra)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    finally:
        for name, p in model.named_parameters():
            p.requires_grad_(flags[name])
    return losses


def _loss(model: nn.Module, first: Any, second: Any, encode: Encode, how: Training, extra: float) -> Tensor:
    def contrast() -> Tensor:
        one, two = encode(model, first, second)
        return clip_loss(one, two, how.scale, how.smoothing, _same(second) if how.mask_duplicates else None)

    if not extra:
        return contrast()
    with routed(model) as plans:
        loss = contrast()
    return loss + extra * balance_loss(plans)


def _same(views: Any) -> Tensor:
    flat = views.flatten(1)
    return (flat.unsqueeze(0) == flat.unsqueeze(1)).all(-1)


def _warm_cosine(step: int, steps: int, warmup: int) -> float:
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def stages(
    base: nn.Module,
    pairs: Pairs,
    encode: Encode,
    names: Sequence[str],
    how: Training = Training(),
    *,
    count: int = 3,
    clusters: int = 3,
    shuffled: bool = False,
    folder: Path | str | None = None,
    say: Say = lambda line: None,
) -> list[nn.Module]:
    """Multistage contrastive learning: [base, stage 1, ..., stage `count`], of which only the named networks differ.

    Every stage starts from the base again; its batches come out of the clusters that all earlier models agree on.

    Args:
        names: feed-forward networks that train (`find_ffn`). clusters: of each side and stage.
        shuffled: random batches instead, the ablation without the method's idea.
        folder: finished stages are kept there and read again when the run is repeated.
    Raises:
        ConfigError, DataError, NumericsError: see `cluster`, `cluster_batches`, `embed`. CheckpointError: a kept stage
        of another model.
    Source: Zhang et al. 2024 (CLIP-MoE), section 3; starting from the base is read from the authors' scripts.
    """
    if count < 1:
        raise ConfigError(f"needs at least one stage, got {count}")
    gather(base, names)
    models, labels = [base], torch.zeros(len(pairs), dtype=torch.long)
    for number in range(1, count + 1):
        labels = accumulate(labels, cluster(*embed(models[-1], pairs, encode), clusters, how.seed), clusters**2)
        model = copy.deepcopy(base)
        trained = [p for name in names for p in model.get_submodule(name).parameters()]
        path = None if folder is None else Path(folder) / f"stage-{number}.safetensors"
        if path is not None and path.exists():
            _read(path, model, names)
            say(f"stage {number}: read from {path}")
        else:
            losses = train_pairs(model, pairs, encode, trained, how, None if shuffled else labels)
            say(f"stage {number}: {len(labels.unique())} clusters, loss {losses[0]:.3f} to {losses[-1]:.3f}")
            if path is not None:
                _write(path, model, names)
        models.append(model)
    return models


def _write(path: Path, model: nn.Module, names: Sequence[str]) -> None:
    from safetensors.torch import save_file

    from gossamer.runs.files import atomic

    values = {f"{name}.{key}": v for name in names for key, v in model.get_submodule(name).state_dict().items()}
    with atomic(path) as temporary:
        save_file(values, temporary)


def _read(path: Path, model: nn.Module, names: Sequence[str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        values = load_file(path)
        for name in names:
            lead = f"{name}."
            part = {key.removeprefix(lead): v for key, v in values.items() if key.startswith(lead)}
            model.get_submodule(name).load_state_dict(part)
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no stage of this model; remove it to train the stage again: {error}"
        ) from None


def train_routers(
    model: nn.Module,
    pairs: Pairs,
    encode: Encode,
    how: Training = Training(lr=1e-6, weight_decay=1e-2),
    *,
    balance: float = 0.01,
) -> list[float]:
    """Train the gates of all expert layers and nothing else, with the contrastive and the balance loss.

    Raises:
        ConfigError: the experts of every layer are identical, or the weights are always 1, so that no gate can learn.
    """
    layers = moe_layers(model)
    if all(identical(layer) for layer in layers.values()):
        raise ConfigError(
            "all experts are copies of each other, so training routers alone cannot change the model: train the "
            "experts too, or make them from different stages (upcycle_from)"
        )
    if all(getattr(m.router, "k", 2) == 1 and getattr(m.router, "renormalise", False) for m in layers.values()):
        raise ConfigError("TopK(1, renormalise=True) gives the gates no gradient; take k >= 2 or renormalise=False")
    gates = [p for layer in layers.values() for p in layer.gate.parameters()]
    return train_pairs(model, pairs, encode, gates, how, extra=balance)
