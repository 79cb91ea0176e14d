"""Training and measuring Hamiltonian networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.errors import CheckpointError, ConfigError, NumericsError
from gossamer.runs.files import atomic

from .basis import Layout
from .data import Labelled
from .graph import Blocks, corrections, graph, masks, to_blocks
from .network import Shape, SPHNet
from .orbitals import coefficient_similarity, energy_error, matrix_error
from .paths import PathGate
from .scf import iterations
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
    model: SPHNet, data: Labelled, settings: Settings = Settings(), say: Callable[[str], None] = lambda line: None
) -> list[float]:
    """Train `model` in place; its gates go through the three phases. Returns the loss of every step.

    Raises:
        NumericsError: the loss became NaN. ConfigError: steps or batch below 1.
    """
    if settings.steps < 1 or settings.batch < 1:
        raise ConfigError(f"steps={settings.steps}, batch={settings.batch}: both start at 1")
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: (1 + math.cos(math.pi * n / settings.steps)) / 2)
    if any(not np.isfinite(s.fock).all() for s in data.samples):
        raise NumericsError("a Fock matrix of the training set holds NaN or infinity; remove the molecule")
    targets = corrections(data.samples)
    dtype, losses = model.element.weight.dtype, []
    model.train()
    for step in range(settings.steps):
        phase = settings.schedule.step(model, step, settings.steps)
        order = torch.randperm(len(targets), generator=generator)[: settings.batch].tolist()
        molecules = [data.samples[i].molecule for i in order]
        wanted = _cast(to_blocks([targets[i] for i in order], molecules, model.layout), dtype)
        found = model(graph(molecules, model.layout, dtype))
        loss = mae_mse(found, wanted, _cast(masks(molecules, model.layout), dtype))
        if not bool(loss.isfinite()):
            raise NumericsError(f"the loss is {loss.item()} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
        if step % 50 == 0:
            say(f"  step {step}, {phase}: loss {loss.item():.5f}")
    settings.schedule.step(model, settings.steps, settings.steps)
    return losses


def _cast(blocks: Blocks, dtype: torch.dtype) -> Blocks:
    return Blocks(blocks.diagonal.to(dtype), blocks.pairs.to(dtype))


def evaluate(model: SPHNet | None, data: Labelled, fields: int = 0) -> dict[str, float]:
    """Errors of a model, or of the initial guess alone where it is None.

    Args:
        fields: run the field of so many molecules from the prediction, and from the usual guess.
    Returns:
        "h_mae", "energy_mae" in microhartree, "similarity" (1 is perfect), and with fields "iterations" and
        "iterations_minao".
    """
    molecules = [s.molecule for s in data.samples]
    added = model.predict(molecules) if model is not None else [np.zeros_like(s.fock) for s in data.samples]
    rows: dict[str, list[float]] = {"h_mae": [], "energy_mae": [], "similarity": []}
    focks = [sample.guess + more for sample, more in zip(data.samples, added, strict=True)]
    for sample, fock in zip(data.samples, focks, strict=True):
        occupied = sample.molecule.occupied()
        rows["h_mae"].append(1e6 * matrix_error(fock, sample.fock))
        rows["energy_mae"].append(1e6 * energy_error(fock, sample.fock, sample.overlap, occupied))
        rows["similarity"].append(coefficient_similarity(fock, sample.fock, sample.overlap, occupied))
    figures = {name: float(np.mean(values)) for name, values in rows.items()}
    if fields:
        chosen = list(zip(data.samples[:fields], focks, strict=False))
        figures["iterations"] = float(np.mean([iterations(s.molecule, data.basis, f) for s, f in chosen]))
        figures["iterations_minao"] = float(np.mean([s.cycles for s, _ in chosen]))
    return figures


def save_model(path: str | Path, model: SPHNet) -> Path:
    """Write a trained network with its gates and settings (.safetensors). Freeze after loading, not before.

    Raises ConfigError for a frozen network.
    """
    from safetensors.torch import save_file

    if any(name.endswith("own.product.coefficients") for name in model.state_dict()):
        raise ConfigError("save the network before `freeze`; freezing is repeated after loading")
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    path = Path(path)
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"gossamer": json.dumps(model.settings())})
    return path


def load_model(path: str | Path) -> SPHNet:
    """Read what `save_model` wrote. Raises CheckpointError for a damaged or foreign file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path), "pt") as file:
            made: dict[str, Any] = json.loads((file.metadata() or {})["gossamer"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = SPHNet(Layout(made["basis"], tuple(made["elements"])), Shape(**made["shape"]))
        model.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no network of `gossamer molecules train` ({error})") from error
    settled = any("gate.kept" in name for name in tensors)
    for module in model.modules():
        if settled and isinstance(module, PathGate):
            module.phase = "fixed"  # what was saved is a choice already
    return model.eval()
