"""`gossamer.unlearn`: one call for a deletion request."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .audit import Audit, audit
from .masks import Job, Masks, resolve_masks
from .measure import Figures, check_weights, measure
from .methods import Method, make_method, settings
from .split import ForgetSplit


def unlearn(
    model: nn.Module,
    forget: Any,
    retain: Any = None,
    method: str | Method = "l1",
    *,
    test: Any = None,
    whole_classes: Sequence[int] = (),
    masks: Masks | str | None = "zeros",
    references: Mapping[str, nn.Module | Figures] | nn.Module | Figures | None = None,
    seed: int = 0,
    device: str = "auto",
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> tuple[nn.Module, Audit]:
    """Make a classifier forget some of its training samples, and say how well that went.

    >>> model, report = unlearn(model, (x1, y1), (x2, y2), method="l1", gamma=2e-3)    # doctest: +SKIP
    >>> report.save("out/request-17")                                                   # doctest: +SKIP

    Args:
        model: inputs -> logits (n, classes). It is not changed; the result is another.
        forget: samples to forget: `Batches`, a pair of tensors (inputs, labels), a dataset of (input, label) items;
            or a `ForgetSplit`, which then stands for `retain`, `test` and `whole_classes` too.
        retain: the training samples that stay.
        method: "retrain", "ft" (fine-tune), "ga" (gradient-ascent), "rl" (random-label), "ff" (fisher),
            "iu" (influence), "l1" (l1-sparse), or a value such as `L1Sparse(gamma=2e-3)`. Rates and penalties are the
            paper's, which suit some thousand steps; with few steps they must be larger.
        test: samples never trained on, for test accuracy and the membership attack (at least 20).
        whole_classes: classes that are meant to vanish from `retain`.
        masks: which weights stay 0: "zeros" what is exactly 0 in Linear and convolution weights, a mapping of masks
            (`OneShot.masks`, `load_sparsity`), or None.
        references: retrained models to measure the gap to, or their figures (the `after` of their audits), the one of
            the same sparsity first; a single one counts as "retrain".
        seed: of order, noise, labels and new weights. device: "auto", "cpu" or "cuda", for methods that train.
        run, resume: folder of the training, to go on after an interruption (methods that train).
        options: settings of the method.
    Returns:
        the new model and its `Audit`.
    Raises:
        DataError: an empty set, a class that vanishes unasked, too few test samples. ConfigError: an unknown method or
            setting (the nearest are named), a value out of range. NumericsError: NaN in model, data or loss.
        MaskError, ShapeError: masks that are not this model's.
    Source: Jia et al. 2023, "Model Sparsity Can Simplify Machine Unlearning".
    """
    chosen = make_method(method, options)
    split = forget if isinstance(forget, ForgetSplit) else ForgetSplit.of(forget, retain, test, whole_classes)
    check_weights(model)
    kept = resolve_masks(model, masks)
    before = measure(model, split, seed=seed)
    job = Job(kept, seed, device, Path(run) if run is not None else None, resume, progress)
    started = time.perf_counter()
    made = chosen.apply(copy.deepcopy(model), split, job)
    seconds = time.perf_counter() - started
    check_weights(made)
    named = {"retrain": references} if isinstance(references, nn.Module | Figures) else dict(references or {})
    report = audit(
        made,
        model,
        split,
        method=chosen.name,
        settings=settings(chosen),
        seed=seed,
        seconds=seconds,
        masks=kept,
        references=named,
        before=before,
    )
    return made, report
