"""What a plan says about itself. Needs neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_NAMES = 3  # of places that one reason for a break lists


@dataclass
class LayerReport:
    """One step of a plan.

    Attributes:
        layer: its name in the model.
        kind: conv 3x3, linear, depthwise, add, ...
        runs: the format and kernel, such as "block 8", "csr_panel", "dense", "torch".
        density: kept fraction of the weights; None where there are none.
        expected_us: time of this candidate when it was chosen, in microseconds for the example's batch.
        dense_us: time of the best dense candidate then.
        measured_us: time in the finished plan.
        why: why it runs dense or through torch; "" where it runs sparse.
    """

    layer: str
    kind: str
    runs: str
    density: float | None = None
    expected_us: float | None = None
    dense_us: float | None = None
    measured_us: float | None = None
    why: str = ""


@dataclass
class PlanReport:
    """Layers, and the whole network against its peers; `str` gives a table.

    Attributes:
        layers: one entry for each step.
        runs: "plan", or the peer that was faster: torch eager, torch channels_last, onnxruntime.
        milliseconds: of the whole network for the example, by way of running it.
        breaks: places where the plan leaves its native steps, with reasons.
        difference: of the plan's output for the example from torch's, by the largest output.
        threads, level, batch: under which it was measured.
    """

    layers: list[LayerReport] = field(default_factory=list)
    runs: str = "plan"
    milliseconds: dict[str, float] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)
    threads: int = 1
    level: str = ""
    batch: int = 1
    difference: float | None = None

    @property
    def speedup(self) -> float | None:
        """Time of the fastest peer by time of what runs; None when nothing was compared."""
        peers = [ms for name, ms in self.milliseconds.items() if name != "plan"]
        own = self.milliseconds.get(self.runs)
        return min(peers) / own if peers and own else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanReport:
        fields = dict(data)
        fields["layers"] = [LayerReport(**layer) for layer in fields["layers"]]
        return cls(**fields)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "kind", "runs", "density", "expected us", "dense us", "measured us", "why not sparse")
        ]
        for r in self.layers:
            numbers = (_number(r.density, 3), *(_number(t, 1) for t in (r.expected_us, r.dense_us, r.measured_us)))
            rows.append((r.layer, r.kind, r.runs, *numbers, r.why))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += ["", f"runs: {self.runs} ({self.level}, {self.threads} thread(s), batch {self.batch}){self._gain()}"]
        lines += [f"  {name}: {ms:.3f} ms" for name, ms in sorted(self.milliseconds.items(), key=lambda item: item[1])]
        if self.difference is not None:
            lines.append(f"the plan's output differs from torch's by {self.difference:.1e} of the largest")
        lines += [f"break: {reason}" for reason in joined(self.breaks)]
        return "\n".join(lines)

    def _gain(self) -> str:
        if self.runs != "plan" or self.speedup is None:
            return ""
        return f", {self.speedup:.2f} times as fast as the fastest peer"


def joined(breaks: list[str]) -> list[str]:
    """Places with the same reason in one line."""
    places: dict[str, list[str]] = {}
    for text in breaks:
        place, _, reason = text.rpartition(": ")
        places.setdefault(reason, []).append(place)
    return [
        f"{', '.join(dict.fromkeys(names[:MOST_NAMES]))}{' ...' if len(names) > MOST_NAMES else ''}: {reason}"
        f"{f' ({len(names)} times)' if len(names) > 1 else ''}".removeprefix(": ")
        for reason, names in places.items()
    ]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
