"""One-shot pruning of a trained model: `gossamer.prune_`, by magnitude, Wanda or SparseGPT."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError, GossamerError, MaskError, unknown
from ..kernels.topk import topk_rows
from ..sparsify.allocation import Allocation, Global, Uniform, budget, keep_counts
from ..sparsify.groups import Select
from ..sparsify.patterns import NM, Block, Cols, Pattern, Rows, Unstructured
from .calibration import (
    SAMPLES,
    Batch,
    Forward,
    Statistics,
    Walk,
    at_rest,
    check_calibration,
    plain_forward,
    take_batches,
)
from .obs import DAMPING, sparsegpt
from .prunable import Layer, prunable
from .pruned import OneShot, PrunedLayer, Record, fingerprint

log = logging.getLogger(__name__)
ScoreName = Literal["magnitude", "wanda", "sparsegpt"]
SCORES: tuple[ScoreName, ...] = ("magnitude", "wanda", "sparsegpt")


def prune_(
    model: nn.Module,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    score: ScoreName = "magnitude",
    calibration: Iterable[Batch] | None = None,
    *,
    select: Select = Select(),
    allocation: Allocation = Uniform(),
    samples: int | None = SAMPLES,
    forward: Forward = plain_forward,
    damping: float = DAMPING,
    block: int = 128,
    progress: str | Path | None = None,
) -> OneShot:
    """Prune a trained model in place, once, without training.

    Layers are pruned in the order in which the model runs them, each one on what reaches it through the layers that
    are already pruned; those that see one input are measured together. Beside the model, memory holds the statistics
    of one layer, and one hidden state of every calibration sample.

    >>> net = torch.nn.Linear(8, 4)
    >>> prune_(net, 0.5).density
    0.5

    Args:
        model: any model of Linear and convolution layers; of Hugging Face, any model.
        sparsity: fraction of zeros; N:M patterns bring their own.
        pattern: "unstructured", "2:4" (any n:m), "block:4x1", "rows", "cols", or a Pattern.
        score: "magnitude" needs no data. "wanda": |w| times the norm of its input, ranked within each output
            (Sun et al. 2023). "sparsegpt": second-order, and the weights that stay are adjusted (Frantar & Alistarh
            2023).
        calibration: batches: tensors, (inputs, labels), or mappings of keywords; positions that an `attention_mask`
            hides do not count. A magnitude score does not read them.
        select: which layers; output embeddings and shared weights stay dense.
        allocation: of the density over the layers; the papers' is uniform.
        samples: calibration samples that are used at most, rounded up to a batch (the papers' 128); None: all.
        forward: (model, batch) -> anything, for models that are called in another way.
        damping, block: of SparseGPT (the authors' 0.01 and 128), see `obs.sparsegpt`.
        progress: folder that keeps every finished layer; the same call on the same model goes on there.
    Raises:
        ConfigError: a bad option, or no calibration data to iterate over. ShapeError: the pattern does not divide a
            named layer. NumericsError: NaN in weights or calibration data, by name. DataError: no samples, or a batch
            that the model does not take. CheckpointError: `progress` is of another model or other options.
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    pattern = as_pattern(pattern)
    layers, skipped = prunable(model, select)
    keep = _counts(layers, pattern, sparsity, allocation)
    if score == "sparsegpt" and isinstance(pattern, (Rows, Cols)):
        raise ConfigError(f"sparsegpt cannot prune whole {type(pattern).__name__.lower()}; take magnitude or wanda")
    record = Record(Path(progress)) if progress is not None else None
    settings = [sparsity, pattern, score, allocation, damping, block, samples]
    if score == "magnitude":
        if record is not None:
            record.open(fingerprint(settings, layers, []))
        steps: Iterable[tuple[tuple[Layer, ...], Any]] = (((layer,), None) for layer in layers)
        done = list(_prune(steps, pattern, keep, _by_magnitude, record))
        return _outcome(done, skipped, ())
    if samples is not None and samples < 1:
        raise ConfigError(f"calibration needs at least one sample, got samples={samples}")
    batches = take_batches(check_calibration(calibration, score), samples, layers[0].weight.device)
    if record is not None:
        record.open(fingerprint(settings, layers, batches))
    solve = partial(_by_sparsegpt, damping=damping, block=block) if score == "sparsegpt" else _by_wanda
    with at_rest(model):
        walk = Walk(model, layers, batches, forward)
        reason = "the model does not call it on the calibration data"
        skipped |= dict.fromkeys(walk.plan.idle, reason)
        if len(walk.plan.idle) == len(layers):
            raise ConfigError(f"nothing to prune in {type(model).__name__}: {skipped}")
        need = score == "sparsegpt"
        measured = ((unit.layers, partial(measure, need)) for unit, measure in walk)
        done = list(_prune(measured, pattern, keep, solve, record))
    return _outcome(done, skipped, tuple(walk.plan.chains))


_NM = re.compile(r"(\d+):(\d+)")
_BLOCK = re.compile(r"block:(\d+)x(\d+)")
_NAMED: dict[str, Pattern] = {"unstructured": Unstructured(), "rows": Rows(), "cols": Cols()}


def as_pattern(pattern: str | Pattern) -> Pattern:
    """A pattern by its name. Raises ConfigError for an unknown one.

    >>> as_pattern("2:4"), as_pattern("block:4x1")
    (NM(n=2, m=4, layout='channels_last', tail='error'), Block(rows=4, cols=1))
    """
    if not isinstance(pattern, str):
        return pattern
    if pattern in _NAMED:
        return _NAMED[pattern]
    if found := _NM.fullmatch(pattern):
        return NM(int(found[1]), int(found[2]))
    if found := _BLOCK.fullmatch(pattern):
        return Block(int(found[1]), int(found[2]))
    raise unknown("pattern", pattern, (*_NAMED, "2:4", "block:4x1"))


def _counts(layers: list[Layer], pattern: Pattern, sparsity: float | None, allocation: Allocation) -> dict[str, int]:
    """Entries that each layer keeps."""
    shapes = {layer.name: layer.shape for layer in layers}
    try:
        cells = {name: pattern.cell(shape) for name, shape in shapes.items()}
        fixed = {name: pattern.fixed(shape) for name, shape in shapes.items()}
    except GossamerError as error:
        culprit = next(layer.name for layer in layers if _refuses(pattern, layer.shape))
        raise type(error)(f"{culprit}: {error}; leave it out by Select(exclude=({culprit!r},))") from error
    if isinstance(pattern, NM):
        if sparsity is not None and abs(1 - pattern.n / pattern.m - sparsity) > 1e-6:
            raise ConfigError(f"{pattern.n}:{pattern.m} has sparsity {1 - pattern.n / pattern.m:g}, not {sparsity}")
        return {name: count for name, count in fixed.items() if count is not None}
    if sparsity is None:
        raise ConfigError("give the sparsity, a fraction of zeros in [0, 1)")
    if isinstance(allocation, Global):
        raise ConfigError("one-shot pruning goes layer by layer; for a global ranking use recipes.magnitude")
    return keep_counts(allocation, shapes, cells, 1 - sparsity)


def _refuses(pattern: Pattern, shape: tuple[int, ...]) -> bool:
    try:
        pattern.cell(shape)
        pattern.fixed(shape)
    except GossamerError:
        return True
    return False


# ---------------------------------------------------------------------- one layer

Solution = tuple[Tensor, Tensor, dict[str, Any]]  # oriented weight and mask, fields of PrunedLayer
Solver = Callable[[Layer, Pattern, int, Any], Solution]


def _prune(
    steps: Iterable[tuple[tuple[Layer, ...], Any]],
    pattern: Pattern,
    keep: dict[str, int],
    solve: Solver,
    record: Record | None,
) -> Iterator[tuple[PrunedLayer, Tensor]]:
    """Prune layer after layer, or take over what an earlier call recorded."""
    for number, (layers, measure) in enumerate(steps):
        earlier = record.load(number, layers) if record is not None else None
        if earlier is None:
            started = time.perf_counter()
            statistics = measure() if measure is not None else None
            results = []
            for layer in layers:
                row, mask = _prune_layer(layer, pattern, keep[layer.name], solve, statistics, started)
                results.append((row, mask))
                started = time.perf_counter()
            del statistics
            if record is not None:
                record.save(number, layers, results)
        else:
            results = earlier
        yield from results


@torch.no_grad()
def _prune_layer(
    layer: Layer, pattern: Pattern, keep: int, solve: Solver, statistics: Statistics | None, started: float
) -> tuple[PrunedLayer, Tensor]:
    oriented, mask, fields = solve(layer, pattern, keep, statistics)
    if not bool(mask.any()):
        raise MaskError(f"{layer.name} would be emptied; lower the sparsity or leave it out")
    mask = layer.oriented(mask).contiguous()
    layer.weight.copy_(layer.oriented(oriented))
    layer.weight.masked_fill_(~mask, 0.0)
    seconds = round(time.perf_counter() - started, 3)
    row = PrunedLayer(layer.name, int(mask.sum()), mask.numel(), seconds=seconds, **fields)
    asked = fields.get("damping")
    log.info("%s: %d of %d kept%s", row.name, row.kept, row.total, f", damping {asked:g}" if asked else "")
    return row, mask


def _by_magnitude(layer: Layer, pattern: Pattern, keep: int, statistics: None) -> Solution:
    weight = layer.oriented(layer.weight.detach())
    return weight, pattern.project(weight.abs(), keep), {}


def _by_wanda(layer: Layer, pattern: Pattern, keep: int, statistics: Statistics) -> Solution:
    """|w| times the 2-norm of its input column (Sun et al. 2023, eq. 1); unstructured: ranked in every output."""
    weight = layer.oriented(layer.weight.detach())
    matrices = weight.reshape(layer.groups, -1, statistics.squares.shape[-1])
    scores = (matrices.abs().double() * statistics.squares.sqrt()[:, None]).float()
    fields = {"dead": int((statistics.squares == 0).sum()), "samples": statistics.samples}
    if isinstance(pattern, Unstructured):
        rows = scores.reshape(weight.shape[0], -1)
        ends = [budget(keep / weight.numel(), (i + 1) * rows.shape[1]) for i in range(len(rows))]
        per_row = [end - begin for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        return weight, topk_rows(rows, per_row).reshape(weight.shape), fields
    return weight, pattern.project(scores.reshape(weight.shape), keep), fields


def _by_sparsegpt(
    layer: Layer, pattern: Pattern, keep: int, statistics: Statistics, *, damping: float, block: int
) -> Solution:
    """Each group of a convolution is a matrix of its own; the groups share the budget."""
    assert statistics.gram is not None
    weight = layer.oriented(layer.weight.detach())
    order = layer.order(pattern)
    matrices = weight.reshape(layer.groups, -1, len(order))
    new, masks, solved = (
        torch.zeros_like(matrices, dtype=torch.float64),
        torch.zeros_like(matrices, dtype=torch.bool),
        [],
    )
    size = matrices[0].numel()
    cell = pattern.cell(tuple(matrices[0].shape))
    for group in range(layer.groups):
        share = keep / weight.numel()
        count = (budget(share, (group + 1) * size // cell) - budget(share, group * size // cell)) * cell
        gram = statistics.gram[group][order][:, order]
        result = sparsegpt(
            matrices[group][:, order], gram, pattern, count, damping=damping, block=block, name=layer.name
        )
        new[group][:, order], masks[group][:, order] = result.weight, result.mask
        solved.append(result)
    used = max(result.damping for result in solved)
    if used > damping:
        log.warning("the Hessian of %s is singular: damping raised from %g to %g", layer.name, damping, used)
    fields = {
        "error": sum(result.error for result in solved) / len(solved),
        "damping": used,
        "dead": sum(result.dead for result in solved),
        "samples": statistics.samples,
    }
    return new.reshape(weight.shape), masks.reshape(weight.shape), fields


def _outcome(done: list[tuple[PrunedLayer, Tensor]], skipped: dict[str, str], chains: tuple[str, ...]) -> OneShot:
    return OneShot(tuple(row for row, _ in done), skipped, {row.name: mask for row, mask in done}, chains)
