"""Products in bfloat16 against exact products of the rounded numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import check_close, sparse
from torch.nn import functional as F

from gossamer.errors import CheckpointError, ConfigError, NumericsError
from gossamer.kernels import native
from gossamer.kernels.conv import conv2d
from gossamer.kernels.formats import PackedWeight, zipped
from gossamer.kernels.pack import pack_bf16
from gossamer.kernels.spmm import linear, spmm

BLOCKS = st.sampled_from([1, 4, 8, 16])


def rounded(x):
    return x.bfloat16().double()


@given(
    BLOCKS,
    st.integers(1, 40),
    st.sampled_from([0, 1, 2, 3, 31, 70, 300]),
    st.sampled_from([1, 15, 16, 17, 33, 49, 100, 128, 129, 200]),
    st.sampled_from([None, 1, 7, 64]),
    st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    st.booleans(),
)
@example(4, 16, 300, 196, None, 0.3, True)
@example(1, 5, 300, 49, 64, 1.0, True)
def test_products_at_every_level(block, rows, columns, pixels, panel, density, is_finished):
    torch.manual_seed(rows + columns + pixels)
    weight, x = sparse(rows, columns, density=density), torch.randn(2, columns, pixels)
    bias, residual = (torch.randn(rows), torch.randn(2, rows, pixels)) if is_finished else (None, None)
    exact = rounded(weight) @ rounded(x)
    if is_finished:
        exact = exact + bias.double()[:, None] + residual.double()
    packed = pack_bf16(weight, block, panel)
    for name in native.levels():
        with native.using(name):
            y = spmm(packed, x, bias=bias, residual=residual, activation="relu")
            check_close(y, exact.float(), "relu", columns)


@given(
    BLOCKS,
    st.sampled_from([(1, 1), (3, 3), (5, 3), (2, 1)]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([1, 2]),
    st.integers(5, 23),
)
def test_convolutions_at_every_level(block, kernel, stride, padding, dilation, side):
    torch.manual_seed(side)
    weight, x = sparse(9, 5, *kernel), torch.randn(2, 5, side, side + 2)
    if side + 2 * padding < dilation * (max(kernel) - 1) + 1:
        return
    exact = F.conv2d(rounded(x), rounded(weight), None, stride, padding, dilation)
    geometry = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for name in native.levels():
        with native.using(name):
            y = conv2d(pack_bf16(weight, block), x, **geometry, activation="hardswish")
            check_close(y, exact.float(), "hardswish", weight[0].numel())


@pytest.mark.parametrize("batch", [0, 1, 40])
def test_layers_with_odd_memory(level, batch):
    weight, x = sparse(33, 70), torch.randn(70, batch).t()
    y = linear(pack_bf16(weight, 4), x, bias=torch.ones(33))
    check_close(y, (rounded(x) @ rounded(weight).t() + 1).float(), "none", 70)


def test_infinities_stay_with_their_weights(level):
    if level == "none":
        pytest.skip("the reference multiplies by zeros")
    weight = torch.zeros(4, 9)
    weight[0, 3], weight[1, 4], weight[1, 5], weight[2, 3] = 1.0, 1.0, 1.0, -1.0
    x = torch.ones(9, 20)
    x[3] = float("inf")
    x[5] = float("nan")
    y = spmm(pack_bf16(weight), x)
    assert y[:, 7].tolist()[0] == float("inf")
    assert bool(y[1].isnan().all())
    assert y[2, 0] == -float("inf")
    assert y[3].tolist() == [0.0] * 20


def test_any_thread_count_gives_the_same_bits(level):
    packed, x = pack_bf16(sparse(64, 96), 4), torch.randn(96, 500)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(spmm(packed, x, activation="gelu"))
    finally:
        native.set_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


@given(BLOCKS, st.integers(1, 20), st.integers(0, 40), st.sampled_from([1, 5, 64]), st.sampled_from([0.1, 0.6, 1.0]))
def test_packing_is_rounding(block, rows, columns, panel, density):
    torch.manual_seed(rows)
    weight = sparse(rows, columns, density=density)
    packed = pack_bf16(weight, block, panel)
    assert torch.equal(packed.unpack(), weight.bfloat16())
    again = PackedWeight.from_buffer(packed.to_buffer())
    assert again.kind == "bf16"
    assert torch.equal(again.unpack(), packed.unpack())
    order = zipped(packed.pointers, block).flatten()
    assert torch.equal(order.sort().values, torch.arange(packed.entries * block))


def test_pairs_lie_side_by_side():
    weight = torch.zeros(4, 5)
    weight[:, 0], weight[:, 2], weight[:, 4] = torch.arange(1.0, 5), torch.arange(11.0, 15), torch.arange(21.0, 25)
    values = pack_bf16(weight, 4).values
    assert values.tolist() == [1, 11, 2, 12, 3, 13, 4, 14, 21, 22, 23, 24]


def test_what_rounds_to_zero_stays_stored():
    weight = torch.tensor([[1e-45, 1.0]])
    assert pack_bf16(weight).entries == 2


def test_opcheck(level):
    w, x = pack_bf16(sparse(9, 20), 4), torch.randn(2, 20, 5, 5)
    arrays, layout = (w.pointers, w.indices, w.values), [w.rows, w.columns, w.block, w.panel]
    operator = torch.ops.gossamer.sparse_conv2d.default
    torch.library.opcheck(operator, (x, *arrays, layout, [1, 1, 1, 1, 0, 0, 1, 1], None, None, 1))
    torch.library.opcheck(
        torch.ops.gossamer.sparse_linear.default, (torch.randn(3, 20), *arrays, layout, None, None, 0)
    )


def test_refusals():
    with pytest.raises(ConfigError, match="1, 4, 8 or 16"):
        pack_bf16(torch.ones(4, 4), 3)
    with pytest.raises(NumericsError):
        pack_bf16(torch.full((4, 4), float("nan")))
    packed = pack_bf16(torch.ones(4, 4))
    with pytest.raises(CheckpointError, match=r"cannot hold values of torch\.float32"):
        dataclasses.replace(packed, values=packed.values.float())
    with pytest.raises(CheckpointError, match=r"cannot hold values of torch\.bfloat16"):
        dataclasses.replace(packed, kind="csr_panel")
