"""Sparse matrix times vector from bitmaps and 16-bit indices, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import check_close, sparse

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import ACTIVATIONS
from gossamer.kernels.gemv import gemv
from gossamer.kernels.pack import pack_bitmap, pack_block, pack_csr16

PACKERS = {
    "bitmap": pack_bitmap,
    "bitmap bf16": lambda w: pack_bitmap(w, torch.bfloat16),
    "csr16": pack_csr16,
}


@given(
    st.sampled_from([(), (0,), (1,), (3, 2)]),
    st.integers(0, 70),
    st.sampled_from([0, 1, 15, 16, 63, 64, 65, 100, 300]),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from(sorted(PACKERS)),
    st.sampled_from(sorted(ACTIVATIONS)),
)
@example((), 1, 1, 1.0, "csr16", "none")
@example((2,), 5, 0, 1.0, "bitmap", "relu")
def test_every_level_agrees_with_torch(batch, rows, columns, density, packer, activation):
    torch.manual_seed(rows + columns)
    packed = PACKERS[packer](sparse(rows, columns, density=density))
    x, bias, residual = torch.randn(*batch, columns), torch.randn(rows), torch.randn(*batch, rows)
    y = x @ packed.unpack().float().t() + bias + residual
    for name in native.levels():
        with native.using(name):
            check_close(gemv(packed, x, bias=bias, residual=residual, activation=activation), y, activation, columns)


@pytest.mark.parametrize("packer", PACKERS)
def test_any_thread_count_gives_the_same_bits_on_uneven_rows(level, packer):
    weight = torch.randn(400, 700) * (torch.rand(400, 700) < torch.linspace(0, 1, 400)[:, None] ** 4)
    packed, x = PACKERS[packer](weight), torch.randn(2, 700)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(gemv(packed, x))
    finally:
        native.set_threads(None)
    check_close(results[0], x @ packed.unpack().float().t(), "none", 700)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("packer", PACKERS)
def test_an_infinite_input_beside_a_zero_weight_does_no_harm(level, packer):
    weight = torch.zeros(1, 100)
    weight[0, ::2] = 1.0
    x = torch.ones(100)
    x[1::2] = float("inf")
    if level != "none":  # the dense reference multiplies zero by infinity
        assert gemv(PACKERS[packer](weight), x).tolist() == [50.0]


def test_strided_and_unaligned_vectors(level):
    packed, flat = pack_bitmap(sparse(9, 90)), torch.randn(181)
    expected = packed.unpack() @ flat[1:91]
    check_close(gemv(packed, flat[1:91]), expected, "none", 90)
    check_close(gemv(packed, flat[::2][:90]), packed.unpack() @ flat[::2][:90], "none", 90)


@pytest.mark.parametrize("packer", PACKERS)
def test_opcheck(level, packer):
    packed, x = PACKERS[packer](sparse(9, 70)), torch.randn(2, 70)
    arrays = (packed.pointers, packed.indices, packed.values, packed.bits)
    torch.library.opcheck(torch.ops.gossamer.sparse_gemv.default, (x, *arrays, [9, 70], torch.randn(9), None, 1))


def test_bad_input_is_named():
    packed = pack_bitmap(torch.ones(2, 3))
    with pytest.raises(ShapeError, match=r"needs \(\.\.\., 3\), got \(4,\)"):
        gemv(packed, torch.ones(4))
    with pytest.raises(ConfigError, match="not block; linear takes block"):
        gemv(pack_block(torch.ones(4, 3), 4), torch.ones(3))
    with pytest.raises(ConfigError, match=r"x is torch\.bfloat16"):
        gemv(packed, torch.ones(3).bfloat16())
