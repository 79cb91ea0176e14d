"""DASS: differentiable architecture search through the life of a pruned network (Mousavi et al. 2022).

The super-network is trained dense, pruned by learning scores, and fine-tuned sparse; the architecture parameters see
the validation loss of the network as it then is. The same loop with one dense stage is ordinary DARTS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..errors import CheckpointError, ConfigError, NumericsError
from ..runs.checkpoint import load_state, save_state
from ..training.config import OptimConfig
from ..training.optim import lr_factor, make_optimizer, set_lr
from .bilevel import alphas_of, arch_gradient, gradients, weights_of
from .scored_layers import refresh, scaled_init, set_keep, shares, train_scores
from .stages import Batch, BatchOf, Loss, Stage

ALPHAS = OptimConfig(name="adam", lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, schedule="constant")


@dataclass(frozen=True)
class Dass:
    """The search.

    Args:
        stages: see `dass_stages`. loss: (model, batch) -> scalar.
        order: 2 looks one step of the weights ahead (the authors' default), 1 does not.
        arch: optimiser of the alphas. clip: largest norm of the gradient of weights or scores (5).
        reset_arch: alphas return to 0 when the first sparse stage begins. Not in the paper: without it the sparse
            stages must first overcome what the dense one preferred.
    Raises:
        ConfigError: another order, or no stage.
    """

    stages: tuple[Stage, ...]
    loss: Loss
    order: Literal[1, 2] = 2
    arch: OptimConfig = field(default_factory=lambda: ALPHAS)
    clip: float | None = 5.0
    reset_arch: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"order must be 1 or 2, got {self.order}")
        if not self.stages:
            raise ConfigError("a search needs at least one stage")

    def fit(
        self,
        model: nn.Module,
        train: BatchOf,
        val: BatchOf,
        *,
        on_stage: Callable[[Stage, nn.Module], None] | None = None,
        file: Path | None = None,
        every: int = 500,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[dict[str, Any]]:
        """Search in place; afterwards the alphas say what was found.

        Args:
            train, val: step -> batch, of parts that share no sample. on_stage: called after each stage.
            file: state of the search, written every `every` steps; one that exists is continued, bit for bit on a CPU
                where the batches are functions of the step.
        Returns:
            the trajectory: rows {"step", "stage", "loss", "val_loss", "alphas" (softmax), "entropy" (nats)}.
        Raises:
            NumericsError: a loss that is not finite. CheckpointError: a file of another search.
        """
        run = _Run(self, model, train, val)
        if file is not None:
            file = file if file.suffix == ".json" else file.with_name(f"{file.name}.json")
            if file.exists():
                run.load(file)
        while run.stage < len(self.stages):
            run.advance()
            if run.ended and on_stage is not None:
                on_stage(self.stages[run.stage - 1], model)
            if file is not None and (run.total % every == 0 or run.ended):
                run.save(file)
            if run.ended:
                say(f"{self.stages[run.stage - 1].name}: loss {run.history[-1]['loss']:.4f} after {run.total} steps")
        train_scores(model, scores=False)
        return run.history


class _Run:
    """A search under way."""

    def __init__(self, dass: Dass, model: nn.Module, train: BatchOf, val: BatchOf) -> None:
        self.dass, self.model, self.train, self.val = dass, model, train, val
        self.alphas = alphas_of(model)
        self.arch = make_optimizer(self.alphas, dass.arch)
        self.stage = self.step = self.total = 0
        self.ended = False
        self.history: list[dict[str, Any]] = []
        self.optimizer = self._begin()

    def _begin(self) -> torch.optim.Optimizer:
        """Set up the present stage: kept share, what is trained, its optimiser."""
        stage, earlier = self.dass.stages[self.stage], self.dass.stages[: self.stage]
        set_keep(self.model, stage.keep)
        if stage.train == "scores":
            scaled_init(self.model)
        train_scores(self.model, stage.train == "scores")
        for alpha in self.alphas:
            alpha.requires_grad_(True)
        if self.dass.reset_arch and stage.keep < 1 and all(s.keep == 1 for s in earlier) and earlier:
            with torch.no_grad():
                for alpha in self.alphas:
                    alpha.zero_()
            self.arch = make_optimizer(self.alphas, self.dass.arch)
        scores = [share.score for _, _, share in shares(self.model)]
        return make_optimizer(scores if stage.train == "scores" else weights_of(self.model), stage.optim)

    def advance(self) -> None:
        """One step of the architecture, where the stage has one, and one of weights or scores."""
        stage = self.dass.stages[self.stage]
        if self.ended:
            self.optimizer, self.ended = self._begin(), False
        factor = lr_factor(self.step, stage.steps, stage.optim)
        set_lr(self.optimizer, factor)
        batch, held = self.train(self.total), self.val(self.total)
        looked = self._step_arch(stage, batch, held, factor) if stage.arch else None
        loss = self.dass.loss(self.model, batch)
        if not math.isfinite(float(loss.detach())):
            raise NumericsError(f"the loss is {float(loss.detach())} at step {self.step} of stage {stage.name!r}")
        trained = self.optimizer.param_groups[0]["params"]
        for p, g in zip(trained, gradients(loss, trained), strict=True):
            p.grad = g
        if self.dass.clip is not None:
            nn.utils.clip_grad_norm_(trained, self.dass.clip)
        self.optimizer.step()
        self.step += 1
        self.total += 1
        if self.step % max(1, stage.steps // 25) == 0 or self.step == stage.steps:
            self._note(stage, float(loss.detach()), looked)
        if self.step == stage.steps:
            refresh(self.model)
            self.stage, self.step, self.ended = self.stage + 1, 0, True

    def _step_arch(self, stage: Stage, batch: Batch, held: Batch, factor: float) -> float:
        xi = stage.optim.lr * factor if self.dass.order == 2 else 0.0
        found = arch_gradient(
            self.model, self.dass.loss, batch, held, xi=xi, optimizer=self.optimizer, decay=stage.optim.weight_decay
        )
        for alpha, g in zip(self.alphas, found, strict=True):
            alpha.grad = g
        self.arch.step()
        with torch.no_grad():
            return float(self.dass.loss(self.model, held)) if self.step % max(1, stage.steps // 25) == 0 else math.nan

    def _note(self, stage: Stage, loss: float, looked: float | None) -> None:
        shares_of = [alpha.detach().softmax(-1) for alpha in self.alphas]
        entropy = [float(-(p * p.clamp_min(1e-12).log()).sum(-1).mean()) for p in shares_of]
        self.history.append(
            {
                "step": self.total,
                "stage": stage.name,
                "loss": loss,
                "val_loss": None if looked is None or math.isnan(looked) else looked,
                "alphas": [p.flatten().tolist() for p in shares_of],
                "entropy": sum(entropy) / len(entropy),
            }
        )

    # ------------------------------------------------------------------ file

    def _settings(self) -> dict[str, Any]:
        stages = [{**vars(s), "optim": s.optim.model_dump(mode="json")} for s in self.dass.stages]
        return {"stages": stages, "order": self.dass.order, "reset_arch": self.dass.reset_arch}

    def save(self, file: Path) -> None:
        """All that is needed to go on, atomically."""
        tree = {
            "model": dict(self.model.state_dict()),
            "masks": {name: share.mask for name, _, share in shares(self.model)},
            "optimizer": self.optimizer.state_dict(),
            "arch": self.arch.state_dict(),
            "rng": torch.get_rng_state(),
        }
        place = {"stage": self.stage, "step": self.step, "total": self.total, "ended": self.ended}
        save_state(file, tree, {"settings": self._settings(), "history": self.history, **place})

    def load(self, file: Path) -> None:
        """Go on where `save` was."""
        tree, meta = load_state(file)
        if meta.get("settings") != self._settings():
            raise CheckpointError(f"{file} is the state of another search; remove it or take its settings")
        self.history, self.total = meta["history"], meta["total"]
        self.ended = meta["ended"]
        self.stage = meta["stage"] - (1 if self.ended else 0)
        self.optimizer = self._begin()
        self.model.load_state_dict(tree["model"])
        for name, _, share in shares(self.model):
            share.mask.copy_(tree["masks"][name])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.arch.load_state_dict(tree["arch"])
        torch.set_rng_state(tree["rng"])
        self.stage, self.step = meta["stage"], meta["step"]
