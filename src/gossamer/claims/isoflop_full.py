"""Sparse-IFT at full size: a network of pictures, a vision transformer or a language model, by one code path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from gossamer.architectures.isoflop import iso_flop, iso_recipe
from gossamer.data.dataset import Dataset
from gossamer.models.zoo import build
from gossamer.training import Classification, LanguageModelling, OptimConfig, Task, TrainConfig, fit

_SGD = OptimConfig(name="nesterov", lr=0.1, momentum=0.9, weight_decay=5e-4)
_ADAM = OptimConfig(name="adamw", lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, warmup=0.02)


@dataclass(frozen=True)
class Configuration:
    """What is trained on what: a model of the zoo, a data set of the catalogue, the authors' or usual recipe.

    Args:
        data, options: the data set and its options. batch, epochs, optim: of the training.
    """

    model: str
    data: str
    task: Callable[[Any], Task] = Classification
    model_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 128
    epochs: int = 200
    optim: OptimConfig = _SGD


CONFIGURATIONS = {
    "resnet-18": Configuration("gossamer.models.small_pictures:resnet18", "cifar100"),
    "mobilenet-v2": Configuration("mobilenet-v2", "cifar100"),
    "vit-tiny": Configuration(
        "vit-tiny", "cifar100", model_options={"width": 192, "depth": 9, "heads": 3}, optim=_ADAM
    ),
    "language": Configuration(
        "llama",
        "text",
        LanguageModelling,
        {"width": 768, "depth": 12, "heads": 12},
        {"context": 1024},
        batch=32,
        epochs=1,
        optim=_ADAM,
    ),
}


def full_size(
    which: str,
    data: Dataset,
    family: str,
    sparsity: float,
    run: str | None = None,
    steps: int | None = None,
    **model: Any,
) -> dict[str, Any]:
    """One configuration, transformed and trained with RigL; resumable.

    Args:
        which: a key of CONFIGURATIONS. data: batches of it. run: folder of the run. steps: instead of all epochs.
        model: options instead of the configuration's, for a trial.
    """
    chosen = CONFIGURATIONS[which]
    options = {"shape": data.shape, "classes": data.classes, **chosen.model_options, **model}
    network = build(chosen.model, **options)
    example = data.train.batch(0)[0][:1]
    iso = iso_flop(network, family, sparsity, example)
    config = TrainConfig(steps=steps or chosen.epochs * len(data.train), optim=chosen.optim)
    recipe = iso_recipe(iso, "rigl", every=100 if steps is None else 1)
    result = fit(
        chosen.task(iso.model), data, recipe, config, run=run, resume=run is not None, progress=run is not None
    )
    parts = {key: value for key, value in result.items() if isinstance(value, float)}
    return {"flops": iso.ratio, "density": iso.density, "test": result.get("test"), **parts}


def example_data(which: str) -> Dataset:
    """Two batches of made-up samples, to start a configuration without its data."""
    from gossamer.data.dataset import Batches

    generator = torch.Generator().manual_seed(0)
    if which == "language":
        tokens = torch.randint(256, (8, 33), generator=generator)
        parts, classes, shape = [tokens[:, :-1], tokens[:, 1:]], 256, (32,)
    else:
        parts = [torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)]
        classes, shape = 100, (3, 32, 32)  # type: ignore[assignment]
    return Dataset(Batches(parts, 4), None, None, classes, shape)  # type: ignore[arg-type]  # nothing to test on


def main(arguments: Any) -> None:
    """Load the data of a configuration and run it."""
    from gossamer.data.catalogue import load

    chosen = CONFIGURATIONS[arguments.model]
    data = load(chosen.data, path=arguments.data, batch_size=chosen.batch, **chosen.options)
    print(full_size(arguments.model, data, arguments.family, arguments.sparsity, arguments.run, arguments.steps))
