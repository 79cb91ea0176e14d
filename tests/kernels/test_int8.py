"""Sparse 8-bit products, bit for bit against exact sums in torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import sparse

from gossamer.errors import CheckpointError, NumericsError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.int8 import gemv_int8, int8_reference, pack_int8


@given(
    st.sampled_from([(), (0,), (1,), (3, 2)]),
    st.integers(0, 40),
    st.sampled_from([0, 1, 15, 16, 63, 64, 65, 100, 300, 600]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.booleans(),
)
@example((2,), 5, 0, 1.0, True)
@example((), 3, 512, 1.0, False)
def test_every_level_gives_the_bits_of_the_reference(batch, rows, columns, density, is_finished):
    torch.manual_seed(rows + columns)
    weight, x = pack_int8(sparse(rows, columns, density=density) if rows else torch.zeros(0, columns)), None
    x = torch.randn(*batch, columns)
    bias, residual = (torch.randn(rows), torch.randn(*batch, rows)) if is_finished else (None, None)
    expected = int8_reference(weight.integers(), weight.scales, x, bias, residual, 1)
    for name in native.levels():
        with native.using(name):
            assert torch.equal(gemv_int8(weight, x, bias=bias, residual=residual, activation="relu"), expected), name


def test_near_the_exact_product():
    weight, x = sparse(200, 700, density=0.2), torch.randn(700)
    for search in (False, True):
        packed = pack_int8(weight, search)
        exact = weight.double() @ x.double()
        assert float((gemv_int8(packed, x) - exact).norm() / exact.norm()) < 0.02
        assert float((packed.unpack() - weight).abs().max()) < float(weight.abs().max())
        assert torch.equal(packed.unpack() != 0, (packed.unpack() != 0) & (weight != 0))
    assert packed.nbytes < 0.25 * weight.numel() * 2


def test_searching_the_range_lowers_the_error():
    weight = sparse(64, 512, density=0.3) ** 3  # heavy tails
    errors = [float((pack_int8(weight, search).unpack() - weight).norm()) for search in (False, True)]
    assert errors[1] <= errors[0]


def test_largest_sums_fit(level):
    packed = pack_int8(torch.ones(2, 65536))
    assert gemv_int8(packed, torch.ones(65536)).tolist() == pytest.approx([65536.0] * 2)
    assert gemv_int8(packed, -torch.ones(65536)).tolist() == pytest.approx([-65536.0] * 2)
    with pytest.raises(ShapeError, match="65536 columns, not 65537"):
        pack_int8(torch.ones(1, 65537))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_gives_nan(level, value):
    x = torch.ones(3, 70)
    x[1, 69] = value
    y = gemv_int8(pack_int8(torch.ones(2, 70)), x)
    assert y.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    with pytest.raises(NumericsError):
        pack_int8(x)


def test_any_thread_count_gives_the_same_bits(level):
    packed, x = pack_int8(sparse(400, 700)), torch.randn(2, 700)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(gemv_int8(packed, x, activation="gelu"))
    finally:
        native.set_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck(level):
    w, x = pack_int8(sparse(9, 70)), torch.randn(2, 70)
    arrays = (w.pointers, w.bits, w.values, w.scales, w.offsets)
    torch.library.opcheck(torch.ops.gossamer.sparse_gemv_int8.default, (x, *arrays, [9, 70], torch.randn(9), None, 1))


def test_damaged_weights_are_refused():
    weight = pack_int8(sparse(9, 70))
    pointers = weight.pointers.clone()
    pointers[3] = 9999
    for change in (
        {"pointers": pointers},
        {"values": weight.values[:-1]},
        {"values": weight.values.float()},
        {"scales": weight.scales[1:]},
        {"bits": weight.bits[1:]},
        {"columns": 130},
    ):
        with pytest.raises(CheckpointError):
            dataclasses.replace(weight, **change)
