"""ogbn-arxiv from its raw files: 169,343 papers, 40 subjects, split by year. Not shipped, and not fetched."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...data import find
from ...errors import DataError
from .edges import check_edges, undirect
from .graph import Graph

PARTS = ("train", "valid", "test")


def arxiv(folder: str | Path | None = None) -> Graph:
    """The graph of `folder`, or of `ogbn_arxiv` below a data folder; citations are made undirected.

    The folder holds what ogbn-arxiv's archive unpacks to: `raw/edge.csv.gz`, `raw/node-feat.csv.gz`,
    `raw/node-label.csv.gz`, and `split/time/train.csv.gz`, `valid.csv.gz`, `test.csv.gz`; also without `.gz`.

    Raises:
        DataError: a file is missing or no table of numbers, or their sizes disagree.
    """
    root = Path(folder) if folder is not None else find("ogbn_arxiv", "raw") / "ogbn_arxiv"
    x, y = _table(root / "raw" / "node-feat.csv", np.float32), _table(root / "raw" / "node-label.csv", np.float64)
    nodes = len(x)
    if len(y) != nodes:
        raise DataError(f"{root}: {nodes} rows of features, but {len(y)} labels")
    edges = torch.from_numpy(_table(root / "raw" / "edge.csv", np.int64).T.copy())
    edge_index, _ = check_edges(edges, nodes)
    masks = [_mask(root / "split" / "time" / f"{part}.csv", nodes) for part in PARTS]
    labels = torch.from_numpy(np.nan_to_num(y[:, 0], nan=-1).astype(np.int64))
    loops = edge_index[0] == edge_index[1]
    undirected = undirect(edge_index[:, ~loops], nodes)
    return Graph(torch.from_numpy(x), labels, undirected, masks[0], masks[1], masks[2], name="arxiv")


def _mask(path: Path, nodes: int) -> torch.Tensor:
    chosen = _table(path, np.int64)[:, 0]
    if chosen.min() < 0 or chosen.max() >= nodes:
        raise DataError(f"{path} names node {chosen.max()}, but nodes are 0..{nodes - 1}")
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    return mask


def _table(path: Path, dtype: type) -> NDArray:
    found = next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)
    if found is None:
        raise DataError(f"{path}(.gz) is missing; unpack ogbn-arxiv's archive so that {path.parent.name}/ lies here")
    try:
        return np.loadtxt(found, dtype=dtype, delimiter=",", ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{found} is no table of numbers ({error}); unpack it again") from error
