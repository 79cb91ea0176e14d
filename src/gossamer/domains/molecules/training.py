"""Training of Hamiltonian networks; an interrupted one goes on to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import CheckpointError, ConfigError, NumericsError
from gossamer.runs.checkpoint import delete_state, load_state, save_state

from .data import Labelled
from .graph import Blocks, corrections, graph, masks, to_blocks
from .network import SPHNet
from .paths import PathGate
from .schedule import ThreePhase


@dataclass(frozen=True)
class Settings:
    """Of a training: Adam with cosine decay, gradient clip 5, loss MAE + MSE over the orbitals (section 3.5).

    The authors take 200000 steps with lr 1e-3, 1000 warm-up steps and polynomial decay.
    """

    steps: int = 300
    batch: int = 16
    lr: float = 5e-3
    seed: int = 0
    schedule: ThreePhase = field(default_factory=ThreePhase)


def mae_mse(found: Blocks, wanted: Blocks, mask: Blocks) -> Tensor:
    """Mean absolute plus mean squared error over the unmasked entries, in hartree."""
    error = torch.cat([(found.diagonal - wanted.diagonal).flatten(), (found.pairs - wanted.pairs).flatten()])
    valid = torch.cat([mask.diagonal.flatten(), mask.pairs.flatten()])
    error = error * valid
    return (error.abs().sum() + error.square().sum()) / valid.sum()


def train(
    model: SPHNet,
    data: Labelled,
    settings: Settings = Settings(),
    say: Callable[[str], None] = lambda line: None,
    state: str | Path | None = None,
    every: int = 100,
) -> list[float]:
    """Train `model` in place; its gates go through the three phases. Returns the loss of every step.

    Args:
        state: a file that is written after every `every` steps and removed at the end. Where it exists already, the
            training goes on from there and ends with the same bits as an uninterrupted one (on a CPU).
    Raises:
        NumericsError: the loss became NaN. ConfigError: steps, batch or every below 1. CheckpointError: `state` is
            damaged, or of another network, other data or other settings.
    """
    if min(settings.steps, settings.batch, every) < 1:
        raise ConfigError(f"steps={settings.steps}, batch={settings.batch}, every={every}: all start at 1")
    if any(not np.isfinite(s.fock).all() for s in data.samples):
        raise NumericsError("a Fock matrix of the training set holds NaN or infinity; remove the molecule")
    run = _Training(model, data, settings)
    if state is not None:
        run.restore(state)
    for step in range(len(run.losses), settings.steps):
        phase = run.step(step)
        if step % 50 == 0:
            say(f"  step {step}, {phase}: loss {run.losses[-1]:.5f}")
        if state is not None and (step + 1) % every == 0:
            run.save(state)
    settings.schedule.step(model, settings.steps, settings.steps)
    if state is not None:
        delete_state(state)
    return run.losses


class _Training:
    """All that changes from step to step."""

    def __init__(self, model: SPHNet, data: Labelled, settings: Settings) -> None:
        self.model, self.data, self.settings = model, data, settings
        self.targets = corrections(data.samples)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
        self.losses: list[float] = []

    def step(self, step: int) -> str:
        """One optimiser step; returns the phase of the gates."""
        model, settings = self.model.train(), self.settings
        dtype = model.element.weight.dtype
        phase = settings.schedule.step(model, step, settings.steps)
        order = torch.randperm(len(self.targets), generator=self.generator)[: settings.batch].tolist()
        molecules = [self.data.samples[i].molecule for i in order]
        wanted = _cast(to_blocks([self.targets[i] for i in order], molecules, model.layout), dtype)
        found = model(graph(molecules, model.layout, dtype))
        loss = mae_mse(found, wanted, _cast(masks(molecules, model.layout), dtype))
        if not bool(loss.isfinite()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * (1 + math.cos(math.pi * step / settings.steps)) / 2
        self.optimizer.step()
        self.losses.append(loss.item())
        return phase

    def save(self, path: str | Path) -> None:
        """Write everything that the next step depends on."""
        gates = [
            {"generator": g.generator.get_state(), "phase": g.phase, "gradient": g.scores.grad} for g in self._gates()
        ]
        tree = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "gates": gates,
            "losses": self.losses,
        }
        save_state(path, tree, self._identity())

    def restore(self, path: str | Path) -> None:
        """Take over what `save` wrote, where there is such a file."""
        file = Path(path)
        if not (file.exists() or file.with_name(file.name + ".json").exists()):
            return
        tree, meta = load_state(path)
        for name, mine in self._identity().items():
            if meta.get(name) != mine:
                raise CheckpointError(f"{path} was written with another {name}; remove it, or go on with the same one")
        held: Any = tree
        self.model.load_state_dict(held["model"])
        self.optimizer.load_state_dict(held["optimizer"])
        self.generator.set_state(held["generator"])
        for gate, kept in zip(self._gates(), held["gates"], strict=True):
            gate.generator.set_state(kept["generator"])
            gate.phase, gate.scores.grad = kept["phase"], kept["gradient"]
        self.losses = list(held["losses"])

    def _gates(self) -> Sequence[PathGate]:
        return [module for module in self.model.modules() if isinstance(module, PathGate)]

    def _identity(self) -> dict[str, Any]:
        checksum = float(sum(np.abs(target).sum() for target in self.targets))
        data = {"molecules": len(self.targets), "basis": self.data.basis, "checksum": checksum}
        return {"network": self.model.settings(), "settings": asdict(self.settings), "data": data}


def _cast(blocks: Blocks, dtype: torch.dtype) -> Blocks:
    return Blocks(blocks.diagonal.to(dtype), blocks.pairs.to(dtype))
