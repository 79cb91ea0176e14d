"""Layers against formulas and PyTorch Geometric; projection, distillation, tickets, UGS against exact answers."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gossamer.domains.graphs import (
    BACKBONES,
    Graph,
    L0Projection,
    Settings,
    backbone,
    block_model,
    class_distances,
    fit,
    karate,
    planetoid,
    sinkhorn_distance,
    teddy,
    ugs,
    wd_glt,
)
from gossamer.domains.graphs.networks import Edges, GATLayer, GCNLayer, GINLayer, SAGELayer
from gossamer.domains.graphs.product import SparseFeatures, Structure
from gossamer.errors import ConfigError, DataError, NumericsError, ShapeError
from gossamer.metrics.classification import accuracy

FEW = Settings(epochs=6)


@pytest.fixture(scope="module")
def blocks():
    return block_model(150, 3, words=60, train=10, seed=1)


def gcn_of(graph, **options):
    return lambda: backbone("gcn", graph.num_features, graph.num_classes, hidden=8, **options)


def test_sparse_product_and_its_gradients():
    rows, cols = torch.tensor([2, 0, 1, 2]), torch.tensor([0, 3, 1, 3])
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    dense = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    structure = Structure(rows, cols, (3, 4))
    full = torch.zeros(3, 4, dtype=torch.float64).index_put((rows, cols), values)
    assert torch.allclose(structure.matmul(values, dense), full @ dense)
    assert torch.autograd.gradcheck(structure.matmul, (values, dense))


def test_sparse_features():
    x = torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    w = torch.randn(3, 2)
    assert torch.allclose(SparseFeatures(x) @ w, x @ w)


def test_gcn_layer_is_the_dense_formula(blocks):
    n, edges = blocks.num_nodes, blocks.edge_index
    layer = GCNLayer(blocks.num_features, 4)
    A = torch.eye(n)
    A[edges[0], edges[1]] = 1
    root = torch.diag(A.sum(1) ** -0.5)
    ready = Edges(edges, n, loops=True)
    out = layer(blocks.x, ready, torch.ones(len(ready.source)))
    assert torch.allclose(out, root @ A @ root @ blocks.x @ layer.weight, atol=1e-5)


@pytest.mark.parametrize("kind", ["gcn", "weighted gcn", "gin", "gat", "sage"])
def test_layers_agree_with_torch_geometric(blocks, kind):
    nn = pytest.importorskip("torch_geometric.nn", reason="the other implementation")
    x, edges, weight = blocks.x, blocks.edge_index, None
    if kind == "gin":
        ours = GINLayer(60, 6)
        theirs = nn.GINConv(torch.nn.Linear(60, 6, bias=False), train_eps=True)
        theirs.nn.weight.data = ours.weight.data.T
        ours.eps.data.fill_(0.3)
        theirs.eps.data.fill_(0.3)
    elif kind == "sage":
        ours, theirs = SAGELayer(60, 6), nn.SAGEConv(60, 6, bias=False)
        theirs.lin_l.weight.data, theirs.lin_r.weight.data = ours.weight.data.T, ours.own.data.T
    elif kind == "gat":
        ours = GATLayer(60, 3, heads=2).eval()
        theirs = nn.GATConv(60, 3, heads=2, bias=False).eval()
        theirs.lin.weight.data = ours.weight.data.T
        theirs.att_src.data, theirs.att_dst.data = ours.att_src.data[None], ours.att_dst.data[None]
    else:
        ours, theirs = GCNLayer(60, 6), nn.GCNConv(60, 6, bias=False)
        theirs.lin.weight.data = ours.weight.data.T
        weight = torch.rand(edges.shape[1]) + 0.1 if "weighted" in kind else None
    ready = Edges(edges, blocks.num_nodes, type(ours).loops)
    expected = theirs(x, edges, weight) if weight is not None else theirs(x, edges)
    assert torch.allclose(ours(x, ready, ready.weights(weight, edges, x.dtype)), expected, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_edges_of_weight_zero_are_no_edges(blocks, name):
    torch.manual_seed(0)
    net = backbone(name, 60, 3, hidden=8).eval()
    kept = torch.rand(blocks.edge_index.shape[1]) < 0.5
    out = net(blocks.x, blocks.edge_index, kept.float())
    assert torch.allclose(out, net(blocks.x, blocks.edge_index[:, kept]), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=7, unique_by=abs), st.floats(0, 0.9))
def test_projection_is_the_nearest_point(values, ratio):
    x = torch.tensor(values, dtype=torch.float64)
    y = [x[:1].clone(), x[1:].clone()]
    projection = L0Projection(y, ratio)
    projection.step()
    after, keep = torch.cat(y), len(x) - math.ceil(len(x) * ratio - 1e-9)
    subsets = itertools.combinations(range(len(x)), keep)
    best = min(float(x.square().sum() - x[list(s)].square().sum()) for s in subsets)
    assert float((after - x).square().sum()) == pytest.approx(best)
    assert int((after == 0).sum()) >= len(x) - keep
    projection.step()
    assert torch.equal(torch.cat(y), after)


def test_projection_per_tensor():
    y = [torch.arange(1.0, 11.0), torch.arange(100.0, 110.0)]
    L0Projection(y, 0.5, scope="tensor").step()
    assert [int((t == 0).sum()) for t in y] == [5, 5]


def test_projection_that_empties_a_layer_warns():
    tiny, large = torch.full((2, 2), 1e-3), torch.ones(4, 4)
    projection = L0Projection([("first.weight", tiny), ("second.weight", large)], 0.2)
    projection.step()
    with pytest.warns(UserWarning, match=r"first\.weight holds only zeros"):
        projection.warn_if_empty()


def test_nothing_cut_and_nothing_distilled_is_plain_training(blocks):
    """Bit for bit, against a loop written here."""
    found = teddy(gcn_of(blocks), blocks, 0.0, 0.0, distill=0.0, settings=FEW, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = gcn_of(blocks)()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=5e-4)
        best = -1.0
        for _ in range(6):
            net.train()
            logits = net(blocks.x, blocks.edge_index)
            optimizer.zero_grad()
            F.cross_entropy(logits[blocks.train_mask], blocks.y[blocks.train_mask]).backward()
            optimizer.step()
            net.eval()
            with torch.no_grad():
                logits = net(blocks.x, blocks.edge_index)
            val = accuracy(logits[blocks.val_mask], blocks.y[blocks.val_mask])
            if val >= best:
                best, kept = val, logits
    assert torch.equal(found.sparse.logits, kept)
    assert torch.equal(found.sparse.logits, found.dense.logits)


@pytest.mark.parametrize("net", BACKBONES)
def test_a_ticket_has_its_exact_counts(blocks, net):
    made = teddy(lambda: backbone(net, 60, 3, hidden=8), blocks, 0.64, 0.88, distill=10.0, settings=FEW, seed=2)
    pairs = blocks.edge_index.shape[1] // 2
    assert made.edge_index.shape[1] == 2 * (pairs - math.floor(0.64 * pairs))
    weights = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    assert int((weights == 0).sum()) == math.ceil(0.88 * weights.numel())
    assert made.report["trainings"] == 2
    made.model.eval()
    with torch.no_grad():
        again = made.model(blocks.x, made.edge_index)
    assert torch.allclose(again, made.sparse.logits, atol=1e-5)  # the weights are those of the reported epoch
    assert made.report["test"] == accuracy(again[blocks.test_mask], blocks.y[blocks.test_mask])


def test_distillation_pulls_all_nodes_towards_the_teacher(blocks):
    teacher = torch.zeros(blocks.num_nodes, 3)
    teacher[:, 2] = 9.0  # says class 2 of everything
    agreeing = replace(blocks, y=torch.where(blocks.val_mask, 2, blocks.y))  # for the choice of the epoch
    options = {"settings": Settings(epochs=60), "teacher": teacher, "seed": 0}
    near = fit(gcn_of(blocks), agreeing, distill=50.0, **options).logits
    far = fit(gcn_of(blocks), blocks, distill=0.0, **options).logits
    assert float((near.argmax(1) == 2).double().mean()) > 0.95
    assert float((far.argmax(1) == 2).double().mean()) < 0.5


def test_seeds_decide_and_the_global_generator_stays(blocks):
    state = torch.get_rng_state()
    one, two = (fit(gcn_of(blocks), blocks, settings=FEW, seed=5).logits for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one, fit(gcn_of(blocks), blocks, settings=FEW, seed=6).logits)


def test_ugs_keeps_what_its_rounds_leave(blocks):
    found = ugs(gcn_of(blocks), blocks, 3, settings=Settings(epochs=3), seed=0)
    edges, weights = blocks.edge_index.shape[1] // 2, sum(p.numel() for p in gcn_of(blocks)().parameters())
    assert int(found.edge_mask.sum()) / 2 == pytest.approx(0.95**3 * edges, abs=2)
    assert sum(int(m.sum()) for m in found.weight_masks.values()) == pytest.approx(0.9**3 * weights, abs=2)
    assert found.trainings == 6
    for name, parameter in found.model.named_parameters():
        assert not parameter[~found.weight_masks[name]].any()


def test_wd_glt_keeps_what_its_rounds_leave(blocks):
    found = wd_glt(gcn_of(blocks), blocks, 3, settings=Settings(epochs=3), seed=0)
    edges = blocks.edge_index.shape[1] // 2
    assert int(found.edge_mask.sum()) / 2 == pytest.approx(0.95**3 * edges, abs=2)
    assert found.trainings == 6
    plain = ugs(gcn_of(blocks), blocks, 3, edge_penalty=0, weight_penalty=0, settings=Settings(epochs=3), seed=0)
    same = wd_glt(gcn_of(blocks), blocks, 3, separation=0, settings=Settings(epochs=3), seed=0)
    assert torch.equal(plain.edge_mask, same.edge_mask)  # without its distance, and before a mask meets its bounds
    once = wd_glt(gcn_of(blocks), blocks, 3, every=False, settings=Settings(epochs=3), seed=0)
    assert once.trainings == 4
    strong = wd_glt(gcn_of(blocks), blocks, 3, separation=1e3, settings=Settings(epochs=3), seed=0)
    assert not torch.equal(plain.edge_mask, strong.edge_mask)


def test_the_distance_of_clouds_is_that_of_pot():
    ot = pytest.importorskip("ot", reason="the other implementation")
    x, y = torch.rand(2, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, y = x[:20], y + 0.3
    cost = (x[:, None] - y[None]).square().sum(2)
    plan = ot.sinkhorn(x.new_full((20,), 1 / 20), x.new_full((30,), 1 / 30), cost, 0.3)
    found = sinkhorn_distance(x, y, epsilon=0.3, steps=500)
    assert float(found) == pytest.approx(float((plan * cost).sum()), rel=1e-6)
    points = torch.zeros(3, 2), torch.tensor([[3.0, 4.0]]).expand(5, 2)
    assert float(sinkhorn_distance(*points)) == pytest.approx(25)


def test_classes_that_fall_together_have_no_distance():
    assert float(class_distances(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))) == 0
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    distance = class_distances(apart)
    assert distance.item() == pytest.approx(4)  # twice the squared distance of two corners
    distance.backward()
    assert apart.grad[0, 0] > 0 > apart.grad[2, 0]  # further apart is further


def test_networks_of_torch_geometric_serve(blocks):
    nn = pytest.importorskip("torch_geometric.nn", reason="other networks")
    data = pytest.importorskip("torch_geometric.data", reason="its graphs").Data(
        x=blocks.x,
        y=blocks.y,
        edge_index=blocks.edge_index,
        train_mask=blocks.train_mask,
        val_mask=blocks.val_mask,
        test_mask=blocks.test_mask,
    )
    made = teddy(lambda: nn.GraphSAGE(60, 8, 2, 3), data, settings=FEW)
    assert made.report["edges_kept"] == pytest.approx(0.36, abs=0.01)


def test_bad_requests(blocks):
    make = gcn_of(blocks)
    for bad in (1.0, -0.1):
        with pytest.raises(ConfigError, match="must lie"):
            teddy(make, blocks, bad, settings=FEW)
        with pytest.raises(ConfigError, match="weight ratio"):
            fit(make, blocks, weight_ratio=bad, settings=FEW)
    with pytest.raises(ConfigError, match="must not be negative"):
        fit(make, blocks, distill=-1.0, settings=FEW)
    with pytest.raises(ConfigError, match="needs teacher"):
        fit(make, blocks, distill=1.0, settings=FEW)
    with pytest.raises(ShapeError, match="teacher logits"):
        fit(make, blocks, teacher=torch.zeros(4, 3), distill=1.0, settings=FEW)
    with pytest.raises(ShapeError, match="differ in shape"):
        fit(make, blocks, teacher=torch.zeros(150, 7), distill=1.0, settings=FEW)
    with pytest.raises(ConfigError, match="epochs"):
        Settings(epochs=0)
    for iterative in (ugs, wd_glt):
        with pytest.raises(ConfigError, match="at least one round, got 0"):
            iterative(make, blocks, 0, settings=FEW)
    with pytest.raises(NumericsError, match="loss"):
        fit(make, blocks, teacher=torch.full((150, 3), float("nan")), distill=1.0, settings=FEW)
    with pytest.raises(ConfigError, match=r"did you mean .*'gcn'"):
        backbone("gnc", 4, 2)


def test_graphs_that_cannot_be_trained_on(blocks):
    parts = {f: getattr(blocks, f) for f in ("x", "y", "edge_index", "train_mask", "val_mask", "test_mask")}
    with pytest.raises(DataError, match="train_mask"):
        fit(gcn_of(blocks), Graph(**parts | {"train_mask": torch.zeros(150, dtype=torch.bool)}), settings=FEW)
    with pytest.raises(DataError, match="class 0 has no training node"):
        fit(gcn_of(blocks), Graph(**parts | {"train_mask": blocks.train_mask & (blocks.y != 0)}), settings=FEW)
    with pytest.raises(DataError, match="NaN"):
        fit(gcn_of(blocks), Graph(**parts | {"x": blocks.x * float("nan")}), settings=FEW)
    with pytest.raises(DataError, match="node 149"):
        fit(gcn_of(blocks), Graph(**parts | {"x": blocks.x[:100]}), settings=FEW)


def test_a_device_that_is_not_there(blocks):
    assert torch.equal(blocks.to("cpu").x, blocks.x)
    with pytest.raises(ConfigError, match="cannot use the device 'cudda'"):
        blocks.to("cudda")


def test_karate():
    club = karate()
    assert club.edge_index.shape == (2, 156)
    assert int(club.y.sum()) == 17
    assert fit(gcn_of(club), club, settings=Settings(epochs=60)).test > 0.7


def test_planetoid():
    try:
        graph = planetoid("cora")
    except DataError:
        pytest.skip("the planetoid files are not here")
    assert (graph.num_nodes, graph.num_features, graph.num_classes) == (2708, 1433, 7)
    assert graph.edge_index.shape == (2, 10556)
    assert [int(m.sum()) for m in (graph.train_mask, graph.val_mask, graph.test_mask)] == [140, 500, 1000]
    assert torch.allclose(graph.x.sum(1), torch.ones(2708), atol=1e-5)


def test_a_damaged_planetoid_file(tmp_path, monkeypatch):
    (tmp_path / "planetoid").mkdir()
    (tmp_path / "planetoid" / "cora.npz").write_bytes(b"no archive")
    monkeypatch.setenv("GOSSAMER_DATA", str(tmp_path))
    with pytest.raises(DataError, match="no planetoid graph"):
        planetoid("cora")
    with pytest.raises(ConfigError, match="did you mean 'cora'"):
        planetoid("corra")
