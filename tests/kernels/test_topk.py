"""Exact selection: counts, tie order, oracles, levels and thread counts, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ConfigError, NumericsError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.topk import nm_mask, topk_cols, topk_mask, topk_rows

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# few distinct values, so that ties are the rule; both zeros and the infinities
VALUES = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 1e-40, 1.0, 1.5, math.inf])


def oracle(scores: list[float], k: int) -> list[bool]:
    """By definition: sort by falling score, then by index."""
    kept = set(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    return [i in kept for i in range(len(scores))]


@given(st.lists(VALUES, max_size=70), st.data())
def test_topk_mask_is_the_definition_at_every_level(values, data):
    k = data.draw(st.integers(0, len(values)))
    for dtype in FLOATS:
        scores = torch.tensor(values, dtype=dtype)
        for name in native.levels():
            with native.using(name):
                assert topk_mask(scores, k).tolist() == oracle(scores.tolist(), k), (name, dtype)


@given(st.integers(0, 6), st.integers(0, 12), st.data())
def test_rows_and_columns_are_the_definition(rows, n, data):
    values = data.draw(st.lists(VALUES, min_size=rows * n, max_size=rows * n))
    budgets = data.draw(st.lists(st.integers(0, n), min_size=rows, max_size=rows))
    scores = torch.tensor(values).reshape(rows, n)
    expected = [oracle(row, k) for row, k in zip(scores.tolist(), budgets, strict=True)]
    for name in native.levels():
        with native.using(name):
            assert topk_rows(scores, budgets).tolist() == expected
            assert topk_cols(scores.t(), torch.tensor(budgets, dtype=torch.int32)).t().tolist() == expected


@given(st.sampled_from([1, 2, 4, 5, 8, 16, 40]), st.integers(0, 70), st.data())
def test_nm_is_the_definition_at_every_level(m, groups, data):
    n = data.draw(st.integers(0, m))
    seed = data.draw(st.integers(0, 100))
    table = torch.tensor([-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf])
    draws = torch.randint(6, (groups * m,), generator=torch.Generator().manual_seed(seed))
    scores = table[draws]
    expected = [flag for g in scores.reshape(-1, m).tolist() for flag in oracle(g, n)]
    for dtype in FLOATS:
        for name in native.levels():
            with native.using(name):
                assert nm_mask(scores.to(dtype), n, m).tolist() == expected, (name, dtype)


@pytest.mark.parametrize("count", [4095, 4096, 4097, 100_003])
@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.99])
def test_short_and_long_rows_count_exactly(level, count, fraction):
    scores = torch.randn(count).mul(50).round()  # many ties
    k = int(count * fraction)
    expected = torch.zeros(count, dtype=torch.bool)
    expected[scores.sort(descending=True, stable=True).indices[:k]] = True
    assert torch.equal(topk_mask(scores, k), expected)


@pytest.mark.parametrize("kind", ["random", "mostly -inf", "ascending", "few values", "one sample in a stride"])
@pytest.mark.parametrize("fraction", [0.0001, 0.07, 0.5, 0.95])
def test_long_rows_count_exactly_whatever_a_sample_says(level, kind, fraction):
    count = 70_001
    scores = torch.randn(count)
    if kind == "mostly -inf":
        scores[torch.rand(count) < 0.9] = -math.inf
    elif kind == "ascending":
        scores = scores.sort().values
    elif kind == "few values":
        scores = scores.round()
    elif kind == "one sample in a stride":
        scores[torch.arange(4096) * count // 4096] = 9.0  # what a sample at equal distances sees
    k = int(fraction * count)
    order = scores.sort(descending=True, stable=True).indices[:k]
    expected = torch.zeros(count, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(topk_mask(scores, k), expected)


@pytest.mark.parametrize("value", [0.0, 1.0, -math.inf])
def test_equal_scores_keep_the_first(level, value):
    scores = torch.full((7, 11), value)
    assert topk_mask(scores, 30).flatten().tolist() == [True] * 30 + [False] * 47
    assert topk_rows(scores, 3).sum(1).tolist() == [3] * 7
    assert topk_rows(scores, 3)[:, :3].all()
    assert topk_cols(scores, 2)[:2].all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_and_bools_are_ranked_too(level, dtype):
    scores = torch.tensor([1, 0, 1, 1]).to(dtype)
    assert topk_mask(scores, 2).tolist() == [True, False, True, False]
    assert topk_rows(scores, 2).tolist() == [True, False, True, False]
    assert nm_mask(scores, 2, 4).tolist() == [True, False, True, False]


def test_shapes_are_kept_and_strides_do_not_matter(level):
    scores = torch.randn(6, 8, 3, 3)
    flat = topk_mask(scores, 100)
    assert flat.shape == scores.shape
    assert torch.equal(topk_mask(scores.to(memory_format=torch.channels_last), 100), flat)
    swapped = scores.permute(2, 3, 0, 1)
    assert torch.equal(nm_mask(swapped, 2, 4), nm_mask(swapped.contiguous(), 2, 4))
    assert torch.equal(topk_rows(swapped, 5), topk_rows(swapped.contiguous(), 5))
    assert topk_mask(torch.tensor(3.0), 1).item() is True
    assert topk_mask(torch.tensor(3.0), 0).item() is False


def test_any_thread_count_gives_the_same_mask():
    scores = torch.randn(400, 1024).round(decimals=1)
    expected = topk_rows(scores, 100), nm_mask(scores, 2, 4), topk_mask(scores, 9999)
    try:
        for count in (2, 5):
            native.set_threads(count)
            found = topk_rows(scores, 100), nm_mask(scores, 2, 4), topk_mask(scores, 9999)
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    finally:
        native.set_threads(None)


def test_scores_with_gradient_are_ranked_without_it(level):
    scores = torch.randn(8, requires_grad=True)
    for mask in (topk_mask(scores, 2), topk_rows(scores, 2), nm_mask(scores, 2, 4)):
        assert not mask.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("place", [0, 5, 39])
def test_nan_is_an_error_that_names_the_scores(level, dtype, place):
    scores = torch.zeros(5, 8, dtype=dtype)
    scores.view(-1)[place] = math.nan
    where = rf"conv1\.weight hold 1 NaN of 40, the first at \({place // 8}, {place % 8}\)"
    calls = (
        lambda: topk_mask(scores, 3, name="conv1.weight"),
        lambda: topk_mask(scores, 40, name="conv1.weight"),
        lambda: topk_rows(scores, 3, name="conv1.weight"),
        lambda: nm_mask(scores, 2, 4, name="conv1.weight"),
    )
    for call in calls:
        with pytest.raises(NumericsError, match=where):
            call()


def test_bad_input_is_named():
    scores = torch.zeros(2, 6)
    with pytest.raises(ConfigError, match="cannot keep 13 of the 12 scores"):
        topk_mask(scores, 13)
    with pytest.raises(ConfigError, match="cannot keep -1"):
        topk_mask(scores, -1)
    with pytest.raises(ConfigError, match="cannot keep 7 of the 6 scores of a row"):
        topk_rows(scores, [1, 7])
    with pytest.raises(ConfigError, match="must be integers"):
        topk_rows(scores, 0.5)
    with pytest.raises(ShapeError, match=r"need budgets of shape \(2,\), got \(3,\)"):
        topk_rows(scores, [1, 2, 3])
    with pytest.raises(ShapeError, match="0-d"):
        topk_rows(torch.tensor(1.0), 1)
    with pytest.raises(ShapeError, match=r"needs a matrix.*\(6,\)"):
        topk_cols(torch.zeros(6), 1)
    with pytest.raises(ShapeError, match=r"divisible by 4.*\(2, 6\)"):
        nm_mask(scores, 2, 4)
    with pytest.raises(ConfigError, match="5:4 sparsity"):
        nm_mask(scores, 5, 4)
    with pytest.raises(ConfigError, match="complex"):
        topk_mask(torch.zeros(3, dtype=torch.complex64), 1)


@pytest.mark.parametrize(("shape", "n", "m"), [((8,), 2, 4), ((3, 16), 1, 8), ((0, 4), 2, 4), ((2, 2, 10), 3, 5)])
def test_opcheck(level, shape, n, m):
    torch.library.opcheck(torch.ops.gossamer.nm_mask.default, (torch.randn(shape), n, m))


def test_nm_mask_compiles_without_a_break():
    scores = torch.randn(4, 16)
    compiled = torch.compile(lambda s: s * nm_mask(s, 2, 4), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(scores), scores * nm_mask(scores, 2, 4))
