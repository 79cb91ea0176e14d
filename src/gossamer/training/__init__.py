"""Training: one loop, tasks, losses, stages, and adapters to other people's loops.

>>> from gossamer.training import Classification, TrainConfig, fit                          # doctest: +SKIP
>>> result = fit(Classification(model), data, recipe, TrainConfig(steps=1000), run="out")  # doctest: +SKIP
"""

from .branches import Branches
from .config import Config, OptimConfig, TrainConfig, load_config
from .loop import fit
from .stages import Memory, Stage, run_stages
from .task import Classification, LanguageModelling, Reconstruction, Regression, Task

__all__ = [
    "Branches",
    "Classification",
    "Config",
    "LanguageModelling",
    "Memory",
    "OptimConfig",
    "Reconstruction",
    "Regression",
    "Stage",
    "Task",
    "TrainConfig",
    "fit",
    "load_config",
    "run_stages",
]
