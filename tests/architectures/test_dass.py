"""The search: second order against autograd, stages that leave alone what is frozen, exact resume, cells by hand."""

import copy
import math
from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.architectures.bilevel import arch_gradient
from gossamer.architectures.cell_study import CellStudy, accuracy, network, parts, preset, warn_of_overlap
from gossamer.architectures.cells import CellNet, SuperNet, cell_space, edge_count, genotype_of, parse
from gossamer.architectures.chain import ChainSuperNet, chain_space
from gossamer.architectures.dass import Dass
from gossamer.architectures.operations import NONE, FactorizedReduction
from gossamer.architectures.scored_layers import SparseLinear, finish, make_sparse, score_masks, set_keep, shares
from gossamer.architectures.stages import Stage, dass_stages, dense_stages, hydra_prune, train_stage
from gossamer.claims.dass_testbed import Planted, PlantedBatches, hadamard, planted_loss
from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.training.config import OptimConfig

ADAM = OptimConfig(name="adam", lr=0.02, weight_decay=0.0, schedule="constant")
SGD = OptimConfig(lr=0.05, momentum=0.9, weight_decay=1e-3, schedule="constant")


class Quadratic(nn.Module):
    """sum_o softmax(alpha)_o W_o x."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.ModuleList(nn.Linear(3, 2, bias=False) for _ in range(2))
        self.alphas = nn.ParameterList([nn.Parameter(torch.tensor([[0.3, -0.2]]))])
        self.double()

    def forward(self, x):
        p = self.alphas[0].softmax(-1)[0]
        return p[0] * self.maps[0](x) + p[1] * self.maps[1](x)


def mse(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def two_batches():
    source = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(8, n, generator=source, dtype=torch.double) for n in (3, 2)) for _ in range(2)]


def unrolled(model, train, val, xi, decay, momentum=None):
    """The exact gradient through one step, by autograd."""
    names = [f"maps.{i}.weight" for i in range(2)]
    weights = {name: model.get_parameter(name) for name in names}
    alpha = model.alphas[0]
    loss = F.mse_loss(torch.func.functional_call(model, {**weights, "alphas.0": alpha}, (train[0],)), train[1])
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    stepped = {}
    for index, (name, w) in enumerate(weights.items()):
        buffer = 0 if momentum is None else 0.9 * momentum[index]
        stepped[name] = w - xi * (buffer + grads[index] + decay * w)
    outer = F.mse_loss(torch.func.functional_call(model, {**stepped, "alphas.0": alpha}, (val[0],)), val[1])
    return torch.autograd.grad(outer, alpha)[0]


@pytest.mark.parametrize("xi", [0.05, 0.5])
def test_the_second_order_is_the_gradient_through_one_step(xi):
    model = Quadratic()
    train, val = two_batches()
    found = arch_gradient(model, mse, train, val, xi=xi, decay=1e-2)[0]
    exact = unrolled(model, train, val, xi, 1e-2)
    assert float((found - exact).norm() / exact.norm()) < 1e-2
    first = arch_gradient(model, mse, train, val, xi=0.0)[0]
    assert float((first - exact).norm() / exact.norm()) > 0.02  # the implicit term matters here


def test_the_second_order_knows_the_momentum():
    model = Quadratic()
    train, val = two_batches()
    weights = [m.weight for m in model.maps]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9)
    mse(model, val).backward()
    optimizer.step()
    buffers = [optimizer.state[w]["momentum_buffer"].clone() for w in weights]
    before = [w.detach().clone() for w in weights]
    found = arch_gradient(model, mse, train, val, xi=0.3, optimizer=optimizer)[0]
    exact = unrolled(model, train, val, 0.3, 0.0, buffers)
    assert float((found - exact).norm() / exact.norm()) < 1e-2
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))


def test_the_first_order_is_xi_zero():
    model = Quadratic()
    train, val = two_batches()
    plain = torch.autograd.grad(mse(model, val), model.alphas[0])[0]
    assert torch.equal(arch_gradient(model, mse, train, val, xi=0.0)[0], plain)
    assert torch.allclose(arch_gradient(model, mse, train, val, xi=1e-9)[0], plain, rtol=1e-5)


# --------------------------------------------------------------------------- stages


def test_frozen_things_do_not_move():
    torch.manual_seed(0)
    model = Planted()
    seen = []

    def note(stage, m):
        weights = [layer.parametrizations.weight.original.detach().clone() for _, layer, _ in shares(m)]
        scores = [share.score.detach().clone() for _, _, share in shares(m)]
        seen.append((stage.name, weights, scores, score_masks(m), m.alphas[0].detach().clone()))

    Dass(dass_stages(1 / 16, (20, 20, 20), ADAM, ADAM), planted_loss, 1, ADAM, None).fit(
        model, PlantedBatches(0, 0), PlantedBatches(0, 1), on_stage=note
    )
    (_, w0, _, m0, a0), (_, w1, s1, m1, a1), (_, w2, s2, m2, a2) = seen
    assert [row[0] for row in seen] == ["pretrain", "prune", "finetune"]
    assert all(torch.equal(a, b) for a, b in zip(w0, w1, strict=True))
    assert torch.equal(a0, a1)
    assert all(torch.equal(a, b) for a, b in zip(s1, s2, strict=True))
    assert all(torch.equal(m1[name], m2[name]) for name in m1)
    assert all(bool(mask.all()) for mask in m0.values())
    assert all(int(mask.sum()) == 16 for mask in m1.values())
    assert not any(torch.equal(a, b) for a, b in zip(w1, w2, strict=True))
    assert not torch.equal(a1, a2)


def test_alphas_move_by_the_validation_loss_alone():
    torch.manual_seed(0)
    model = Planted()
    before = model.alphas[0].detach().clone()
    stages = (Stage("prune", 5, 0.5, "scores", arch=False, optim=ADAM),)
    Dass(stages, planted_loss, 1, ADAM).fit(model, PlantedBatches(0, 0), PlantedBatches(0, 1))
    assert torch.equal(model.alphas[0], before)


@pytest.mark.parametrize("stop", [7, 12, 20])
def test_an_interrupted_search_ends_with_the_same_bits(tmp_path, stop):
    def search(file=None, limit=None, order=2):
        torch.manual_seed(0)
        model = Planted()
        count = iter(range(10_000))

        def train(step):
            if limit is not None and next(count) == limit:
                raise KeyboardInterrupt
            return PlantedBatches(0, 0)(step)

        stages = dass_stages(1 / 16, (10, 8, 10), SGD, SGD)
        search = Dass(stages, planted_loss, order, ADAM, reset_arch=True)
        return model, search.fit(model, train, PlantedBatches(0, 1), file=file, every=3)

    whole, history = search()
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "state", stop)
    resumed, again = search(tmp_path / "state")
    assert again == history
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="another search"):
        search(tmp_path / "state", order=1)


def test_hydra_finds_a_planted_diagonal():
    torch.manual_seed(0)
    layer = nn.Sequential(SparseLinear(8, 8, bias=False))
    h = torch.eye(8)

    def batch(step):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(step))
        return x, x @ h

    train_stage(layer, Stage("dense", 200, optim=ADAM), mse, batch)
    hydra_prune(layer, 1 / 8, mse, batch, (20, 20), ADAM, ADAM)
    masks = finish(layer)
    assert torch.equal(masks["0.weight"], torch.eye(8, dtype=torch.bool))


def test_bad_stages_are_refused():
    for wrong in ({"steps": 0}, {"steps": 1, "keep": 0.0}, {"steps": 1, "keep": 1.5}, {"steps": 1, "train": "all"}):
        with pytest.raises(ConfigError, match="stage 's'"):
            Stage("s", **wrong)
    with pytest.raises(ConfigError, match="order"):
        Dass(dense_stages(1), mse, 3)
    with pytest.raises(ConfigError, match="at least one stage"):
        Dass((), mse)
    with pytest.raises(ConfigError, match="no alphas"):
        Dass(dense_stages(1), mse).fit(nn.Linear(2, 2), None, None)

    def sick(model, batch):
        return planted_loss(model, batch) * math.nan

    with pytest.raises(NumericsError, match="stage 'dense'"):
        Dass(dense_stages(1, ADAM), sick, 1).fit(Planted(), PlantedBatches(0, 0), PlantedBatches(0, 1))


def test_the_hadamard_matrix_is_orthonormal():
    assert torch.allclose(hadamard(16) @ hadamard(16).T, torch.eye(16), atol=1e-6)


# --------------------------------------------------------------------------- cells

OPS = (NONE, "skip_connect", "avg_pool_3x3", "sep_conv_3x3")


def test_the_darts_space_has_its_size():
    space = cell_space()
    assert space.combinations == (1 * 3 * 6 * 10 * 7**8) ** 2
    assert edge_count(4) == 14
    assert set(genotype_of(space.sample(0))) == {"normal", "reduce"}
    view = space.view(space.sample(0))
    assert len(view.edges) == 8 + 4


@pytest.mark.parametrize("seed", range(5))
def test_the_parser_agrees_with_brute_force(seed):
    source = torch.Generator().manual_seed(seed)
    steps = 3
    alphas = [torch.randn(edge_count(steps), len(OPS), generator=source) for _ in range(2)]
    found = genotype_of(parse(alphas, OPS, steps), OPS, steps)
    for alpha, kind in zip(alphas, ("normal", "reduce"), strict=True):
        p, start = alpha.softmax(-1), 0
        for node in range(steps):
            rows = {j: {op: float(p[start + j, i]) for i, op in enumerate(OPS) if op != NONE} for j in range(node + 2)}
            best = max(
                combinations(rows, 2), key=lambda pair: sorted((max(rows[j].values()) for j in pair), reverse=True)
            )
            wanted = {(j, max(rows[j], key=rows[j].get)) for j in best}
            assert set(found[kind][node]) == wanted
            start += node + 2


def test_one_infinite_alpha_is_the_discrete_network():
    """Softmax that is one-hot: the super-network computes what the network of that genotype does."""
    torch.manual_seed(0)
    options = {"shape": (3, 16, 16), "classes": 4, "channels": 4, "layers": 3, "steps": 2, "primitives": OPS}
    net = SuperNet(**options).eval()
    drawn = net.space.sample(3)
    edges = genotype_of(drawn, OPS, 2)
    with torch.no_grad():
        for alpha, kind in zip(net.alphas, ("normal", "reduce"), strict=True):
            alpha.zero_()
            alpha[:, 0] = torch.inf  # none, where the genotype has no edge
            start = 0
            for node, pair in enumerate(edges[kind]):
                for source, op in pair:
                    alpha[start + source, 0] = 0
                    alpha[start + source, OPS.index(op)] = 1e4
                start += node + 2
            alpha.copy_(alpha.nan_to_num(posinf=1e4))
    small = CellNet(drawn, affine=False, **options).eval()
    finish(net)
    small.stem.load_state_dict(net.stem.state_dict())
    small.head.load_state_dict(net.head.state_dict())
    for whole, part, kind in zip(net.cells, small.cells, ("normal", "reduce", "reduce"), strict=True):
        part.inputs.load_state_dict(whole.inputs.state_dict())
        start = 0
        for node, pair in enumerate(edges[kind]):
            for place, (source, op) in enumerate(pair):
                state = whole.edges[start + source].operations[OPS.index(op)].state_dict()
                part.operations[2 * node + place].load_state_dict(state)
            start += node + 2
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(net(x), small(x), atol=1e-5)


def test_every_convolution_of_the_super_network_is_sparse():
    torch.manual_seed(0)
    net = SuperNet(channels=4, layers=3, steps=2, primitives=OPS)
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(list(shares(net))) == len(layers) > 20
    set_keep(net, 0.5)
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert all(not m.affine for m in net.modules() if isinstance(m, nn.BatchNorm2d) and m is not net.stem[1])


def test_auxiliary_head_and_dropped_paths_act_in_training_only():
    torch.manual_seed(0)
    space = cell_space(OPS, 2)
    net = CellNet(space.sample(1), channels=4, layers=3, steps=2, primitives=OPS, auxiliary=True, drop_path=0.5)
    x = torch.randn(2, 3, 16, 16)
    out = net(x)
    assert isinstance(out, tuple)
    assert out[1].shape == (2, 10)
    net.eval()
    assert torch.equal(net(x), net(x))


def test_cells_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'sep_conv_3x3'"):
        cell_space(("sep_conv_3", "skip_connect"))
    with pytest.raises(ConfigError, match="'none'"):
        cell_space((NONE,))
    with pytest.raises(ConfigError, match="even number"):
        FactorizedReduction(4, 3, affine=True)
    with pytest.raises(ShapeError, match="even sides"):
        SuperNet(shape=(1, 7, 7), channels=2, layers=3, steps=1)(torch.zeros(1, 1, 7, 7))
    with pytest.raises(ConfigError, match="unknown operation"):
        chain_space(2, ("skip", "wid"))


# --------------------------------------------------------------------------- the study


def test_both_parts_of_the_search_share_no_sample():
    study = CellStudy()
    whole, train, val = parts(study, 0)
    assert train.samples + val.samples == whole.train.samples == 1000
    assert warn_of_overlap(train, val) == 0
    with pytest.warns(UserWarning, match="500 samples are in both"):
        warn_of_overlap(train, train)


def test_a_study_is_json_and_checked():
    study = preset("darts")
    assert CellStudy.from_json(study.as_json()) == study
    assert study.order == 2
    with pytest.raises(ConfigError, match="did you mean 'keep'"):
        CellStudy.from_json({"kep": 0.1})
    with pytest.raises(ConfigError, match="unknown preset"):
        preset("small")
    with pytest.raises(ConfigError, match="three numbers"):
        CellStudy(search=(1, 1, 0))


def test_the_network_of_a_chain_is_what_its_architecture_says():
    study = CellStudy()
    data = parts(study, 0)[0]
    torch.manual_seed(0)
    space = ChainSuperNet().space
    model = network(study, data, space.parse({"edge 0": "skip", "edge 1": "wide", "edge 2": "linear"}))
    counted = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    assert counted == 64 * 48 + 2 * 48 * 192 + 48 * 48 + 480
    assert 0 <= accuracy(model, data.test) <= 1
    assert model.training
    assert copy.deepcopy(make_sparse(model)) is not None
