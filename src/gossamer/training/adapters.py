"""Recipes inside the training loops of Hugging Face transformers and of Lightning, as one callback each.

Each is made by a function, because its base class is imported only when it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gossamer.errors import ConfigError, MissingExtra
from gossamer.runs.checkpoint import load_state, save_state
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier

_FILE = "sparsifier.json"


def _attach(
    model: nn.Module,
    optimizer: Optimizer,
    recipe: Recipe,
    steps: int,
    seed: int,
    state: dict[str, Any] | None,
) -> Sparsifier:
    """A Sparsifier on a model at its start, or, with `state`, on one whose weights were loaded already."""
    if state is None:
        return Sparsifier(model, optimizer, recipe, steps, seed=seed)
    # The first masks would wipe out loaded weights: keep those until the masks that belong to them are back.
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = [(b, b.clone()) for entry in optimizer.state.values() for b in entry.values() if torch.is_tensor(b)]
    sparsifier = Sparsifier(model, optimizer, recipe, steps, seed=seed)
    sparsifier.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        for buffer, value in buffers:
            buffer.copy_(value)
    return sparsifier


def hf_callback(recipe: Recipe, *, clip: float | None = 1.0, seed: int = 0) -> Any:
    """A `transformers.TrainerCallback` that trains by `recipe` and leaves exact zeros at the end.

    The Trainer would clip before the callback can mask gradients, so pass `max_grad_norm=0` to TrainingArguments and
    the norm to clip to (the Trainer's default, 1.0) here. The sparsifier's state lies in every checkpoint folder.

    Raises:
        MissingExtra: transformers is not installed.
        ConfigError: when training starts, if the Trainer clips or scales gradients (fp16), or if the recipe trains
            through a parametrisation, whose names the Trainer's checkpoints would hold.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise MissingExtra("transformers", "hf") from error
    _check_projected(recipe)

    class SparsifierCallback(TrainerCallback):
        sparsifier: Sparsifier

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if args.max_grad_norm:
                raise ConfigError(
                    f"max_grad_norm={args.max_grad_norm}: the Trainer would clip gradients before they are masked; "
                    "set it to 0 and pass clip= to the callback"
                )
            if args.fp16:
                raise ConfigError("fp16=True shows scaled gradients to callbacks; use bf16=True")
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            saved = load_state(folder / _FILE)[0] if state.global_step else None
            model, optimizer = given["model"], given["optimizer"]
            inner = getattr(optimizer, "optimizer", optimizer)
            self.sparsifier = _attach(model, inner, recipe, state.max_steps, seed, saved)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.sparsifier.after_backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(given["model"].parameters(), clip)

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                save_state(folder / _FILE, self.sparsifier.state_dict())

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.sparsifier.finalize()

    return SparsifierCallback()


def lightning_callback(recipe: Recipe, *, seed: int = 0) -> Any:
    """A `lightning.pytorch.Callback` that trains by `recipe`; Lightning's clipping sees masked gradients.

    Automatic optimisation with one optimiser. The state goes into Lightning's checkpoints, and exact zeros stand in
    the model when training has ended.

    Raises:
        MissingExtra: lightning is not installed. ConfigError: a recipe that trains through a parametrisation, or, when
            training starts, several optimisers or a length of training that is unknown.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise MissingExtra("lightning", "lightning") from error
    _check_projected(recipe)

    class SparsifierCallback(Callback):
        def __init__(self) -> None:
            self.sparsifier: Sparsifier | None = None
            self.saved: dict[str, Any] | None = None

        def on_train_start(self, trainer: Any, module: Any) -> None:
            steps = trainer.estimated_stepping_batches
            if len(trainer.optimizers) != 1 or steps == float("inf"):
                raise ConfigError(
                    "needs one optimiser and a known number of steps: set max_steps or max_epochs on the trainer"
                )
            self.sparsifier = _attach(module, trainer.optimizers[0], recipe, int(steps), seed, self.saved)
            # Lightning runs forward and backward inside optimizer.step(closure): gradients are edited below instead.
            self.sparsifier._hooks.pop(0).remove()

        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            if self.sparsifier is not None:
                self.sparsifier.after_backward()

        def on_train_end(self, trainer: Any, module: Any) -> None:
            if self.sparsifier is not None:
                self.sparsifier.finalize()

        def state_dict(self) -> dict[str, Any]:
            return self.sparsifier.state_dict() if self.sparsifier is not None else {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.saved = state_dict or None

    return SparsifierCallback()


def _check_projected(recipe: Recipe) -> None:
    from gossamer.sparsify.estimators import Projected

    if not isinstance(recipe.family, Projected):
        raise ConfigError(
            f"the recipe {recipe.name!r} trains through a parametrisation, which would rename the weights in foreign "
            "checkpoints; use gossamer.training.fit for it"
        )
