"""What a run states about itself: the fields of a card that follow from its Sparsifier, counted, not claimed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gossamer.report.card import Layer
from gossamer.report.taxonomy import classify, dense_state, observe, verify
from gossamer.sparsify.accounting import disagreements, flops, layer_table, memory, sparsity_triple, training_flops
from gossamer.sparsify.estimators import Projected
from gossamer.sparsify.sparsifier import Sparsifier

_FORMATS = ("dense", "bitmap", "csr")


def run_fields(sparsifier: Sparsifier, example: Tensor, *, trained: bool = False) -> dict[str, Any]:
    """Fields of a `ReportCard` on sparsity, mask, cost, size and soundness of one run.

    Call it at the end of the run but before `finalize()`, which would repair a leak before it is seen.

    Args:
        sparsifier: of the finished run. example: one input batch (B, ...), to count FLOPs.
        trained: the run started from trained dense weights.
    """
    model, masks, recipe = sparsifier.model, sparsifier.entry_masks, sparsifier.recipe
    claimed = classify(recipe, trained)
    seen = observe(sparsifier.history, sparsifier.steps, dense_state=trained or dense_state(recipe))
    triple = sparsity_triple(model, masks)
    return {
        "taxonomy": claimed,
        "taxonomy_contradictions": verify(claimed, seen),
        "recipe": recipe.to_yaml(),
        "steps": sparsifier.steps,
        "sparsity_scope": "prunable",
        **{f"sparsity_{scope}": count.sparsity for scope, count in triple.items()},
        "mask_flips": seen.flips,
        "t_mask_fixed": min(1.0, seen.t_mask_fixed),
        "itop_rate": sparsifier.itop_rate(),
        "has_batchnorm": any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()),
        "trained_after_mask": seen.t_mask_fixed < 1.0,
        **_soundness(sparsifier),
        **_costs(sparsifier, example),
        "bytes_by_format": {name: memory(model, masks, name).total for name in _FORMATS},
    }


def _costs(sparsifier: Sparsifier, example: Tensor) -> dict[str, Any]:
    counts = flops(sparsifier.model, example, sparsifier.entry_masks)
    cost = training_flops(counts, sparsifier.history, sparsifier.steps, sparsifier.recipe)
    by_layer = {row.name: round(row.dense) for row in counts.layers}
    rows = [row for row in layer_table(sparsifier.model, sparsifier.entry_masks) if row.scope == "prunable"]
    return {
        "layers": [
            Layer(name=r.name, shape=list(r.shape), numel=r.total, kept=r.kept, flops=by_layer.get(r.name, 0))
            for r in rows
        ],
        "inference_flops": counts.sparse,
        "inference_flops_dense": counts.dense,
        "training_flops": cost.theoretical,
        "training_flops_dense": cost.dense,
        "training_flops_executed": cost.executed,
        "peak_density": cost.peak_density,
        "dense_gradient_steps": cost.dense_gradient_steps,
    }


@torch.no_grad()
def _soundness(sparsifier: Sparsifier) -> dict[str, int]:
    """Counts by mask and by value, and what leaked out of the mask."""
    masks = sparsifier.entry_masks
    wrong = disagreements(sparsifier.model, masks)
    if not masks:
        total = sparsity_triple(sparsifier.model)["prunable"].total
        return {"nnz_by_mask": total, "nnz_by_value": total, "masked_nonzero": 0, "masked_momentum": 0}
    by_mask = sum(int(mask.sum()) for mask in masks.values())
    return {
        "nnz_by_mask": by_mask,
        "nnz_by_value": by_mask + sum(row.nonzero - row.kept for row in wrong),
        "masked_nonzero": sum(row.leaked for row in wrong),
        "masked_momentum": _masked_momentum(sparsifier),
    }


def _masked_momentum(sparsifier: Sparsifier) -> int:
    """Non-zero entries of optimiser buffers outside the masks; dense masters may have some."""
    family = sparsifier.recipe.family
    if not (isinstance(family, Projected) and family.masks_gradient(1.0)):
        return 0
    parameters = dict(sparsifier.model.named_parameters())
    count = 0
    for name, mask in sparsifier.entry_masks.items():
        state = sparsifier.optimizer.state.get(parameters[name], {})
        buffers = (value for value in state.values() if isinstance(value, Tensor) and value.shape == mask.shape)
        count += sum(int(buffer[~mask].count_nonzero()) for buffer in buffers)
    return count
