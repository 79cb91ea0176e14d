"""What kind of method a method is, in five words, and whether a run agrees with them.

After the themes of Liu & Wang 2023 (a handbook on the vocabulary of sparse neural networks). Flags are not believed:
`observe` reads what a run did and `verify` names every contradiction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gossamer.errors import ConfigError, unknown
from gossamer.maths.schedules import Steps
from gossamer.sparsify.ensembles import GroupToGroup
from gossamer.sparsify.estimators import Projected
from gossamer.sparsify.patterns import NM, Block, Cols, Rows, Unstructured
from gossamer.sparsify.recipe import Recipe

# field -> allowed values with their meaning
VALUES: dict[str, dict[str, str]] = {
    "stage": {
        "none": "nothing is masked",
        "before": "the final mask is fixed before the weights are trained",
        "during": "the final mask is fixed while the weights are trained",
        "after": "the final mask is fixed on trained weights",
    },
    "start": {
        "dense": "the full weights exist as trainable state, or a dense gradient chooses the mask",
        "sparse": "never more than a sparse set of weights is held",
    },
    "mask": {
        "none": "no mask",
        "static": "set once and never changed",
        "dynamic": "changed several times during training",
    },
    "depends": {
        "nothing": "one mask for all inputs and times",
        "time": "the mask follows the training step",
        "input": "the mask follows the input (experts, activations, cache)",
    },
    "pattern": {
        "none": "no constraint",
        "unstructured": "any weight",
        "n:m": "n of every m consecutive weights",
        "block": "rectangular blocks",
        "vector": "parts of rows, columns or kernels",
        "channel": "channels, filters or neurons",
        "head": "attention heads",
        "layer": "whole layers or experts",
    },
}


@dataclass(frozen=True)
class Taxonomy:
    """Five answers about a method; `VALUES` holds what each may be.

    Raises:
        ConfigError: an unknown value; the message lists the allowed ones.

    >>> Taxonomy(stage="durng")
    Traceback (most recent call last):
    gossamer.errors.ConfigError: unknown stage 'durng'; did you mean 'during'? Known: after, before, during, none
    """

    stage: str = "none"
    start: str = "dense"
    mask: str = "none"
    depends: str = "nothing"
    pattern: str = "none"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in VALUES[field.name]:
                raise unknown(field.name, str(value), VALUES[field.name])

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


_BEFORE = Taxonomy("before", "sparse", "static", "nothing", "unstructured")
_FROM_GRADIENT = Taxonomy("before", "dense", "static", "nothing", "unstructured")
_GROWING = Taxonomy("during", "sparse", "dynamic", "time", "unstructured")
_GRADUAL = Taxonomy("during", "dense", "dynamic", "time", "unstructured")
_AFTER = Taxonomy("after", "dense", "static", "nothing", "unstructured")

# The published methods: recipes by their names, procedures, and kinds that no mask schedule describes.
TAXONOMIES: dict[str, Taxonomy] = {
    "dense": Taxonomy(),
    "random": _BEFORE,
    "magnitude": _BEFORE,
    "snip": _FROM_GRADIENT,
    "grasp": _FROM_GRADIENT,
    "synflow": _FROM_GRADIENT,
    "set": _GROWING,
    "rigl": _GROWING,
    "itop": _GROWING,
    "g2gnet": _GROWING,
    "granet": _GRADUAL,
    "gmp": _GRADUAL,
    "ste": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "sr_ste": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "mdgf_linear": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "mdgf_exponential": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "sdgf_stepwise": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "sdgf_geometric": Taxonomy("during", "dense", "dynamic", "time", "n:m"),
    "iss_p": _GRADUAL,
    "iss_h": _GRADUAL,
    "iss_r": _GRADUAL,
    "scratch": _BEFORE,
    "asp": Taxonomy("after", "dense", "static", "nothing", "n:m"),
    "train_prune_finetune": _AFTER,
    "imp": _AFTER,
    "mixture_of_experts": Taxonomy("none", "dense", "none", "input", "layer"),
    "kv_cache_pruning": Taxonomy("after", "dense", "dynamic", "input", "unstructured"),
}

_PATTERNS: dict[type, str] = {
    Unstructured: "unstructured",
    NM: "n:m",
    Block: "block",
    GroupToGroup: "block",
    Rows: "channel",
    Cols: "channel",
}


def classify(recipe: Recipe, trained: bool = False) -> Taxonomy:
    """The taxonomy that follows from the parts of a recipe.

    Args:
        recipe: any recipe; its main pattern counts, not the ones of single layers.
        trained: the recipe starts from trained dense weights (fine-tuning), not from initial ones.
    Raises:
        ConfigError: a pattern that has no place in the taxonomy.
    """
    if not recipe.updates:
        return Taxonomy()
    pattern = recipe.pattern(1.0) if isinstance(recipe.pattern, Steps) else recipe.pattern
    if type(pattern) not in _PATTERNS:
        raise unknown("pattern", type(pattern).__name__, [kind.__name__ for kind in _PATTERNS])
    moving = any(update.when is not None for update in recipe.updates)
    begins_dense = all(update.when is not None for update in recipe.updates)
    stage = "during" if moving else "after" if trained else "before"
    return Taxonomy(
        stage,
        "dense" if trained or begins_dense or dense_state(recipe) else "sparse",
        "dynamic" if moving else "static",
        "time" if moving else "nothing",
        _PATTERNS[type(pattern)],
    )


def dense_state(recipe: Recipe) -> bool:
    """Whether dense weights are trained behind the mask, or a dense gradient chooses the first mask."""
    asks = any(update.when is None and "batch" in update.needs for update in recipe.updates)
    family = recipe.family
    return asks or not (isinstance(family, Projected) and family.mask_grad)


@dataclass(frozen=True)
class Observed:
    """What a run did, read from its history.

    Args:
        peak_density: largest density of the masked weights at any moment of training.
        flips: mask entries changed after the first mask was set.
        changes: times at which some entry changed after that.
        t_mask_fixed: fraction of the run at which the last entry changed.
        dense_gradient_steps: steps that needed gradients of weights at 0.
        dense_state: full weights were trained behind the mask, or a dense gradient chose it.
    """

    peak_density: float
    flips: int
    changes: int
    t_mask_fixed: float
    dense_gradient_steps: int = 0
    dense_state: bool = False


def observe(history: Sequence[Mapping[str, Any]], steps: int, *, dense_state: bool = False) -> Observed:
    """Summarise the history of a Sparsifier.

    Args:
        history: rows {"step", "density", "flips", "dense_gradient_steps", ...}, step 0 first; `flips` counts the
            entries changed since the row before.
        steps: optimiser steps of the run.
        dense_state: of the recipe (see `dense_state`), or True where the run started from trained dense weights.
    Raises:
        ConfigError: an empty history, or steps < 1.
    """
    if not history or steps < 1:
        raise ConfigError(f"needs the history of a run of at least one step, got {len(history)} rows")
    changed = [row for row in history if row["flips"]]
    # leaving the dense mask for the first time sets the mask; only what follows are changes of it
    changes = changed[1:] if history[0]["density"] == 1.0 else changed
    return Observed(
        peak_density=max(float(row["density"]) for row in history),
        flips=sum(int(row["flips"]) for row in changes),
        changes=len(changes),
        t_mask_fixed=changed[-1]["step"] / steps if changed else 0.0,
        dense_gradient_steps=int(history[-1].get("dense_gradient_steps", 0)),
        dense_state=dense_state,
    )


def verify(claimed: Taxonomy, seen: Observed) -> list[str]:
    """Every contradiction between the flags and what a run did; empty when they agree.

    A mask that depends on the input cannot be seen in a history and is not checked.
    """
    if claimed.depends == "input":
        return []
    wrong = []
    dense = seen.peak_density >= 1.0 or seen.dense_state
    if (claimed.start == "dense") != dense:
        held = f"peak density {seen.peak_density:.3g}, dense state {seen.dense_state}"
        wrong.append(f"start is said to be {claimed.start}, but {held}")
    kind = "dynamic" if seen.changes else "static"
    if claimed.mask == "none" and (seen.t_mask_fixed or seen.peak_density < 1.0):
        wrong.append("no mask is claimed, but one was set")
    if claimed.mask != "none" and claimed.mask != kind:
        wrong.append(f"the mask is said to be {claimed.mask}, but {seen.flips} entries changed after it was set")
    if claimed.stage == "before" and seen.t_mask_fixed > 0:
        wrong.append(f"the mask is said to be fixed before training, but changed at {seen.t_mask_fixed:.2f}")
    if claimed.stage == "during" and seen.t_mask_fixed == 0:
        wrong.append("the mask is said to be fixed during training, but never changed in it")
    if (claimed.depends == "time") != (seen.changes > 0):
        wrong.append(f"the mask is said to depend on {claimed.depends}, but changed {seen.changes} times")
    return wrong
