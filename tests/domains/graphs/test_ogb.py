"""ogbn-arxiv's raw files, from a small set of that form."""

import gzip

import numpy as np
import pytest

from gossamer.domains.graphs import arxiv
from gossamer.domains.graphs.graph import check_graph
from gossamer.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Six papers, two subjects; a citation twice in opposite directions, and one of itself."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "split" / "time").mkdir(parents=True)
    tables = {
        "raw/edge.csv": [(0, 1), (1, 0), (2, 3), (4, 4), (5, 0)],
        "raw/node-feat.csv": np.arange(18).reshape(6, 3) / 4,
        "raw/node-label.csv": [(0,), (1,), (0,), (1,), (0,), (1,)],
        "split/time/train.csv": [(0,), (1,)],
        "split/time/valid.csv": [(2,), (3,)],
        "split/time/test.csv": [(4,), (5,)],
    }
    for name, rows in tables.items():
        text = "\n".join(",".join(map(str, row)) for row in rows)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


def test_the_files_make_a_graph(folder):
    graph = arxiv(folder)
    check_graph(graph)
    assert graph.edge_index.T.tolist() == [[0, 1], [0, 5], [1, 0], [2, 3], [3, 2], [5, 0]]
    assert graph.x[2].tolist() == [1.5, 1.75, 2.0]
    assert graph.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert graph.test_mask.nonzero().flatten().tolist() == [4, 5]


def test_the_same_without_compression(folder):
    whole = arxiv(folder)
    for path in [*folder.rglob("*.gz")]:
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert (arxiv(folder).edge_index == whole.edge_index).all()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("raw/edge.csv", b"0,1\n2,9\n", "node 9"),
        ("raw/edge.csv", b"0,x\n", r"edge\.csv\.gz is no table of numbers"),
        ("raw/node-label.csv", b"0\n1\n", "6 rows of features, but 2 labels"),
        ("split/time/test.csv", b"4\n6\n", r"nodes are 0\.\.5"),
    ],
)
def test_what_does_not_fit_is_named(folder, name, text, message):
    (folder / f"{name}.gz").write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match=message):
        arxiv(folder)


def test_missing_and_truncated_files_are_named(folder):
    path = folder / "raw" / "edge.csv.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="no table of numbers"):
        arxiv(folder)
    path.unlink()
    with pytest.raises(DataError, match=r"edge\.csv\(\.gz\) is missing"):
        arxiv(folder)
