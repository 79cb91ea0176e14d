"""Methods that are sequences of trainings: lists of resumable stages for `training.run_stages`.

The stages' callables here read and write `Memory` under the key "rewind" only.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..maths.schedules import geometric_densities
from ..sparsify.allocation import Allocation, Global
from ..sparsify.groups import Select
from ..sparsify.recipe import Recipe
from ..sparsify.scores import Magnitude
from ..sparsify.sparsifier import Sparsifier
from ..sparsify.updates import SetTo
from ..training.config import TrainConfig
from ..training.stages import Memory, Stage
from .static import dense


def magnitude_mask(name: str, density: float, allocation: Allocation, select: Select) -> Recipe:
    """One-shot magnitude pruning to `density` under a name of its own, mask fixed."""
    return Recipe(name, select, updates=(SetTo(Magnitude(), density, allocation),))


def _remember(model: nn.Module, memory: Memory) -> None:
    memory.values["rewind"] = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def _rewind(model: nn.Module, sparsifier: Sparsifier, memory: Memory) -> None:
    """All weights and statistics back to the remembered ones; then what the masks drop is zero again."""
    saved: Any = memory.values["rewind"]
    state: dict[str, Tensor] = model.state_dict()
    for name, value in saved.items():
        state[name].copy_(value)
    sparsifier.enforce()


def imp(
    sparsity: float,
    phases: int,
    train: TrainConfig,
    *,
    rewind: float = 0.0,
    rewinding: bool = True,
    retrain: TrainConfig | None = None,
    allocation: Allocation = Global(),
    select: Select = Select(),
) -> list[Stage]:
    """Iterative magnitude pruning: train, prune the smallest, rewind the rest, train again (Frankle & Carbin 2019).

    Args:
        sparsity: after the last phase; every phase keeps the same fraction of what is left.
        train: of the dense training, and of each phase unless `retrain` is given.
        rewind: fraction of the dense training after which weights are remembered (0: the initial weights; Frankle et
            al. 2020 rewind to an early step). Retraining then has the steps that are left.
        rewinding: False continues from the trained weights (iterative pruning with fine-tuning).
    Raises:
        ConfigError: phases < 1, sparsity or rewind out of range.
    """
    if not 0 <= rewind < 1:
        raise ConfigError(f"rewind is a fraction of the dense training in [0, 1), got {rewind}")
    densities = geometric_densities(1 - sparsity, phases)
    early = round(rewind * train.steps)
    stages = []
    if early:
        stages.append(Stage("early", dense(), train.model_copy(update={"steps": early}), on_exit=_remember))
    begin = None if early else _remember
    stages.append(Stage("dense", dense(), train.model_copy(update={"steps": train.steps - early}), on_enter=begin))
    again = retrain or train.model_copy(update={"steps": train.steps - early})
    for number, density in enumerate(densities, start=1):
        recipe = magnitude_mask(f"imp-{number}", density, allocation, select)
        stages.append(Stage(f"phase-{number}", recipe, again, on_start=_rewind if rewinding else None))
    return stages


def train_prune_finetune(
    sparsity: float,
    train: TrainConfig,
    finetune: TrainConfig,
    *,
    recipe: Recipe | None = None,
    allocation: Allocation = Global(),
    select: Select = Select(),
) -> list[Stage]:
    """Train dense, prune once, fine-tune under the fixed mask (Han et al. 2015).

    Args:
        recipe: of the fine-tuning; by default magnitude pruning to `sparsity`. `recipes.asp()` gives N:M.
    """
    pruned = recipe or magnitude_mask("magnitude", 1 - sparsity, allocation, select)
    return [Stage("dense", dense(), train), Stage("finetune", pruned, finetune)]
