"""Graphs whose nodes are to be classified, and where they come from: planetoid, karate club, block models.

The fields are named as in PyTorch Geometric's `Data`, which may stand in a `Graph`'s place everywhere.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data import find
from ...errors import ConfigError, DataError, unknown
from .edges import check_edges, undirect

PLANETOID = ("cora", "citeseer")


@dataclass(frozen=True)
class Graph:
    """One graph with a split of its nodes.

    Args:
        x: (nodes, features) float. y: (nodes,) int64 classes; -1 = unlabelled.
        edge_index: (2, E) int64, both directions of every edge.
        train_mask, val_mask, test_mask: (nodes,) bool.
        name: for reports.
    """

    x: Tensor
    y: Tensor
    edge_index: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    name: str = "graph"

    def to(self, device: str) -> Graph:
        """The graph on "cpu", "cuda", or the better of both ("auto"). Raises ConfigError for one that is not there."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        try:
            moved: dict[str, Any] = {n: part.to(name) for n, part in parts.items() if isinstance(part, Tensor)}
            return replace(self, **moved)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"cannot use the device {device!r}: {error}") from error

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.x)

    @property
    def num_features(self) -> int:
        """Columns of `x`."""
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        """Largest class plus one."""
        return int(self.y.max()) + 1


def check_graph(graph: Any) -> None:
    """Raise DataError where a graph cannot be trained on: no split, an empty one, or a class without training node."""
    check_edges(graph.edge_index, graph.num_nodes)
    for name in ("train_mask", "val_mask", "test_mask"):
        mask = getattr(graph, name, None)
        if mask is None or not bool(mask.any()):
            raise DataError(f"the graph has no {name}, or it is empty; give (nodes,) bool masks of the split")
    if not bool(torch.isfinite(graph.x).all()):
        raise DataError("the node features x hold NaN or infinity")
    missing = sorted(set(graph.y[graph.y >= 0].tolist()) - set(graph.y[graph.train_mask].tolist()))
    if missing:
        raise DataError(f"class {missing[0]} has no training node; add one, or drop the class")


def planetoid(name: str) -> Graph:
    """Cora or Citeseer with the public split: 20 training nodes a class, 500 for validation, 1000 for test.

    Features are row-normalised bags of words. Files: `planetoid/<name>.npz` below a data folder.

    Raises:
        ConfigError: another name. DataError: the file is missing or damaged.
    """
    if name not in PLANETOID:
        raise unknown("planetoid graph", name, PLANETOID)
    path = find("planetoid", f"{name}.npz") / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {key: file[key] for key in file.files}
        nodes, features = (int(v) for v in parts["x_shape"])
        x = np.zeros((nodes, features), dtype=np.float32)
        x[np.repeat(np.arange(nodes), np.diff(parts["x_indptr"])), parts["x_indices"]] = parts["x_data"]
        masks = [_mask(nodes, parts[f"{part}_idx"]) for part in ("train", "val", "test")]
        labels, edges = parts["y"].astype(np.int64), parts["edge_index"].astype(np.int64)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no planetoid graph: {error}; fetch it again") from error
    edge_index, _ = check_edges(torch.from_numpy(edges), nodes)
    x /= np.maximum(x.sum(1, keepdims=True), 1e-12)
    return Graph(torch.from_numpy(x), torch.from_numpy(labels), edge_index, *masks, name=name)  # type: ignore[misc, arg-type]  # three masks


def _mask(nodes: int, chosen: Any) -> Tensor:
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.as_tensor(np.asarray(chosen), dtype=torch.int64)] = True
    return mask


def karate() -> Graph:
    """Zachary's karate club: 34 members, 78 friendships, two factions; one-hot features, one labelled node a class."""
    import networkx

    club = networkx.karate_club_graph()
    edges = undirect(torch.tensor(list(club.edges)).T, len(club))
    y = torch.tensor([int(club.nodes[node]["club"] == "Officer") for node in club])
    masks = _mask(34, [0, 33]), _mask(34, range(1, 17)), _mask(34, range(17, 33))
    return Graph(torch.eye(34), y, edges, *masks, name="karate")


def block_model(
    nodes: int = 1000,
    classes: int = 5,
    *,
    degree: float = 4.0,
    homophily: float = 0.8,
    hubs: float = 2.5,
    words: int = 500,
    topical: float = 0.3,
    train: int = 20,
    seed: int = 0,
) -> Graph:
    """A degree-corrected stochastic block model whose nodes carry bags of words; shaped like a citation graph.

    Args:
        degree: mean degree. homophily: share of edge draws that stay inside a class.
        hubs: exponent of the power law of degrees, > 2; smaller means larger hubs.
        words: size of the vocabulary; each node draws 20, a share `topical` of them from its class's own part.
        train: training nodes of each class; 20 % of the nodes are for validation, the rest for test.
    Raises:
        ConfigError: a figure outside its range.
    Source: Karrer and Newman 2011.
    """
    if not (classes >= 2 and nodes >= classes * (train + 5) and words >= classes):
        raise ConfigError(
            f"{nodes} nodes and {words} words are too few for {classes} classes of {train} training nodes"
        )
    if not (0 <= homophily <= 1 and 0 <= topical <= 1 and hubs > 2 and degree > 0):
        raise ConfigError(f"homophily={homophily}, topical={topical} in [0, 1], hubs={hubs} > 2, degree={degree} > 0")
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(nodes) % classes)
    weight = np.minimum((1 - rng.random(nodes)) ** (-1 / (hubs - 1)), nodes**0.5)
    draws = int(nodes * degree / 2)
    source = rng.choice(nodes, draws, p=weight / weight.sum())
    target = rng.choice(nodes, draws, p=weight / weight.sum())
    same = rng.random(draws) < homophily
    for c in range(classes):
        members = np.flatnonzero(y == c)
        chosen = np.flatnonzero(same & (y[source] == c))
        target[chosen] = rng.choice(members, len(chosen), p=weight[members] / weight[members].sum())
    real = source != target
    edges = undirect(torch.from_numpy(np.stack([source[real], target[real]])), nodes)
    x = torch.from_numpy(_bags(rng, y, classes, words, topical))
    order = rng.permutation(nodes)
    first = np.concatenate([order[y[order] == c][:train] for c in range(classes)])
    rest = order[~np.isin(order, first)]
    cut = nodes // 5
    masks = _mask(nodes, first), _mask(nodes, rest[:cut]), _mask(nodes, rest[cut:])
    return Graph(x, torch.from_numpy(y), edges, *masks, name=f"block model {seed}")


def _bags(rng: np.random.Generator, y: Any, classes: int, words: int, topical: float) -> Any:
    """(nodes, words) float32, rows sum to 1."""
    nodes, own = len(y), words // classes
    drawn = rng.integers(0, words, (nodes, 20))
    topic = y[:, None] * own + rng.integers(0, own, (nodes, 20))
    drawn = np.where(rng.random((nodes, 20)) < topical, topic, drawn)
    x = np.zeros((nodes, words), dtype=np.float32)
    x[np.arange(nodes)[:, None], drawn] = 1
    return x / x.sum(1, keepdims=True)
