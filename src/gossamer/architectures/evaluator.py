"""Counted evaluation: every searcher of the room asks here, so that budgets are equal and nothing is paid twice."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import CheckpointError, ConfigError, GossamerError, NumericsError, ShapeError
from ..runs.files import write_json
from .space import Architecture, SearchSpace

Goal = Literal["min", "max"]
Score = Callable[[Architecture], float | Sequence[float]]


class BudgetSpentError(GossamerError, RuntimeError):
    """The evaluations that a search was granted are used up."""


@dataclass(frozen=True)
class Evaluation:
    """One paid evaluation: the architecture and its objective, or objectives."""

    architecture: Architecture
    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The first objective."""
        return self.values[0]


class Evaluator:
    """Scores architectures of one space, remembers every score, and stops at a budget.

    An architecture that was scored before is answered from memory and costs nothing.

    Args:
        space: what may be asked for; anything else is an error before it costs.
        score: architecture -> one number, or always the same number of numbers (several objectives).
        budget: distinct architectures that may be scored, >= 1.
        goal: "min" or "max" of the objective; one word per objective where there are several.
        file: JSON file that keeps the evaluations; one that exists is read, and the search goes on behind it.
        allow_nan: record NaN instead of raising; NaN is never the best.
    Raises:
        ConfigError: budget < 1, an unknown goal. CheckpointError: a file of another space, or a damaged one.
    """

    def __init__(
        self,
        space: SearchSpace,
        score: Score,
        budget: int,
        *,
        goal: Goal | tuple[Goal, ...],
        file: str | Path | None = None,
        allow_nan: bool = False,
    ) -> None:
        if budget < 1:
            raise ConfigError(f"a search needs a budget of at least 1 evaluation, got {budget}")
        self.goals: tuple[Goal, ...] = (goal,) if isinstance(goal, str) else tuple(goal)
        if not self.goals or set(self.goals) - {"min", "max"}:
            raise ConfigError(f"goal must be 'min' or 'max' for each objective, got {goal!r}")
        self.space, self.score, self.budget = space, score, budget
        self.allow_nan = allow_nan
        self.history: list[Evaluation] = []
        self.asked = 0
        self._known: dict[Architecture, Evaluation] = {}
        self._file = None if file is None else Path(file)
        if self._file is not None and self._file.exists():
            self._read(self._file)

    @property
    def spent(self) -> int:
        """Evaluations paid for."""
        return len(self.history)

    @property
    def remaining(self) -> int:
        """Evaluations left."""
        return max(0, self.budget - self.spent)

    def knows(self, architecture: Architecture) -> bool:
        """Whether asking for it is free."""
        return architecture in self._known

    def __call__(self, architecture: Architecture) -> float:
        """The (first) objective of an architecture.

        Raises:
            BudgetSpentError: it is new and nothing is left. NumericsError: its objective is NaN or infinite; the
                architecture is named. ShapeError: another number of objectives than `goal` has.
        """
        return self.evaluate(architecture).value

    def evaluate(self, architecture: Architecture) -> Evaluation:
        """The same with all objectives."""
        self.asked += 1
        if architecture not in self._known:
            self._may_pay(architecture)
            self.record(architecture, self.score(architecture))
        return self._known[architecture]

    def _may_pay(self, architecture: Architecture) -> None:
        self.space.check(architecture)
        if not self.remaining:
            raise BudgetSpentError(f"the budget of {self.budget} evaluations is spent; raise it to go on")

    def record(self, architecture: Architecture, found: float | Sequence[float]) -> Evaluation:
        """Enter a score that was computed elsewhere (another process); it counts against the budget once."""
        if architecture in self._known:
            return self._known[architecture]
        self._may_pay(architecture)
        values = tuple(map(float, found)) if isinstance(found, Sequence) else (float(found),)
        if len(values) != len(self.goals):
            raise ShapeError(f"got {len(values)} objectives for {len(self.goals)} goals {self.goals}")
        sick = [v for v in values if not math.isfinite(v)]
        if sick and not (self.allow_nan and all(map(math.isnan, sick))):
            raise NumericsError(f"the objective of {self.space.describe(architecture)} is {sick[0]}")
        made = Evaluation(architecture, values)
        self._known[architecture] = made
        self.history.append(made)
        if self._file is not None:
            self.save()
        return made

    def _key(self, evaluation: Evaluation) -> float:
        """The first objective with larger better, NaN last."""
        value = evaluation.value if self.goals[0] == "max" else -evaluation.value
        return -math.inf if math.isnan(value) else value

    @property
    def best(self) -> Evaluation:
        """The best by the first objective, the earliest of equal ones.

        Raises:
            ConfigError: nothing was evaluated. NumericsError: everything was NaN.
        """
        if not self.history:
            raise ConfigError("nothing was evaluated yet, so nothing is best")
        found = max(self.history, key=self._key)
        if math.isnan(found.value):
            raise NumericsError(f"the score of all {self.spent} evaluated architectures is NaN; check the score")
        return found

    def trajectory(self) -> list[float]:
        """The best first objective after each evaluation (NaN until one is a number)."""
        out: list[float] = []
        best = -math.inf
        sign = 1 if self.goals[0] == "max" else -1
        for evaluation in self.history:
            best = max(best, self._key(evaluation))
            out.append(math.nan if best == -math.inf else sign * best)
        return out

    # ------------------------------------------------------------------ file

    def save(self, file: str | Path | None = None) -> None:
        """Write all evaluations; NaN becomes null."""
        path = Path(file) if file is not None else self._file
        if path is None:
            raise ConfigError("name a file to save the evaluations in")
        rows = [
            {
                "architecture": self.space.describe(e.architecture),
                "values": [None if math.isnan(v) else v for v in e.values],
            }
            for e in self.history
        ]
        names = [slot.name for slot in self.space.slots]
        write_json(path, {"version": 1, "slots": names, "goals": self.goals, "evaluations": rows})

    def _read(self, path: Path) -> None:
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if tuple(kept["goals"]) != self.goals:
                raise ConfigError(f"it has the goals {kept['goals']}, this search {self.goals}")
            for row in kept["evaluations"]:
                architecture = self.space.parse(row["architecture"])
                values = tuple(math.nan if v is None else float(v) for v in row["values"])
                self._known[architecture] = Evaluation(architecture, values)
                self.history.append(self._known[architecture])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} holds no evaluations of {self.space.name}: {error}") from error
        if self.spent > self.budget:
            warnings.warn(f"{path} holds {self.spent} evaluations, more than the budget of {self.budget}", stacklevel=3)
