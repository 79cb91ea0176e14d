"""Running the claims of a paper, and listing all papers with what was last measured."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gossamer import papers
from gossamer.claims import store
from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.errors import ConfigError, DataError, MissingExtra

log = logging.getLogger(__name__)

HOLDS, FAILS, COULD_NOT_RUN = 0, 1, 3  # exit codes; 2 is bad usage

# Packages that a claim may need, with the extra that brings them; any other need is a data set.
EXTRAS = {
    "matplotlib": "report",
    "jinja2": "report",
    "transformers": "hf",
    "onnxruntime": "export",
    "ot": "transport",
    "pymoo": "search",
    "torch_geometric": "graphs",
    "highspy": "dynamics",
    "e3nn": "molecules",
    "pyscf": "molecules",
    "skimage": "sparse_coding",
    "PIL": "superres",
}


def reproduce(
    slug: str,
    seeds: int | None = None,
    quick: bool = False,
    *,
    claims: tuple[str, ...] = (),
    workers: int = 1,
    record: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Run the claims of one paper.

    Args:
        slug: the paper. seeds: seeds of every claim, instead of each claim's own number.
        quick: two seeds; a smoke run.
        claims: ids to run; empty: all. workers: processes that may train at once; figures do not depend on it.
        record: folder for the record of a full run; None: `results/` of a checkout, nowhere when installed.
        say: receives one line of progress per claim.
    Returns:
        {"slug", "holds", "seconds", "claims": [...]}; `holds` is None where an asserted claim could not run
        and none failed. Only a full run (all claims, own seeds, not quick) that missed nothing is recorded.
    Raises:
        ConfigError: unknown paper or claim, or seeds < 1.
    """
    paper = papers.load(slug)
    if seeds is not None and seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    chosen = [paper.claim(name) for name in claims] or list(paper.claims)
    started = time.monotonic()
    rows = [_run_one(claim, seeds, quick, workers, say) for claim in chosen]
    outcome = {
        "slug": slug,
        "holds": _verdict(rows),
        "seconds": round(time.monotonic() - started, 1),
        "claims": rows,
    }
    full = not quick and seeds is None and not claims and all(row["seeds"] is not None for row in rows)
    if full and (record is not None or store.in_checkout()):
        path = store.write_result(outcome, papers.PAPERS[slug], record)
        say(f"recorded in {path}")
    return outcome


def _run_one(claim: Claim, seeds: int | None, quick: bool, workers: int, say: Callable[[str], None]) -> dict[str, Any]:
    count = seeds or (min(2, claim.seeds) if quick else claim.seeds)
    say(f"{claim.id}: {claim.statement}")
    try:
        check_needs(claim.needs)
        found = claim.run(Context(count, claim.budget_s, quick, workers, say=say))
    except (DataError, MissingExtra) as error:
        say(f"{claim.id}: could not run: {error}")
        return claim.as_json(why=f"could not run: {error}")
    except Exception as error:
        log.exception("claim %s failed with an error", claim.id)
        broken = Measured(None, seeds=count, holds=False)
        return claim.as_json(broken, why=f"failed with {type(error).__name__}: {error}")
    row = claim.as_json(found)
    say(f"{claim.id}: {row['measured']} +- {row['spread']}, threshold {row['threshold']}: {_word(found)}")
    return row


def _word(found: Measured) -> str:
    return {True: "holds", False: "does not hold", None: "reported"}[found.holds]


def check_needs(needs: tuple[str, ...]) -> None:
    """Raise MissingExtra or DataError naming the first of `needs` (packages, data sets) that is absent."""
    for need in needs:
        if need in EXTRAS:
            if find_spec(need) is None:
                raise MissingExtra(need, EXTRAS[need])
        else:
            from gossamer.data import find

            find(need)


def _verdict(rows: list[dict[str, Any]]) -> bool | None:
    asserted = [row["holds"] for row in rows if row["kind"] == "asserted"]
    broken = [row for row in rows if row["holds"] is False and row["measured"] is None]
    if broken or False in asserted:
        return False
    return None if None in asserted else True


def exit_code(outcome: dict[str, Any]) -> int:
    """0: every asserted claim holds; 1: one does not; 3: one could not run."""
    return {True: HOLDS, False: FAILS, None: COULD_NOT_RUN}[outcome["holds"]]


def listing(folder: Path | None = None) -> list[dict[str, Any]]:
    """All papers in order of their slugs, with what the record of the last full run says.

    Each: {"slug", "title", "year", "kind", "summary", "modules", "claims", "holds", "stale", "measured_on"};
    `claims` are the rows of `reproduce`. Where never run, their measured fields, `holds`, `stale` and
    `measured_on` are None.
    """
    return [_entry(papers.load(slug), folder) for slug in sorted(papers.PAPERS)]


def _entry(paper: Paper, folder: Path | None) -> dict[str, Any]:
    record = store.read_result(paper.slug, folder)
    last = {row["id"]: row for row in record["claims"]} if record else {}
    return {
        "slug": paper.slug,
        "title": paper.title,
        "year": paper.year,
        "kind": paper.kind,
        "summary": paper.summary,
        "modules": list(paper.modules),
        "claims": [last.get(claim.id, claim.as_json()) for claim in paper.claims],
        "holds": record["holds"] if record else None,
        "stale": store.is_stale(record, papers.PAPERS[paper.slug]) if record else None,
        "measured_on": record["measured_on"] if record else None,
    }
