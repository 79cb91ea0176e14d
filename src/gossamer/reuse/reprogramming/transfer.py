"""A report card of transfer: any set of models, any targets, with few or many samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...metrics import calibration
from ...metrics.classification import accuracy
from .adapt import few_shot, linear_probe, predict, reprogram
from .mapping import LabelMapping
from .prompt import VisualPrompt

WAYS = ("prompt", "probe")


@dataclass(frozen=True)
class Target:
    """A task to transfer to.

    Args:
        name: of the task. train, test: (pictures (n, C, h, w), labels (n,)).
        prompt: makes the prompt, anew for every training.
        prepare: brings pictures to the source's input for the probe; a prompt and a probe see different sizes, which
            a comparison of the two must say.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    prompt: Callable[[], VisualPrompt]
    prepare: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """One adapted model. `shots`: samples per class, None for all; accuracies and errors as fractions, nll in nats."""

    model: str
    target: str
    way: str
    shots: int | None
    seed: int
    accuracy: float
    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    upstream: float | None = field(default=None)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def transfer_report(
    models: Mapping[str, nn.Module],
    targets: Sequence[Target],
    *,
    shots: Sequence[int | None] = (None, 100, 10),
    ways: Sequence[str] = WAYS,
    seeds: Sequence[int] = (0,),
    upstream: Mapping[str, float] | None = None,
    mapping: LabelMapping = LabelMapping(),
    prompting: Mapping[str, Any] | None = None,
    probing: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Adapt every model to every target in every way, and measure accuracy and calibration on the whole test set.

    Args:
        models: name -> frozen classifier, for instance {"dense": m0, "90 %": m1}.
        shots: samples per class; None: all. seeds: of the samples drawn and of training; the same for all models.
        upstream: accuracy of each model on its own task, shown beside. prompting, probing: keywords of `reprogram`
            and `linear_probe`.
    Raises:
        ConfigError: no model, target or seed, or an unknown way.
    """
    if not (models and targets and seeds):
        raise ConfigError("a transfer report needs at least one model, one target and one seed")
    for way in ways:
        if way not in WAYS:
            raise ConfigError(f"ways to transfer are {WAYS}, got {way!r}")
    rows = []
    for target in targets:
        for count in shots:
            for seed in seeds:
                picked = few_shot(target.train[1], count, seed)
                x, y = target.train[0][picked], target.train[1][picked]
                for name, model in models.items():
                    for way in ways:
                        net = _adapted(model, target, way, x, y, seed, mapping, prompting or {}, probing or {})
                        figures = measure(net, *target.test)
                        known = (upstream or {}).get(name)
                        rows.append(Row(name, target.name, way, count, seed, **figures, upstream=known))
                        say(f"{target.name}, {count or 'all'} shots, {way}, {name}: {100 * figures['accuracy']:.1f} %")
    return rows


def _adapted(
    model: nn.Module,
    target: Target,
    way: str,
    x: Tensor,
    y: Tensor,
    seed: int,
    mapping: LabelMapping,
    prompting: Mapping[str, Any],
    probing: Mapping[str, Any],
) -> nn.Module:
    if way == "prompt":
        return reprogram(model, x, y, target.prompt(), mapping, seed=seed, **prompting)
    return linear_probe(model, x, y, prepare=target.prepare, seed=seed, **probing)


def measure(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy and calibration, once over all samples (never a mean over batches)."""
    with torch.no_grad():
        logits = predict(net, x)
    return {
        "accuracy": accuracy(logits, y),
        "ece": calibration.ece(logits, y),
        "adaptive_ece": calibration.ece(logits, y, spacing="mass"),
        "nll": calibration.nll(logits, y),
        "brier": calibration.brier(logits, y),
    }
