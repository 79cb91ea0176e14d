"""Blocks of output channels: against brute force, against the algebra's Block, and bad input."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import ConfigError, MaskError, NumericsError, ShapeError
from gossamer.models.zoo import build
from gossamer.sparsify.allocation import budget
from gossamer.sparsify.patterns import Block
from gossamer.sparsify.strips import OutBlock, layer_patterns, prune_strips_, topk_cells

SIZES = st.tuples(st.integers(1, 20), st.integers(1, 9), st.sampled_from([(), (1, 1), (3, 3), (2,)]))


@given(SIZES, st.sampled_from([1, 2, 4, 8]), st.floats(0, 0.95), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_rows_of_a_strip_share_their_mask_and_the_count_is_exact_to_a_cell(sizes, height, sparsity, seed):
    out, inputs, kernel = sizes
    weight = torch.randn(out, inputs, *kernel, generator=torch.Generator().manual_seed(seed))
    pattern = OutBlock(height)
    mask = pattern.mask(weight, sparsity)
    pattern.check(mask)
    cells = mask.flatten(2).float().mean(2)[::height] if kernel else mask.float()[::height]
    strips = -(-out // height)
    assert int(cells.sum()) == budget(1 - sparsity, strips * inputs)
    dropped = pattern.scores(weight)[cells == 0]
    stay = pattern.scores(weight)[cells == 1]
    assert not len(dropped) or not len(stay) or float(dropped.max()) <= float(stay.min())


@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 3), (16, 3, 1, 1)])
def test_it_is_the_block_of_the_algebra_where_strips_are_full(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    pattern = OutBlock(4)
    mask = pattern.mask(weight, 0.6)
    block = pattern.pattern(weight)
    assert block == Block(4, weight[0, 0].numel())
    assert torch.equal(mask, block.project(weight.abs(), int(mask.sum())))


def test_height_one_is_unstructured_on_a_matrix():
    weight = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    mask = OutBlock(1).mask(weight, 0.5)
    assert float(weight.abs()[mask].min()) >= float(weight.abs()[~mask].max())
    assert int(mask.sum()) == 21


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 50), st.data())
@settings(max_examples=50, deadline=None)
def test_balanced_cells_are_the_best_of_all_even_choices(strips, inputs, seed, data):
    keep = data.draw(st.integers(strips, strips * inputs))
    scores = torch.rand(strips, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = topk_cells(scores, keep, balanced=True)
    counts = kept.sum(1)
    assert int(kept.sum()) == keep
    assert int(counts.max() - counts.min()) <= 1
    each, rest = divmod(keep, strips)
    tops = [row.sort(descending=True).values for row in scores]
    best = max(
        sum(float(tops[i][: each + (i in more)].sum()) for i in range(strips))
        for more in combinations(range(strips), rest)
    )
    assert float(scores[kept].sum()) == pytest.approx(best)


def test_each_operator_gets_its_pattern_and_the_rest_a_reason():
    layers = layer_patterns(build("mobilenet-digits"), 8)
    assert set(layers.patterns) == {f"blocks.{i}.pointwise.conv.weight" for i in range(5)}
    assert layers.dense["stem.conv.weight"] == "it is the first convolution"
    assert "depthwise" in layers.dense["blocks.0.depthwise.conv.weight"]
    assert layers.dense["head.fc.weight"] == "it is the classifier"
    assert "8 x 1" in str(layers)
    mixed = layer_patterns(build("resnet-20"), {"layer1.*": 2, "layer2.*": 16})
    heights = {name.split(".")[0]: pattern.rows for name, pattern in mixed.patterns.items()}
    assert heights == {"layer1": 2, "layer2": 16}


def test_pruning_in_place_zeroes_what_the_masks_drop():
    model = build("resnet-20")
    masks = prune_strips_(model, layer_patterns(model, 4).patterns, 0.7)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not bool(weight[~mask].any())
        assert float(mask.float().mean()) == pytest.approx(0.3, abs=1 / mask[::4, :, 0, 0].numel())


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_a_sparsity_outside_its_range_is_refused(sparsity):
    with pytest.raises(ConfigError, match="fraction of zeros"):
        OutBlock(4).mask(torch.randn(8, 8), sparsity)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="1, 2, 4, 8, 16 rows, got 3"):
        OutBlock(3)
    with pytest.raises(ConfigError, match="balanced strips keep at least one cell each"):
        OutBlock(4, balanced=True).mask(torch.randn(16, 3), 0.8)
    with pytest.raises(NumericsError, match="NaN"):
        OutBlock(4).mask(torch.full((4, 4), torch.nan), 0.5)
    with pytest.raises(ShapeError, match="pad the layer to 8"):
        OutBlock(4).pattern(torch.randn(6, 3))
    with pytest.raises(ShapeError, match="got shape"):
        OutBlock(4).mask(torch.randn(6), 0.5)
    with pytest.raises(MaskError):
        OutBlock(2).check(torch.tensor([[True], [False]]))
    with pytest.raises(ConfigError, match="no layer"):
        layer_patterns(nn.Sequential(nn.Linear(3, 2)))
    grouped = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=2))
    with pytest.raises(ShapeError, match=r"1\.weight has 2 groups of 6 output channels"):
        layer_patterns(grouped, 4)
    assert "1.weight" in layer_patterns(grouped, 2).patterns
