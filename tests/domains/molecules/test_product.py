"""Products and gates against e3nn, counts, gradients, phases, and freezing."""

import math
import warnings

import pytest
import torch

from gossamer.domains.molecules import CHOICES, GatedTensorProduct, PairGate, PathGate, SparseTensorProduct, ThreePhase
from gossamer.domains.molecules.irreps import block, harmonics, o3, rotate, triples
from gossamer.domains.molecules.paths import kept_count
from gossamer.domains.molecules.product import PathProduct
from gossamer.errors import CheckpointError, ConfigError, ShapeError

LMAX, CHANNELS = 2, 3
PATHS = triples(LMAX)


def to_e3nn(x):
    return torch.cat([x[..., block(l)].flatten(1) for l in range(LMAX + 1)], 1)  # noqa: E741


def foreign(mode="uuu", **options):
    irreps = f"{CHANNELS}x0e+{CHANNELS}x1e+{CHANNELS}x2e"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return o3().TensorProduct(irreps, irreps, irreps, [(*p, mode, True) for p in PATHS], **options)


def inputs(seed=0, n=4):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, CHANNELS, 9, generator=generator)
    return x, y, torch.randn(n, len(PATHS), CHANNELS, generator=generator)


def spread(gate, seed=1):
    gate.scores.data += 0.3 * torch.rand(len(gate.orders), generator=torch.Generator().manual_seed(seed))
    return gate


def test_without_sparsity_it_is_e3nns_product():
    x, y, w = inputs()
    expected = foreign(shared_weights=False, internal_weights=False)(to_e3nn(x), to_e3nn(y), w.flatten(1))
    found = SparseTensorProduct(LMAX, sparsity=0.0)(x, y, w)
    torch.testing.assert_close(to_e3nn(found), expected)


@pytest.mark.parametrize(("sparsity", "paths", "kept"), [(0.0, 65, 65), (0.7, 65, 19), (0.7, 34, 10), (0.99, 5, 1)])
def test_the_count_is_exact(sparsity, paths, kept):
    assert kept_count(sparsity, paths) == kept
    gate = PathGate([(0, 0, 0)] * paths, sparsity=sparsity)
    for phase in ("random", "adaptive", "fixed"):
        gate.advance(phase)
        assert int(gate.kept.sum()) == kept  # also where all scores are equal


def test_frozen_equals_gated_and_a_plain_product_of_these_paths():
    x, y, w = inputs()
    product = SparseTensorProduct(LMAX)
    spread(product.gate).advance("adaptive")
    kept = product.gate.indices()
    small = product.freeze()
    assert small.paths == tuple(PATHS[i] for i in kept)
    torch.testing.assert_close(small(x, y, w[:, kept]), product(x, y, w), rtol=0, atol=1e-6)
    alone = sum(
        PathProduct([PATHS[i]], LMAX, LMAX)(x, y, w[:, i : i + 1]) * c
        for i, c in zip(kept.tolist(), product.gate.coefficients(), strict=True)
    )
    torch.testing.assert_close(alone, product(x, y, w))


def test_coefficients_by_hand():
    gate = PathGate([(0, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1)], torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.5)
    gate.scores.data = torch.tensor([0.5, 2.0, 1.0, 0.1])
    gate.advance("adaptive")
    assert gate.indices().tolist() == [1, 2]
    torch.testing.assert_close(gate.coefficients(), torch.tensor([4.0, 3.0]) * math.sqrt(10 * 5) / 7)


def test_dropped_paths_get_no_gradient():
    x, y, w = inputs()
    product = SparseTensorProduct(LMAX)
    w.requires_grad_()
    product(x, y, w).square().sum().backward()
    dropped = ~product.gate.kept
    assert not product.gate.scores.grad[dropped].any()
    assert product.gate.scores.grad[~dropped].all()
    assert not w.grad[:, dropped].any()


def test_every_path_is_drawn_in_the_random_phase_and_the_fixed_one_stays():
    product = SparseTensorProduct(4)
    for _ in range(60):  # 0.7^60 * 65 < 1e-7
        product.gate.advance("random")
    assert product.gate.drawn.all()
    product.gate.advance("adaptive")
    before = product.gate.kept.clone()
    spread(product.gate, 5).advance("fixed")
    assert torch.equal(product.gate.kept, before)


def test_low_order_keeps_the_smallest_sums():
    gate = PathGate(PATHS, choice="low_order")
    sums = torch.tensor([sum(p) for p in PATHS])
    assert sums[gate.kept].max() <= sums[~gate.kept].min()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_product_is_equivariant_in_every_choice(choice):
    x, y, w = inputs()
    product = SparseTensorProduct(LMAX, choice=choice)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    turn = turn * torch.linalg.det(turn)
    turned = product(rotate(x, turn, LMAX), rotate(y, turn, LMAX), w)
    torch.testing.assert_close(turned, rotate(product(x, y, w), turn, LMAX), atol=1e-5, rtol=1e-4)


def test_harmonics_turn_like_features():
    vectors = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, -1.0], [-0.3, 0.0, 0.7], [1.0, -0.7, 0.0]]))
    torch.testing.assert_close(
        harmonics(vectors @ turn.T, 4), rotate(harmonics(vectors, 4), turn, 4), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("mode", ["uuu", "uvw", "uvu"])
def test_the_gate_wraps_products_of_e3nn(mode):
    x, y = (to_e3nn(part) for part in inputs()[:2])
    whole = foreign(mode, internal_weights=True, shared_weights=True)
    dense = GatedTensorProduct(whole, sparsity=0.0)
    torch.testing.assert_close(dense(x, y), whole(x, y))
    gated = GatedTensorProduct(whole, sparsity=0.6)
    spread(gated.gate).advance("adaptive")
    small = gated.freeze()
    assert len(small.instructions) == gated.gate.keep
    assert small.weight_numel < whole.weight_numel
    torch.testing.assert_close(small(x, y), gated(x, y), atol=1e-5, rtol=1e-4)


def test_external_weights_are_cut_to_the_kept_columns():
    x, y, w = inputs()
    gated = GatedTensorProduct(foreign(shared_weights=False, internal_weights=False))
    spread(gated.gate).advance("adaptive")
    small, w = gated.freeze(), w.flatten(1)
    found = small(to_e3nn(x), to_e3nn(y), w[:, gated.columns()])
    torch.testing.assert_close(found, gated(to_e3nn(x), to_e3nn(y), w), atol=1e-5, rtol=1e-4)
    with pytest.raises(ShapeError, match="weights"):
        gated(to_e3nn(x), to_e3nn(y))


@pytest.mark.parametrize("threshold", ["running", "batch"])
def test_the_pair_gate_keeps_by_quantile(threshold):
    scalars = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    gate = PairGate(4, 0.7, threshold)
    kept, scaled = gate(scalars)
    logits = gate.logit(scalars).squeeze(1)
    assert len(kept) == 7  # the quantile is the 14th of 20 in order, counted from 1
    assert logits[kept].min() > torch.sort(logits).values[12]
    weight = torch.sigmoid(logits[kept] - logits[kept].min())
    torch.testing.assert_close(scaled, scalars[kept] * weight[:, None])
    assert len(PairGate(4, 0.0)(scalars)[0]) == 20
    assert len(PairGate(4, 0.9)(torch.ones(6, 4))[0]) == 6  # equal logits


def test_a_running_threshold_judges_each_pair_alone():
    gate = PairGate(4, 0.5)
    scalars = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    gate(scalars)
    gate.eval()
    gate.level -= 1e-4  # the level is one of the logits: keep clear of its rounding
    together, alone = gate(scalars)[0], [i for i in range(20) if len(gate(scalars[i : i + 1])[0])]
    assert together.tolist() == alone


def test_the_schedule_counts_steps_not_passes():
    product = SparseTensorProduct(LMAX)
    schedule = ThreePhase(0.25, 0.5)
    phases = [schedule.step(product, step, 8) for step in range(8)]
    assert phases == ["random"] * 2 + ["adaptive"] * 2 + ["fixed"] * 4
    x, y, w = inputs()
    assert torch.equal(product(x, y, w), product(x, y, w))


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="sparsity=1"):
        SparseTensorProduct(LMAX, sparsity=1.0)
    with pytest.raises(ConfigError, match="did you mean 'adaptive'"):
        SparseTensorProduct(LMAX, choice="adaptve")
    with pytest.raises(ConfigError, match="adaptive phase"):
        SparseTensorProduct(LMAX).freeze()
    with pytest.raises(ConfigError, match="do not exist"):
        PathProduct([(0, 0, 1)], LMAX, LMAX)
    with pytest.raises(CheckpointError, match="other paths"):
        PathGate(PATHS).load_state_dict(PathGate(PATHS[:5]).state_dict(), strict=False, assign=True)
    with pytest.raises(ConfigError, match="random <= adaptive"):
        ThreePhase(0.5, 0.2)
    with pytest.raises(ConfigError, match="no e3nn tensor product"):
        GatedTensorProduct(torch.nn.Linear(2, 2))
