"""Checks that a comparison is fair and a run is sound: W rules warn, E rules are errors of the run.

After the themes of Liu & Wang 2023. Every rule is one function from the cards of a comparison to messages; `RULES`
is the one table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from gossamer.errors import ConfigError
from gossamer.report.card import ReportCard

Cards = Sequence[ReportCard]
Check = Callable[[Cards], Iterable[str]]


@dataclass(frozen=True)
class Rule:
    """What a rule asks, and the function that finds breaches."""

    asks: str
    check: Check


@dataclass(frozen=True)
class Finding:
    """One breach. `level` is "error" for E rules, else "warning"."""

    code: str
    message: str

    @property
    def level(self) -> Literal["error", "warning"]:
        return "error" if self.code.startswith("E") else "warning"

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


def lint(cards: Cards) -> list[Finding]:
    """All findings on a set of cards that are shown together, errors first, then by rule number.

    Raises:
        ConfigError: no card, or cards of different data sets.
    """
    data = sorted({card.data for card in cards})
    if len(data) != 1:
        raise ConfigError(f"lint compares cards of one data set, got {', '.join(data) or 'no card'}")
    return [Finding(code, message) for code, rule in RULES.items() for message in rule.check(cards)]


def _sparse(cards: Cards) -> list[ReportCard]:
    """The arms that mask something."""
    return [card for card in cards if card.role in ("method", "random_mask") and card.taxonomy.mask != "none"]


def _methods(cards: Cards) -> list[ReportCard]:
    return [card for card in cards if card.role == "method" and card.taxonomy.mask != "none"]


def _pairs(cards: Cards) -> Iterator[tuple[ReportCard, ReportCard]]:
    yield from combinations(cards, 2)


def _target(card: ReportCard) -> float | None:
    return card.sparsity_prunable if card.sparsity_prunable is not None else card.sparsity_target


def _equal_sparsity(a: ReportCard, b: ReportCard) -> bool:
    first, second = _target(a), _target(b)
    return first is not None and second is not None and abs(first - second) <= 0.005


def _unequal_length(cards: Cards) -> Iterator[str]:
    for a, b in _pairs(cards):
        if a.steps is None or b.steps is None:
            continue
        declared = a.steps * b.epochs_multiplier, b.steps * a.epochs_multiplier
        if abs(declared[0] - declared[1]) > 0.01 * max(declared):
            yield (
                f"{a.method} ran {a.steps} steps (x{a.epochs_multiplier:g}) and {b.method} {b.steps} "
                f"(x{b.epochs_multiplier:g}); train equally long or state the multiplier"
            )


def _unequal_protocol(cards: Cards) -> Iterator[str]:
    for a, b in _pairs(cards):
        for field in ("augmentation", "optimizer", "batch_size"):
            if getattr(a, field) != getattr(b, field):
                yield f"{a.method} and {b.method} differ in {field}: {getattr(a, field)}, {getattr(b, field)}"


def _few_seeds(cards: Cards) -> Iterator[str]:
    for card in cards:
        if len(card.seeds) < 3 or len(card.values) < 3:
            count = min(len(card.seeds), len(card.values))
            yield f"{card.method} has {count} seeds with a value; run at least 3 for a spread"


def _no_scope(cards: Cards) -> Iterator[str]:
    for card in _sparse(cards):
        if card.sparsity_target is not None and not card.sparsity_scope:
            yield f"{card.method} states {card.sparsity_target:.1%} sparsity of an unknown set of tensors"


def _flops_differ(cards: Cards) -> Iterator[str]:
    for a, b in _pairs(_sparse(cards)):
        fa, fb = a.inference_flops, b.inference_flops
        if fa and fb and _equal_sparsity(a, b) and max(fa, fb) > 1.1 * min(fa, fb):
            times = max(fa, fb) / min(fa, fb)
            yield f"{a.method} and {b.method} are equally sparse, but differ {times:.2f}x in inference FLOPs"


def _no_peak_density(cards: Cards) -> Iterator[str]:
    starts = {card.taxonomy.start for card in _sparse(cards)}
    if len(starts) > 1:
        for card in _sparse(cards):
            if card.training_flops is not None and card.peak_density is None:
                yield f"{card.method}: training costs of dense and sparse starts are compared without peak density"


def _speed_of_dense_kernels(cards: Cards) -> Iterator[str]:
    for card in cards:
        sparse = [t for t in card.latencies if not t.kernel.startswith("dense")]
        if card.speedup_claimed and card.speedup_claimed > 1 and not sparse:
            yield f"{card.method} claims {card.speedup_claimed:g}x speed, but only dense kernels were timed"


def _search_cost(cards: Cards) -> Iterator[str]:
    for card in cards:
        if card.search_rounds > 0 and card.search_flops is None:
            yield f"{card.method} searched its mask in {card.search_rounds} trainings without stating their cost"


def _no_random_mask(cards: Cards) -> Iterator[str]:
    controls = [card for card in cards if card.role == "random_mask"]
    for card in _methods(cards):
        if not any(_equal_sparsity(card, control) for control in controls):
            yield f"{card.method} has no random mask of equal layer ratios to compare with"


def _no_small_dense(cards: Cards) -> Iterator[str]:
    methods = _methods(cards)
    if methods and not any(card.role == "small_dense" for card in cards):
        names = ", ".join(card.method for card in methods)
        yield f"no small dense model of equal size stands beside {names}"


def _easy_sparsity(cards: Cards) -> Iterator[str]:
    levels = {card.method: level for card in _methods(cards) if (level := _target(card)) is not None}
    if levels and max(levels.values()) < 0.8:
        highest = max(levels.values())
        yield f"{', '.join(levels)}: the highest sparsity is {highest:.0%}; methods differ little below 80 %"


def _selected_on_test(cards: Cards) -> Iterator[str]:
    for card in cards:
        if card.selection == "test":
            yield f"{card.method} was selected on the test set; use a validation split or the last step"


def _not_static(cards: Cards) -> Iterator[str]:
    for card in cards:
        if card.taxonomy.mask == "static" and card.mask_flips:
            yield f"{card.method} calls its mask static, but {card.mask_flips} entries changed after it was set"


def _stale_batchnorm(cards: Cards) -> Iterator[str]:
    for card in _sparse(cards):
        if card.has_batchnorm and not card.trained_after_mask and not card.batchnorm_recalibrated:
            yield f"{card.method} changed its mask after training; recalibrate the batch normalisation"


def _ends(card: ReportCard) -> tuple[bool, bool] | None:
    return (card.layers[0].density == 1.0, card.layers[-1].density == 1.0) if card.layers else None


def _first_and_last(cards: Cards) -> Iterator[str]:
    for a, b in _pairs(_sparse(cards)):
        one, two = _ends(a), _ends(b)
        if one is not None and two is not None and one != two:
            place = "first" if one[0] != two[0] else "last"
            yield f"{a.method} and {b.method} treat the {place} layer differently (dense in one of them)"


def _weak_control(cards: Cards) -> Iterator[str]:
    for control in cards:
        if control.role != "dense" or control.estimate is None:
            continue
        for card in _methods(cards):
            if card.estimate is not None and _better(card, control):
                yield f"{card.method} beats its dense control; tune the control, or explain the gain"


def _better(card: ReportCard, control: ReportCard) -> bool:
    """Whether the means differ by more than both standard errors together."""
    a, b = card.estimate, control.estimate
    if a is None or b is None:
        return False
    gain = a.mean - b.mean if card.higher_is_better else b.mean - a.mean
    noise = sum((e.sd**2 / e.n for e in (a, b) if e.n > 1), 0.0) ** 0.5
    return gain > noise


def _counts_disagree(cards: Cards) -> Iterator[str]:
    """More non-zeros than the mask keeps, or over 1 % fewer: just grown weights may still be 0."""
    for card in cards:
        by_mask, by_value = card.nnz_by_mask, card.nnz_by_value
        if by_mask is not None and by_value is not None and not 0.99 * by_mask <= by_value <= by_mask:
            yield f"{card.method} keeps {by_mask} weights by its mask, but {by_value} are not zero"


def _masked_nonzero(cards: Cards) -> Iterator[str]:
    for card in cards:
        if card.masked_nonzero:
            yield f"{card.method}: {card.masked_nonzero} masked weights were not zero after a step"


def _masked_momentum(cards: Cards) -> Iterator[str]:
    for card in cards:
        if card.masked_momentum:
            yield f"{card.method}: {card.masked_momentum} masked weights still have optimiser state"


RULES: dict[str, Rule] = {
    "E1": Rule("non-zeros agree with the mask", _counts_disagree),
    "E2": Rule("masked weights are zero after every step", _masked_nonzero),
    "E3": Rule("masked weights have no optimiser state", _masked_momentum),
    "W1": Rule("equal training length, or a stated multiplier", _unequal_length),
    "W2": Rule("equal augmentation, optimiser and batch size", _unequal_protocol),
    "W3": Rule("at least three seeds", _few_seeds),
    "W4": Rule("sparsity has a scope", _no_scope),
    "W5": Rule("equal sparsity means FLOPs within 10 %", _flops_differ),
    "W6": Rule("training cost comes with peak density", _no_peak_density),
    "W7": Rule("speed is timed with sparse kernels", _speed_of_dense_kernels),
    "W8": Rule("the search for a ticket is paid for", _search_cost),
    "W9": Rule("a random mask of equal layer ratios is shown", _no_random_mask),
    "W10": Rule("a small dense model is shown", _no_small_dense),
    "W11": Rule("sparsity reaches 80 %", _easy_sparsity),
    "W12": Rule("nothing is selected on the test set", _selected_on_test),
    "W13": Rule("a static mask does not change", _not_static),
    "W14": Rule("batch normalisation follows the last mask", _stale_batchnorm),
    "W15": Rule("first and last layer are treated alike", _first_and_last),
    "W16": Rule("the dense control is well trained", _weak_control),
}
