"""The records of a published system: `Paper`, its `Claim`s, and what a claim measures."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gossamer.errors import ConfigError, unknown

if TYPE_CHECKING:
    from gossamer.sparsify.recipe import Recipe

Kind = Literal["asserted", "reported", "needs_gpu"]
KINDS: tuple[Kind, ...] = ("asserted", "reported", "needs_gpu")

# One number, a sentence, or a flat table of numbers by arm ("granet": 0.61, "rigl": 0.52).
Figure = float | str | Mapping[str, float] | None


@dataclass(frozen=True)
class Measured:
    """What one run of a claim found.

    Args:
        measured: the figure that is compared, or the arms' means by name.
        spread: its standard deviation or interval, over seeds; same form as `measured`.
        threshold: what `measured` had to reach.
        seeds: number of seeds behind the figure.
        holds: whether the claim holds; None where nothing is decided (most reported claims).
    """

    measured: Figure
    spread: Figure = None
    threshold: Figure = None
    seeds: int = 1
    holds: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; NaN and infinity become null."""
        return {
            "measured": _plain(self.measured),
            "spread": _plain(self.spread),
            "threshold": _plain(self.threshold),
            "seeds": self.seeds,
            "holds": None if self.holds is None else bool(self.holds),
        }


def _plain(figure: Figure) -> Any:
    if isinstance(figure, Mapping):
        return {str(name): _plain(value) for name, value in figure.items()}
    if figure is None or isinstance(figure, str):
        return figure
    return float(figure) if math.isfinite(figure) else None


@dataclass
class Context:
    """What a running claim may ask for.

    Args:
        seeds: seeds to run at most, numbered from 0.
        budget_s: seconds after which `each_seed` starts no further seed.
        quick: a smoke run: fewer seeds, figures are not recorded.
        workers: processes that may train at once.
        mutant: name of a deliberate fault (claims/mutants.py) that `recipe` plants, or None.
        say: where progress goes.
    """

    seeds: int = 3
    budget_s: float = 600.0
    quick: bool = False
    workers: int = 1
    mutant: str | None = None
    say: Callable[[str], None] = lambda line: None
    started: float = field(default_factory=time.monotonic)

    def each_seed(self, least: int = 3) -> Iterator[int]:
        """Seeds 0, 1, ... until `seeds` is reached or, after `least` of them, the budget would be exceeded.

        Only time stops it, never a result, so the figures stay unbiased. A quick run may stop after 2.
        """
        least = min(2, least) if self.quick else least
        for seed in range(self.seeds):
            spent = time.monotonic() - self.started
            if seed >= least and spent * (seed + 1) / seed > self.budget_s:
                self.say(f"time budget of {self.budget_s:.0f} s allows {seed} of {self.seeds} seeds")
                return
            yield seed

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe under test, with the mutant's fault planted where one is asked for."""
        if self.mutant is None:
            return recipe
        from gossamer.claims.mutants import mutate

        return mutate(recipe, self.mutant)


@dataclass(frozen=True)
class Claim:
    """One statement of a publication and the code that tests it here.

    Args:
        id: short name, unique within the paper.
        kind: "asserted" must hold here; "reported" prints figures and says in `why` what is not expected at
            this scale; "needs_gpu" gives the full-size command in `why` and runs its first steps.
        statement: what is claimed, one sentence.
        published: the published figure, or "none".
        why: why it is of this kind and where the threshold comes from.
        run: measures; pure but for progress.
        budget_s: seconds that a full run may take on one core.
        seeds: seeds of a full run.
        needs: data sets or packages without which it cannot run.
        mutants: names of faults with which it must not hold.
    Raises:
        ConfigError: an unknown kind, an empty text, or a budget or seed count that is not positive.
    """

    id: str
    kind: Kind
    statement: str
    published: str
    why: str
    run: Callable[[Context], Measured]
    budget_s: float = 60.0
    seeds: int = 3
    needs: tuple[str, ...] = ()
    mutants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of claim", self.kind, KINDS)
        for name in ("id", "statement", "published", "why"):
            if not getattr(self, name).strip():
                raise ConfigError(f"claim {self.id!r} needs a {name}")
        if not (self.budget_s > 0 and self.seeds > 0):
            raise ConfigError(f"claim {self.id!r}: budget_s={self.budget_s}, seeds={self.seeds}: both must be > 0")

    def as_json(self, found: Measured | None = None, why: str | None = None) -> dict[str, Any]:
        """The record that `reproduce --json` prints; the measured fields are null where nothing was found."""
        values = found.as_json() if found else Measured(None).as_json() | {"seeds": None}
        return {
            "id": self.id,
            "kind": self.kind,
            "statement": self.statement,
            "published": self.published,
            **values,
            "why": why or self.why,
        }


@dataclass(frozen=True)
class Paper:
    """A published system: where it was published, what it is, which modules implement it, what it claims.

    Args:
        slug: name on the command line, such as "random-pruning" (module `gossamer.papers.random_pruning`).
        code: address of the authors' code, or "none".
        kind: kind of sparsity, a few words.
        summary: two sentences of our own.
        modules: dotted names of what implements it.
    Raises:
        ConfigError: a slug that is no lower-case name, two claims of one id, or no claim.
    """

    slug: str
    title: str
    year: int
    venue: str
    code: str
    kind: str
    summary: str
    modules: tuple[str, ...]
    claims: tuple[Claim, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise ConfigError(f"slug {self.slug!r} must be lower-case words joined by '-'")
        ids = [claim.id for claim in self.claims]
        if not ids or len(set(ids)) != len(ids):
            raise ConfigError(f"paper {self.slug!r} needs claims with different ids, got {ids}")

    def claim(self, claim_id: str) -> Claim:
        """The claim of that id. Raises ConfigError with the nearest known ones."""
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise unknown(f"claim of {self.slug}", claim_id, [claim.id for claim in self.claims])
