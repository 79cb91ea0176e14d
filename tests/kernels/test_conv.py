"""Sparse k x k convolution over strides, paddings and dilations, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from kernel_products import PACKERS, check_close, sparse
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.conv import conv2d
from gossamer.kernels.pack import pack_block, pack_csr16, pack_csr_panel


@given(
    st.integers(0, 2),
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 19), st.integers(1, 35)),
    st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3), (2, 3), (7, 7)]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(sorted(PACKERS)),
)
@example(1, 3, 8, (16, 16), (3, 3), (2, 2), (1, 1), (1, 1), "block 8 of 50")
@example(2, 4, 3, (9, 9), (1, 1), (2, 2), (0, 0), (1, 1), "csr_panel")
@example(1, 2, 2, (5, 5), (1, 1), (3, 1), (4, 4), (1, 1), "csr_panel")
def test_every_level_agrees_with_torch(images, channels, out, size, kernel, stride, padding, dilation, packer):
    reach = [n + 2 * p - d * (k - 1) for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)]
    assume(min(reach) >= 1)
    torch.manual_seed(channels)
    weight, x = sparse(out, channels, *kernel, density=0.6), torch.randn(images, channels, *size)
    y = F.conv2d(x, weight, None, stride, padding, dilation)
    bias, residual = torch.randn(out), torch.randn_like(y)
    y = y + bias.view(-1, 1, 1) + residual
    options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    for name in native.levels():
        with native.using(name):
            got = conv2d(PACKERS[packer](weight), x, **options, bias=bias, residual=residual, activation="relu")
        check_close(got, y, "relu", channels * kernel[0] * kernel[1])


@pytest.mark.parametrize("stride", [1, 2])
def test_larger_layers_fill_panels_and_tiles(level, stride):
    weight, x = sparse(24, 40, 3, 3), torch.randn(1, 40, 31, 57)
    y = F.conv2d(x, weight, None, stride, 1)
    for pack in (pack_csr_panel, lambda w: pack_block(w, 8)):
        got = conv2d(pack(weight), x, kernel=3, stride=stride, padding=1, activation="hardswish")
        check_close(got, y, "hardswish", 360)


def test_a_dense_first_layer_runs_as_full_blocks(level):
    weight, x = torch.randn(32, 3, 3, 3), torch.randn(2, 3, 65, 64)
    got = conv2d(pack_block(weight, 8), x, kernel=3, stride=2, padding=1)
    check_close(got, F.conv2d(x, weight, None, 2, 1), "none", 27)


def test_strided_inputs_and_thread_counts(level):
    weight, x = sparse(20, 12, 3, 3), torch.randn(2, 12, 15, 18).to(memory_format=torch.channels_last)
    packed, expected = pack_csr_panel(weight), F.conv2d(x, weight, None, 1, 1)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(conv2d(packed, x, kernel=3, padding=1))
    finally:
        native.set_threads(None)
    check_close(results[0], expected, "none", 108)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_opcheck(level):
    packed, x = pack_block(sparse(9, 4, 3, 3), 4), torch.randn(1, 4, 6, 7)
    layout = [packed.rows, packed.columns, packed.block, packed.panel]
    geometry = [3, 3, 2, 1, 1, 0, 1, 1]
    arguments = (x, packed.pointers, packed.indices, packed.values, layout, geometry, torch.randn(9), None, 2)
    torch.library.opcheck(torch.ops.gossamer.sparse_conv2d.default, arguments)


def test_bad_input_is_named():
    packed, x = pack_csr_panel(torch.ones(2, 3, 3, 3)), torch.ones(1, 3, 5, 5)
    with pytest.raises(ShapeError, match=r"27 columns and a 1 x 1 kernel need an input of \(images, 27"):
        conv2d(packed, x)
    with pytest.raises(ShapeError, match=r"need an input of \(images, 3, height, width\), got \(1, 4, 5, 5\)"):
        conv2d(packed, torch.ones(1, 4, 5, 5), kernel=3)
    with pytest.raises(ShapeError, match="smaller than the kernel"):
        conv2d(packed, torch.ones(1, 3, 2, 2), kernel=3)
    with pytest.raises(ShapeError, match=r"residual must have shape \(1, 2, 3, 3\), got \(1, 2, 5, 5\)"):
        conv2d(packed, x, kernel=3, residual=torch.ones(1, 2, 5, 5))
    with pytest.raises(ConfigError, match="stride must be one or two numbers of at least 1, got 0"):
        conv2d(packed, x, kernel=3, stride=0)
    with pytest.raises(ConfigError, match=r"residual is torch\.bfloat16"):
        conv2d(packed, x, kernel=3, residual=torch.ones(1, 2, 3, 3).bfloat16())
    with pytest.raises(ConfigError, match="not csr16"):
        conv2d(pack_csr16(torch.ones(2, 27)), x, kernel=3)
