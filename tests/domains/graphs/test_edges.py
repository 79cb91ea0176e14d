"""Scores and cuts of edges: closed forms, the dense formula, counts, nesting, bad inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer.domains.graphs import (
    EDGE_SCORES,
    SparsifyEdges,
    block_model,
    coalesce,
    degree_edge_score,
    edge_score,
    is_undirected,
    karate,
    kept_edges,
    ladder,
    prune_edges,
    sparsify_edges,
    undirect,
)
from gossamer.errors import ConfigError, DataError, MaskError, NumericsError, ShapeError


def both(*pairs):
    return undirect(torch.tensor(pairs).T)


def cycle(n):
    return both(*((i, (i + 1) % n) for i in range(n)))


def star(n):
    return both(*((0, i) for i in range(1, n + 1)))


@st.composite
def graphs(draw):
    nodes = draw(st.integers(3, 12))
    pair = st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)).filter(lambda p: p[0] != p[1])
    return both(*draw(st.lists(pair, min_size=2, max_size=40))), nodes + draw(st.integers(0, 2))


def test_cycle_and_star_in_closed_form():
    assert torch.allclose(degree_edge_score(cycle(7)), torch.full((14,), 1 / 8).double())
    assert torch.allclose(degree_edge_score(star(5)), torch.full((10,), 5**-1.5).double())


def test_path_of_four_by_hand():
    path = both((0, 1), (1, 2), (2, 3))
    end, middle = 2**-0.5, (1 + 2**-0.5) / 4  # u of an end and of an inner node
    expected = {(0, 1): end * middle, (1, 2): middle * middle, (2, 3): middle * end}
    for (i, j), score in zip(path.T.tolist(), degree_edge_score(path).tolist(), strict=True):
        assert score == pytest.approx(expected[min(i, j), max(i, j)])


@settings(max_examples=30, deadline=None)
@given(graphs(), st.randoms())
def test_score_is_the_dense_formula_and_follows_relabelling(graph, random):
    edges, nodes = graph
    A = torch.zeros(nodes, nodes, dtype=torch.float64)
    A[edges[0], edges[1]] = 1
    d = A.sum(1)
    inverse = torch.where(d > 0, 1 / d.clamp(min=1), 0.0)
    u = torch.diag(inverse**2) @ A @ inverse.sqrt()
    score = degree_edge_score(edges, nodes)
    assert torch.allclose(score, torch.outer(u, u)[edges[0], edges[1]])
    order = list(range(nodes))
    random.shuffle(order)
    assert torch.allclose(degree_edge_score(torch.tensor(order)[edges], nodes), score)


@settings(max_examples=30, deadline=None)
@given(graphs(), st.sampled_from(sorted(EDGE_SCORES)), st.floats(0, 0.5), st.floats(0, 0.49))
def test_cuts_are_exact_nested_and_undirected(graph, name, ratio, more):
    edges, nodes = graph
    score = edge_score(name, edges, nodes)
    kept = prune_edges(edges, score, ratio, num_nodes=nodes)
    pairs = edges.shape[1] // 2
    assert int(kept.sum()) == 2 * (pairs - math.floor(ratio * pairs + 1e-9))
    if kept.any():
        assert is_undirected(edges[:, kept], nodes)
    assert not (prune_edges(edges, score, ratio + more, num_nodes=nodes) & ~kept).any()
    single = prune_edges(edges, score, ratio, num_nodes=nodes, undirected=False)
    assert int(single.sum()) == 2 * pairs - math.floor(ratio * 2 * pairs + 1e-9)


def test_the_lowest_scores_go():
    edges = karate().edge_index
    score = degree_edge_score(edges)
    kept = prune_edges(edges, score, 0.5)
    assert score[kept].min() >= score[~kept].max()
    assert int(kept.sum()) == 78  # of 156 entries


def test_self_loops_stay_and_do_not_change_degrees():
    loops = torch.arange(7).expand(2, -1)
    edges = torch.cat([cycle(7), loops], dim=1)
    score = degree_edge_score(edges)
    assert torch.allclose(score[:14], degree_edge_score(cycle(7)))
    kept = prune_edges(edges, score, 0.9)
    assert kept[14:].all()
    assert int(kept[:14].sum()) == 2


def test_ladder():
    assert ladder(0.05, 20) == pytest.approx(1 - 0.95**20)
    assert ladder(0.1, 0) == 0


def test_random_scores_are_symmetric_and_seeded():
    edges = karate().edge_index
    a, b = edge_score("random", edges, seed=1), edge_score("random", edges, seed=2)
    assert torch.equal(a, edge_score("random", edges, seed=1))
    assert not torch.equal(a, b)
    back = {(int(i), int(j)): float(s) for (i, j), s in zip(edges.T, a, strict=True)}
    assert all(back[i, j] == back[j, i] for i, j in back)


def test_a_directed_graph_is_named_and_can_be_cut():
    arrows = torch.tensor([[0, 1, 2, 0], [1, 2, 3, 3]])
    with pytest.raises(DataError, match=r"directed.*undirected=False"):
        sparsify_edges(arrows, 0.5)
    kept = sparsify_edges(arrows, 0.5, undirected=False)
    assert kept.shape == (2, 2)
    assert {tuple(e) for e in kept.T.tolist()} <= {tuple(e) for e in arrows.T.tolist()}


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_keep_outside_its_range(keep):
    with pytest.raises(ConfigError, match="keep must lie"):
        sparsify_edges(cycle(5), keep)


def test_all_edges_cut():
    with pytest.raises(MaskError, match="leaves none"):
        sparsify_edges(both((0, 1)), 1e-13)


def test_bad_edges():
    with pytest.raises(ShapeError, match=r"\(2, E\)"):
        sparsify_edges(cycle(5).T)
    with pytest.raises(DataError, match="integers"):
        sparsify_edges(cycle(5).float())
    with pytest.raises(DataError, match=r"node 4, but nodes are 0\.\.2"):
        sparsify_edges(cycle(5), num_nodes=3)
    with pytest.raises(DataError, match="node -1"):
        sparsify_edges(cycle(5) - 1)
    with pytest.raises(DataError, match="no edge"):
        sparsify_edges(torch.empty(2, 0, dtype=torch.int64))
    with pytest.raises(DataError, match="twice"):
        sparsify_edges(cycle(5).repeat(1, 2))
    with pytest.raises(ShapeError, match="score has shape"):
        prune_edges(cycle(5), torch.ones(3), 0.5)
    with pytest.raises(NumericsError):
        prune_edges(cycle(5), torch.full((10,), float("nan")), 0.5)
    with pytest.raises(ConfigError, match="ratio"):
        prune_edges(cycle(5), torch.ones(10), 1.0)
    with pytest.raises(ConfigError, match="did you mean 'teddy'"):
        sparsify_edges(cycle(5), score="tedy")


def test_repeated_edges_are_merged_with_a_warning():
    with pytest.warns(UserWarning, match="10 repeated edges"):
        merged = coalesce(cycle(5).repeat(1, 2), 5)
    assert torch.equal(merged, cycle(5))


def test_nodes_left_alone_are_told():
    far = both(*((2 * i, 2 * i + 1) for i in range(10)))
    with pytest.warns(UserWarning, match="14 of 20 nodes lost all"):
        kept_edges(far, 0.3)


def test_disconnected_and_isolated():
    edges = both((0, 1), (1, 2), (4, 5))
    assert torch.isfinite(degree_edge_score(edges, 9)).all()
    assert sparsify_edges(edges, 0.6, num_nodes=9).shape == (2, 4)


def test_transform_of_torch_geometric():
    geometric = pytest.importorskip("torch_geometric", reason="the adapter is for PyTorch Geometric")
    graph = karate()
    data = geometric.data.Data(x=graph.x, edge_index=graph.edge_index, edge_attr=torch.arange(156.0))
    out = geometric.transforms.Compose([SparsifyEdges(0.5)])(data)
    assert torch.equal(out.edge_index, graph.edge_index[:, out.edge_attr.long()])
    assert out.num_edges == 78
    assert data.num_edges == 156


def test_block_model_is_what_was_asked_for():
    graph = block_model(400, 4, words=100, seed=3)
    inside = graph.y[graph.edge_index[0]] == graph.y[graph.edge_index[1]]
    assert 0.75 < float(inside.double().mean()) < 0.95  # 0.8 + 0.2 / 4
    assert 3 < graph.edge_index.shape[1] / 400 < 4.2
    assert torch.bincount(graph.y[graph.train_mask]).tolist() == [20] * 4
    assert not (graph.train_mask & graph.test_mask).any()
    assert torch.equal(graph.edge_index, block_model(400, 4, words=100, seed=3).edge_index)
    with pytest.raises(ConfigError, match="too few"):
        block_model(50, 5)


@pytest.mark.parametrize("graph", [[[0, 1], [1, 0]], karate().edge_index.numpy(), 3])
def test_what_is_no_tensor_is_named(graph):
    with pytest.raises(ShapeError, match=r"must be a \(2, E\) tensor, got (list|ndarray|int)"):
        sparsify_edges(graph, keep=0.5)
