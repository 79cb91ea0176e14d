"""The audit: what was asked, what was done, what the model does now, and how far that is from a retrained one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import __version__
from ...runs.files import write_json
from .measure import Figures, digests, measure
from .split import ForgetSplit

FORMAT, VERSION = "gossamer-unlearning-audit", 1
_MOVED = 1.0  # points of UA below which nothing was forgotten
_COST = 5.0  # points of RA or TA above which the rest suffered


@dataclass(frozen=True)
class Audit:
    """The record of one request.

    Attributes:
        method, settings, seed: what was run. scenario: what was asked.
        samples: sizes of the sets. request: hash of all forgotten inputs, whatever their order.
        copies: retained samples whose input equals a forgotten one bit for bit.
        density: kept share of the weights that a mask limits, 1.0 where none is. leaked: masked weights that are not 0.
        before, after: figures of the model as it came and as it went.
        references: name -> figures of retrained models, the first of the same sparsity ("retrain").
        remarks: what a reader should know, in sentences.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    scenario: str
    samples: dict[str, int]
    request: str
    copies: int
    density: float
    leaked: int
    before: Figures
    after: Figures
    references: dict[str, Figures] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def gaps(self) -> dict[str, float]:
        """Distance of the result to each retrained model, in points."""
        return {name: self.after.gap(figures) for name, figures in self.references.items()}

    def arms(self) -> dict[str, Figures]:
        """Every model's figures by its name, the result second."""
        return {"before": self.before, self.method: self.after, **self.references}

    def as_json(self) -> dict[str, Any]:
        """The whole record as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "gossamer": __version__,
            "torch": torch.__version__,
            **{name: getattr(self, name) for name in ("method", "settings", "seed", "scenario", "samples", "request")},
            **{name: getattr(self, name) for name in ("copies", "density", "leaked")},
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "references": {name: figures.as_json() for name, figures in self.references.items()},
            "gaps": self.gaps,
            "remarks": list(self.remarks),
        }

    def rows(
        self,
    ) -> list[tuple[str, float | None, float | None, float | None, float | None, float | None, float | None]]:
        """Rows of a table: name, UA, MIA, RA, TA, gap of the result to it, seconds."""
        return [(name, f.ua, f.mia, f.ra, f.ta, self.gaps.get(name), f.seconds) for name, f in self.arms().items()]

    def __str__(self) -> str:
        head = f"{'':16}{'UA':>8}{'MIA':>8}{'RA':>8}{'TA':>8}{'gap':>8}{'seconds':>10}"
        lines = [f"{self.scenario}; {self.method}", head]
        for name, *values, seconds in self.rows():
            cells = "".join(f"{'–' if v is None else format(v, '.1f'):>8}" for v in values)
            lines.append(f"{name:16}{cells}{'–' if seconds is None else format(seconds, '.2f'):>10}")
        return "\n".join([*lines, *(f"note: {remark}" for remark in self.remarks)])

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `audit.json` and the page `audit.html` into a folder; returns their paths."""
        from .page import write_page

        folder = Path(folder)
        write_json(folder / "audit.json", self.as_json())
        return folder / "audit.json", write_page(folder / "audit.html", self)


def audit(
    model: nn.Module,
    original: nn.Module,
    split: ForgetSplit,
    *,
    method: str = "unknown",
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    masks: Mapping[str, torch.Tensor] | None = None,
    references: Mapping[str, nn.Module | Figures] | None = None,
    before: Figures | None = None,
) -> Audit:
    """The audit of a model that was made to forget, by this library or any other.

    Args:
        model, original: after and before. method, settings, seconds: what is to be written about the way.
        masks: that the model should keep to. before: figures of `original` where they are known.
        references: name -> model retrained without the forget set, or its figures (the `after` of its audit); first
            the one of the same sparsity.
    Raises:
        NumericsError: NaN in data or answers. DataError: too few samples for the membership attack.
    """
    masks = masks or {}
    parameters = dict(model.named_parameters())
    leaked = sum(int(parameters[n].detach()[~m.to(parameters[n].device)].count_nonzero()) for n, m in masks.items())
    total = sum(mask.numel() for mask in masks.values())
    gone = digests(split.forget)
    known = set(gone)
    figures = before or measure(original, split, seed=seed)
    after = measure(model, split, seconds, seed)
    compared = {
        name: other if isinstance(other, Figures) else measure(other, split, seed=seed)
        for name, other in (references or {}).items()
    }
    copies = sum(digest in known for digest in digests(split.retain))
    sizes = {"forget": split.forget.samples, "retain": split.retain.samples}
    return Audit(
        method=method,
        settings=dict(settings or {}),
        seed=seed,
        scenario=split.scenario,
        samples=sizes | ({"test": split.test.samples} if split.test else {}),
        request=hashlib.sha256(b"".join(sorted(gone))).hexdigest(),
        copies=copies,
        density=sum(int(mask.sum()) for mask in masks.values()) / total if total else 1.0,
        leaked=leaked,
        before=figures,
        after=after,
        references=compared,
        remarks=tuple(_remarks(method, figures, after, compared, copies, leaked)),
    )


def _remarks(
    method: str, before: Figures, after: Figures, references: Mapping[str, Figures], copies: int, leaked: int
) -> Iterator[str]:
    if not references and method != "retrain":
        yield (
            "No retrained model was given, so the gap is unknown: not the highest UA and MIA are best, but those of "
            "retraining."
        )
    wanted = next(iter(references.values())).ua if references else 100.0
    if after.ua - before.ua < _MOVED <= wanted - before.ua and method != "retrain":
        yield (
            f"UA moved by {after.ua - before.ua:.1f} points only: little was forgotten. With few optimiser steps the "
            "paper's rates and penalties are too small; raise them, or take more epochs."
        )
    for name, word in (("ra", "retained"), ("ta", "test")):
        was, now = getattr(before, name), getattr(after, name)
        if was is not None and now is not None and was - now > _COST:
            yield (
                f"Accuracy on {word} samples fell by {was - now:.1f} points; a model that is bad at everything forgets "
                "trivially."
            )
    if copies:
        yield f"{copies} retained samples are bit for bit equal to forgotten ones: what they teach stays."
    if leaked:
        yield f"{leaked} masked weights are not 0."
