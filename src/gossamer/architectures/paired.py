"""Is a search better than chance? Arms that differ in nothing else, compared seed by seed, with a verdict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import ConfigError, unknown
from ..maths.statistics import Equivalence, Estimate, equivalence, mean_sd, paired_interval

Word = Literal["better", "worse", "equivalent", "no better than the control", "no verdict"]
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Arm:
    """One method over its seeds.

    Args:
        values: the metric of each seed, larger is better. seeds: in the same order.
        protocol: everything else that must be equal (recipe, epochs, data, sparsity), as JSON values.
        cost: what the search spent, for the table.
    """

    name: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    protocol: dict[str, Any] = field(default_factory=dict)
    cost: float = 0.0


@dataclass(frozen=True)
class Compared:
    """One arm against the control.

    Args:
        mean, sd: of the arm. difference: paired, with its 95 % interval; None for the control itself.
        tost: two one-sided tests within the margin. verdict: see `compare`.
    """

    arm: Arm
    mean: float
    sd: float
    difference: Estimate | None
    tost: Equivalence | None
    verdict: Word | None


def compare(arms: Sequence[Arm], control: str, margin: float = 0.5) -> list[Compared]:
    """Every arm against one of them, in the order given.

    The verdict is "equivalent" where two one-sided tests at 5 % place the difference within the margin, else
    "better" or "worse" where the 95 % interval of the paired difference excludes 0, else "no better than the
    control". A difference smaller than the margin is never called better or worse. Below three seeds there is no
    verdict, and a warning says so.

    Args:
        control: name of the arm to compare with. margin: the largest difference that does not matter, in the
            metric's unit (the library's 0.5 points).
    Raises:
        ConfigError: an unknown control, two arms of one name, or arms whose seeds or protocols differ (what differs
            is named); such a comparison would say nothing about the search.
    """
    named = {arm.name: arm for arm in arms}
    if control not in named:
        raise unknown("control", control, named)
    if len(named) < len(arms):
        raise ConfigError(f"two arms have the same name: {[arm.name for arm in arms]}")
    base = named[control]
    for arm in arms:
        _check_fair(arm, base)
    if len(base.seeds) < LEAST_SEEDS:
        warnings.warn(f"{len(base.seeds)} seeds allow no verdict; run at least {LEAST_SEEDS}", stacklevel=2)
    return [_against(arm, base, margin) for arm in arms]


def _check_fair(arm: Arm, base: Arm) -> None:
    if arm.seeds != base.seeds or len(arm.values) != len(arm.seeds):
        raise ConfigError(
            f"{arm.name} ran the seeds {arm.seeds} ({len(arm.values)} values), {base.name} {base.seeds}: "
            "paired arms need the same seeds"
        )
    for key in {*arm.protocol, *base.protocol}:
        if arm.protocol.get(key) != base.protocol.get(key):
            raise ConfigError(
                f"{arm.name} and {base.name} differ in {key!r}: {arm.protocol.get(key)!r} and "
                f"{base.protocol.get(key)!r}; arms of one comparison share their protocol"
            )


def _against(arm: Arm, base: Arm, margin: float) -> Compared:
    mean, sd = mean_sd(arm.values)
    if arm is base:
        return Compared(arm, mean, sd, None, None, None)
    difference = paired_interval(arm.values, base.values)
    if len(arm.seeds) < LEAST_SEEDS:
        return Compared(arm, mean, sd, difference, None, "no verdict")
    tost = equivalence(arm.values, base.values, margin)
    return Compared(arm, mean, sd, difference, tost, _verdict(difference, tost, margin))


def _verdict(difference: Estimate, tost: Equivalence, margin: float) -> Word:
    if tost.equivalent:
        return "equivalent"
    if abs(difference.mean) < margin or difference.low <= 0 <= difference.high:
        return "no better than the control"
    return "better" if difference.mean > 0 else "worse"
