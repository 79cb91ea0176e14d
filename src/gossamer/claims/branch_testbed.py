"""Protocol of the branch prediction claims: planted streams, real traces, a recorded program; one cell per result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gossamer.claims.cells import cell
from gossamer.claims.protocol import Context
from gossamer.data import find
from gossamer.domains.branch_prediction.encode import encode, play_float
from gossamer.domains.branch_prediction.fit import SMALLEST, Linear, fit_l1, penalty_path
from gossamer.domains.branch_prediction.identify import Search, SparseReport, find_sparse, samples
from gossamer.domains.branch_prediction.online import learn_online
from gossamer.domains.branch_prediction.predictors import PREDICTORS, TAGE, build
from gossamer.domains.branch_prediction.readers import read
from gossamer.domains.branch_prediction.record import record
from gossamer.domains.branch_prediction.reference import play
from gossamer.domains.branch_prediction.reference.side import overlay
from gossamer.domains.branch_prediction.side import Hybrid, Layout, SideTable
from gossamer.domains.branch_prediction.simulate import Result, simulate
from gossamer.domains.branch_prediction.streams import (
    Planted,
    coin,
    interleave,
    majority_after_noise,
    periodic,
    vote_after_noise,
)
from gossamer.domains.branch_prediction.trace import Trace

Row = dict[str, Any]
REAL = ("fp_1", "fp_2", "int_1", "int_2", "mm_1", "mm_2")
SPLIT, BUDGET = 0.5, 2048  # the share that is profiled; bytes of the side table
WEIGHTS = (5, 3, 3, 2, 1, 1)  # of a vote in which terms differ in importance
RIVALS = ("gshare", "perceptron", "perceptron-128", "hashed-perceptron", "tage-large", "tage-sc-l-large")


def _plant(report: SparseReport, mutant: str | None, seed: int) -> SparseReport:
    """The report with a fault: every model's weights moved to random positions, or all weights but one removed."""
    if mutant is None:
        return report
    rng = torch.Generator().manual_seed(seed)

    def broken(model: Linear) -> Linear:
        if mutant == "random_positions":
            return replace(model, weights=model.weights[torch.randperm(len(model.weights), generator=rng)])
        if mutant == "one_term":
            keep = model.weights.abs() == model.weights.abs().max()
            return replace(model, weights=model.weights * keep)
        return model

    findings = tuple(replace(f, model=broken(f.model)) if f.model else f for f in report.findings)
    return replace(report, findings=findings)


def _error(result: Result, pc: int) -> float:
    return next(1 - row.accuracy for row in result.by_branch() if row.pc == pc)


def planted(kind: str, seed: int) -> Planted:
    """The stream "majority" (three equal voters) or "vote" (`WEIGHTS`); 8000 rounds, gap 60, 5 % noise."""
    return majority_after_noise(seed=seed) if kind == "majority" else vote_after_noise(WEIGHTS, seed=seed)


def planted_row(kind: str, seed: int, mutant: str | None = None) -> Row:
    """Errors on the planted branch in the unseen half, its true and found positions, and storage.

    Keys: `found`, `true` (positions, in branches ago), `float`, `encoded` (the hybrid), `tage` and the rivals (errors),
    `bits` of the hybrid and of the rivals, `terms`.
    """

    def compute() -> Row:
        stream, base = planted(kind, seed), TAGE()
        report = _plant(find_sparse(stream.trace, base, branches=[stream.pc]), mutant, seed)
        plain = simulate(stream.trace, base, SPLIT)
        table = encode(report, BUDGET, Layout(max_terms=8))
        hybrid = Hybrid(base, table.side)
        rivals = {name: simulate(stream.trace, PREDICTORS[name], SPLIT) for name in RIVALS}
        model = report.findings[0].model
        return {
            "true": list(stream.positions),
            "found": [] if model is None else [k + 1 for k in model.support],
            "float": _error(play_float(report, plain), stream.pc),
            "encoded": _error(simulate(stream.trace, hybrid, SPLIT), stream.pc),
            "tage": _error(plain, stream.pc),
            **{name: _error(result, stream.pc) for name, result in rivals.items()},
            "bits": {"tage": base.bits, "encoded": hybrid.bits} | {name: r.bits for name, r in rivals.items()},
            "terms": sum(len(entry.positions) for entry in table.side.entries),
        }

    return cell(__name__, {"what": "planted", "kind": kind, "seed": seed, "mutant": mutant}, compute)


def nonzeros(seed: int, mutant: str | None = None) -> Row:
    """Non-zeros of every model on the way to the chosen one, `path`; largest KKT violation / lambda, `gap`."""

    def compute() -> Row:
        stream, search = planted("vote", seed), Search()
        profile = stream.trace.first(stream.trace.cut(SPLIT))
        data = samples(simulate(profile, TAGE()), stream.pc, search)
        if mutant == "no_search":
            models = [fit_l1(data.x, data.y, 100 * SMALLEST, rounds=3)]
        else:
            models = penalty_path(data.x, data.y, search.max_nonzero)
        gap = max(model.gap / model.penalty for model in models)
        return {"path": [len(model.support) for model in models], "gap": gap}

    return cell(__name__, {"what": "nonzeros", "seed": seed, "mutant": mutant}, compute)


def _harmless_streams(seed: int) -> dict[str, Trace]:
    loops = [periodic("T" * n + "N", 60_000 // n, 0x400000 + 16 * n) for n in (3, 7, 12)]
    biased = coin(60_000, 0.9, branches=6, seed=seed)
    return {
        "coins": coin(120_000, 0.5, branches=12, seed=seed),
        "biased": biased,
        "loops": interleave([*loops, biased], seed),
    }


def harmless_row(seed: int) -> Row:
    """Misses of TAGE, and of TAGE with whatever side table is found, where no correlation is long."""

    def compute() -> Row:
        row: Row = {}
        for name, trace in _harmless_streams(seed).items():
            report = find_sparse(trace, TAGE())
            side = encode(report, BUDGET).side
            plain, hybrid = simulate(trace, TAGE(), SPLIT), simulate(trace, Hybrid(TAGE(), side), SPLIT)
            row[name] = [plain.misses, hybrid.misses, len(side.entries)]
        return row

    return cell(__name__, {"what": "harmless", "seed": seed}, compute)


def identities(seed: int, mutant: str | None = None) -> dict[str, float]:
    """Branches that differ between computations that must agree: 0 everywhere, but for a fault."""
    stream = planted("vote", seed)
    report = find_sparse(stream.trace, TAGE(), branches=[stream.pc])
    side = encode(report, BUDGET, Layout(max_terms=8)).side
    short, small = stream.trace.first(3000), TAGE(4, 5, 3, 60, 7, 6)
    empty = Hybrid(small, SideTable(side.layout)).play(short)
    plain = build("bimodal", log_size=6) if mutant == "other_base" else small
    decoded = SideTable.from_bytes(side.layout, side.to_bytes(), len(side.entries))
    hits, base = side.hits(short), small.play(short)
    return {
        "an empty table is the base": float((empty != plain.play(short)).sum()),
        "no tagged table is bimodal": float(
            (TAGE(0, log_base=9).play(stream.trace) != build("bimodal", log_size=9).play(stream.trace)).sum()
        ),
        "the table decodes to itself": float(decoded != side),
        "native TAGE is the plain one": float((small.play(short) != play(small, short)).sum()),
        "native table is the plain one": float((side.overlay(short, base) != overlay(side, short, hits, base)).sum()),
        "bits beyond the budget": float(max(0, side.bits - 8 * BUDGET)),
    }


def online_row(seed: int) -> Row:
    """The online variant on the majority stream: error of the last quarter, non-zeros, share of the true positions."""

    def compute() -> Row:
        stream = planted("majority", seed)
        run = learn_online(stream.trace, stream.pc)
        last = run.right[-len(run.right) // 4 :]
        weights = np.abs(run.model.weights)
        true = weights[[p - 1 for p in stream.positions]].sum() / max(weights.sum(), 1e-12)
        count = int(np.count_nonzero(run.model.weights))
        return {"error": float(1 - last.mean()), "nonzero": count, "weight on true positions": float(true)}

    return cell(__name__, {"what": "online", "seed": seed}, compute)


def real_names() -> list[str]:
    """The real traces at hand. Raises DataError where there is none."""
    folder = find("branch-traces")
    return [name for name in REAL if (folder / f"{name}.bz2").is_file()]


def _real(name: str) -> Trace:
    return read(find("branch-traces", f"{name}.bz2") / f"{name}.bz2")


def real_rates(name: str, say: Callable[[str], None]) -> dict[str, int]:
    """Misses of every predictor of `PREDICTORS` on a whole real trace, and its branches."""

    def compute() -> Row:
        trace = _real(name)
        misses = {label: simulate(trace, predictor).misses for label, predictor in PREDICTORS.items()}
        return {"branches": len(trace), **misses}

    say(f"predictors on {name}")
    return cell(__name__, {"what": "rates", "trace": name}, compute)


def real_row(name: str, base: str, say: Callable[[str], None]) -> Row:
    """Misses on the unseen half of a real trace: baseline, float models, encoded tables, and a larger TAGE.

    Keys: `baseline`, `float`, `encoded` (the default layout), `terms <n>` (n terms at most), `blocked` (the default
    layout, and its branches allocate nothing in TAGE), `one table more` (TAGE of equal storage), `bits`, `entries`.
    """

    def compute() -> Row:
        trace, predictor = _real(name), PREDICTORS[base]
        assert isinstance(predictor, TAGE)
        report = find_sparse(trace, predictor)
        plain = simulate(trace, predictor, SPLIT)
        row: Row = {"baseline": plain.misses, "float": play_float(report, plain).misses}
        for terms in (8, 16):
            side = encode(report, BUDGET, Layout(max_terms=terms)).side
            row[f"terms {terms}"] = simulate(trace, Hybrid(predictor, side), SPLIT).misses
        side = encode(report, BUDGET).side
        row |= {"encoded": simulate(trace, Hybrid(predictor, side), SPLIT).misses, "entries": len(side.entries)}
        row |= {"bits": side.bits, "blocked": simulate(trace, Hybrid(predictor, side, True), SPLIT).misses}
        larger = replace(predictor, tables=predictor.tables + 1)
        return row | {"one table more": simulate(trace, larger, SPLIT).misses, "its bits": larger.bits - predictor.bits}

    say(f"sparse models for {base} on {name}")
    return cell(__name__, {"what": "real", "trace": name, "base": base}, compute)


def recorded_row(source: Path, argument: str) -> Row:
    """Misses on the unseen half of a recorded C program. Raises DataError where there is no gcc."""
    trace = record([source], [argument])
    report = find_sparse(trace, TAGE())
    side = encode(report, BUDGET).side
    row: Row = {
        label: simulate(trace, PREDICTORS[label], SPLIT).miss_rate for label in ("bimodal", "gshare-16", "tage")
    }
    hybrid = simulate(trace, Hybrid(TAGE(), side), SPLIT)
    return {"branches": len(trace), **row, "with side table": hybrid.miss_rate, "entries": len(side.entries)}


def column(ctx: Context, least: int, row: Callable[[int], Row]) -> list[Row]:
    """One row per seed."""
    rows = []
    for seed in ctx.each_seed(least=least):
        ctx.say(f"seed {seed}")
        rows.append(row(seed))
    return rows
