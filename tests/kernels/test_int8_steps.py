"""8-bit products in steps: the bits of the bitmap's, at every level."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import sparse

from gossamer.errors import CheckpointError, NumericsError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.int8 import gemv_int8, pack_int8
from gossamer.kernels.int8_steps import gemv_int8_steps, pack_int8_steps


@given(
    st.sampled_from([(), (0,), (1,), (3, 2)]),
    st.integers(0, 40),
    st.sampled_from([0, 1, 15, 64, 127, 128, 129, 300, 600]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.booleans(),
)
@example((2,), 16, 0, 1.0, True)
@example((), 33, 256, 1.0, False)
def test_every_level_gives_the_bits_of_the_bitmap(batch, rows, columns, density, is_finished):
    torch.manual_seed(rows + columns)
    dense = sparse(rows, columns, density=density) if rows else torch.zeros(0, columns)
    x = torch.randn(*batch, columns)
    bias, residual = (torch.randn(rows), torch.randn(*batch, rows)) if is_finished else (None, None)
    with native.using("none"):
        expected = gemv_int8(pack_int8(dense), x, bias=bias, residual=residual, activation="relu")
    weight = pack_int8_steps(dense)
    for name in native.levels():
        with native.using(name):
            found = gemv_int8_steps(weight, x, bias=bias, residual=residual, activation="relu")
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("search", [False, True])
def test_packing_loses_nothing(search):
    dense = sparse(70, 333, density=0.1)
    assert torch.equal(pack_int8_steps(dense, search).unpack(), pack_int8(dense, search).unpack())
    assert pack_int8_steps(dense).density == pytest.approx(float((dense != 0).float().mean()), rel=0.02)


def test_steps_hold_four_weights_of_each_row_of_a_panel():
    dense = torch.zeros(17, 200)
    dense[2, :5] = 1.0  # two steps of (group 0, panel 0)
    dense[16, 150] = -1.0  # one of (group 1, panel 1)
    weight = pack_int8_steps(dense)
    assert weight.starts.tolist() == [0, 2, 2, 2, 3]
    values, places = weight.values.view(-1, 16, 4), weight.places.view(-1, 16, 4)
    assert values[0, 2].tolist() == [127] * 4
    assert places[0, 2].tolist() == [0, 1, 2, 3]
    assert (values[1, 2, 0], places[1, 2, 0]) == (127, 4)
    assert (values[2, 0, 0], places[2, 0, 0]) == (-127, 150 - 128)
    assert int(weight.values.count_nonzero()) == 6


def test_largest_sums_fit(level):
    packed = pack_int8_steps(torch.ones(2, 65536))
    assert gemv_int8_steps(packed, torch.ones(65536)).tolist() == pytest.approx([65536.0] * 2)
    assert gemv_int8_steps(packed, -torch.ones(65536)).tolist() == pytest.approx([-65536.0] * 2)
    with pytest.raises(ShapeError, match="65536 columns, not 65537"):
        pack_int8_steps(torch.ones(1, 65537))


def test_what_is_not_finite_gives_nan(level):
    x = torch.ones(2, 70)
    x[1, 69] = float("inf")
    assert gemv_int8_steps(pack_int8_steps(torch.ones(2, 70)), x).isnan().tolist() == [[False] * 2, [True] * 2]
    with pytest.raises(NumericsError):
        pack_int8_steps(x)


def test_any_thread_count_gives_the_same_bits(level):
    packed, x = pack_int8_steps(sparse(400, 700, density=0.1)), torch.randn(2, 700)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(gemv_int8_steps(packed, x, activation="gelu"))
    finally:
        native.set_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck(level):
    w, x = pack_int8_steps(sparse(9, 170)), torch.randn(2, 170)
    arrays = (w.starts, w.values, w.places, w.scales, w.offsets)
    operator = torch.ops.gossamer.sparse_gemv_int8_steps.default
    torch.library.opcheck(operator, (x, *arrays, [9, 170], torch.randn(9), None, 1))


def test_damaged_weights_are_refused():
    weight = pack_int8_steps(sparse(20, 150))
    starts, places = weight.starts.clone(), weight.places.clone()
    starts[1] = 9999
    places[-1] = 30  # of the last panel, which has 22 columns
    for change in (
        {"starts": starts},
        {"starts": weight.starts - 1},
        {"places": places},
        {"places": torch.full_like(places, 128)},
        {"values": weight.values[:-1]},
        {"values": weight.values.float()},
        {"scales": weight.scales[1:]},
        {"offsets": weight.offsets.long()},
        {"columns": 300},
        {"columns": 1 << 17},
    ):
        with pytest.raises(CheckpointError):
            dataclasses.replace(weight, **change)
