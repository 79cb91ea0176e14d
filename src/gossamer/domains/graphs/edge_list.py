"""Edge lists as CSV: two columns of node names, further columns kept as they are."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DataError
from ...runs.files import atomic
from .edges import is_undirected
from .prune import kept_edges

_HEADINGS = {"source", "target", "src", "dst", "from", "to", "u", "v", "node1", "node2", "id1", "id2"}


@dataclass(frozen=True)
class EdgeList:
    """The rows of a file.

    Args:
        rows: as read, without the heading. heading: the first row if it was one. names: of the nodes, by index.
        ends: (2, rows) int64 indices of each row's nodes.
        delimiter: of the file.
    """

    rows: list[list[str]]
    heading: list[str] | None
    names: list[str]
    ends: Tensor
    delimiter: str

    @property
    def both_directions(self) -> bool:
        """Whether every row (a, b) has its partner (b, a)."""
        return is_undirected(self.ends, len(self.names))


def read_edges(path: str | Path, nodes: int | None = None) -> EdgeList:
    """Read a CSV (or tab- or space-separated) edge list.

    The first two columns name the ends of an edge; names may be any text. Lines that begin with # are no edges, nor is
    a first row that holds column names: known ones, such as source and target, or words above nothing but integers.

    Args:
        nodes: names must be integers 0..nodes-1, which are then the indices; None numbers names as they come.
    Raises:
        DataError: a row with fewer than two columns, a name outside 0..nodes-1, no edge, or no text file.
    """
    lines = _lines(path)
    delimiter = next((mark for mark in ",;\t" if lines and mark in lines[0][1]), " ")
    rows: list[list[str]] = []
    for number, line in lines:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise DataError(f"{path}, line {number}: {line!r} does not name two nodes")
        rows.append(row)
    heading = rows.pop(0) if _is_heading(rows) else None
    if not rows:
        raise DataError(f"{path} holds no edge; write one per line: source,target")
    names = _names(rows) if nodes is None else [str(node) for node in range(nodes)]
    index = {name: place for place, name in enumerate(names)}
    for (number, _), row in zip(lines[heading is not None :], rows, strict=True):
        for name in (row[0].strip(), row[1].strip()):
            if name not in index:
                raise DataError(f"{path}, line {number}: node {name!r} is none of 0..{len(names) - 1}; raise the count")
    ends = torch.tensor([[index[row[0].strip()] for row in rows], [index[row[1].strip()] for row in rows]])
    return EdgeList(rows, heading, names, ends, delimiter)


def _lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines that are neither blank nor comments, with their numbers."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DataError(f"cannot read the edge list {path}: {reason}") from error
    return [
        (number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")
    ]


def _is_heading(rows: list[list[str]]) -> bool:
    if not rows:
        return False
    first, others = rows[0], rows[1:]
    if {cell.strip().lower() for cell in first[:2]} <= _HEADINGS:
        return True
    words = not any(_is_integer(cell) for cell in first[:2])
    return words and bool(others) and all(_is_integer(cell) for row in others for cell in row[:2])


def _is_integer(cell: str) -> bool:
    return cell.strip().removeprefix("-").isdigit()


def _names(rows: list[list[str]]) -> list[str]:
    return list(dict.fromkeys(row[place].strip() for row in rows for place in (0, 1)))


def write_edges(path: str | Path, edges: EdgeList, kept: Tensor) -> None:
    """Write the rows of `edges` that `kept` (rows,) holds, whole, in their order, under the same heading."""
    rows = [row for row, stays in zip(edges.rows, kept.tolist(), strict=True) if stays]
    with atomic(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=edges.delimiter, lineterminator="\n")
        writer.writerows([edges.heading, *rows] if edges.heading else rows)


def kept_rows(edges: EdgeList, keep: float, *, score: str = "teddy", directed: bool = False, seed: int = 0) -> Tensor:
    """(rows,) bool: the rows that stay, exactly as many edges as asked.

    Rows (a, b) and (b, a), and repeated rows, are one edge and share its fate, unless `directed`.

    Args: as `sparsify_edges`.
    """
    count = len(edges.names)
    if directed:
        return kept_edges(edges.ends, keep, score=score, undirected=False, num_nodes=count, seed=seed)
    low, high = edges.ends.min(0).values, edges.ends.max(0).values
    keys, of_row = torch.unique(low * count + high, return_inverse=True)
    once = torch.stack([keys // count, keys % count])
    loops = once[0] == once[1]
    both = torch.cat([once, once[:, ~loops].flip(0)], dim=1)
    kept = kept_edges(both, keep, score=score, num_nodes=count, seed=seed)
    return kept[: len(keys)][of_row]
