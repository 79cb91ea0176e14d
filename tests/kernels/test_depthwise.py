"""Depthwise convolution at every level, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from kernel_products import check_close
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.depthwise import depthwise_conv2d
from gossamer.kernels.epilogue import ACTIVATIONS


@given(
    st.integers(0, 2),
    st.integers(1, 5),
    st.tuples(st.integers(1, 20), st.integers(1, 70)),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 2]),
    st.integers(0, 4),
    st.sampled_from(sorted(ACTIVATIONS)),
)
@example(1, 2, (7, 7), 3, 1, 1, "relu6")
@example(1, 2, (14, 112), 3, 2, 1, "relu6")
@example(1, 2, (1, 1), 5, 2, 2, "none")
def test_every_level_agrees_with_torch(images, channels, size, k, stride, padding, activation):
    assume(padding < k and min(size) + 2 * padding >= k)
    torch.manual_seed(channels)
    weight, x, bias = torch.randn(channels, 1, k, k), torch.randn(images, channels, *size), torch.randn(channels)
    y = F.conv2d(x, weight, bias, stride, padding, groups=channels)
    residual = torch.randn_like(y)
    options = {"stride": stride, "padding": padding, "bias": bias, "activation": activation}
    for name in native.levels():
        with native.using(name):
            check_close(depthwise_conv2d(weight, x, **options), y, activation, k * k)
            check_close(depthwise_conv2d(weight, x, **options, residual=residual), y + residual, activation, k * k)


def test_memory_beside_the_input_is_not_touched(level):
    guarded = torch.full((3, 2 * 6 * 9), float("nan"))
    x = torch.randn(1, 2, 6, 9)
    guarded[1] = x.flatten()
    got = depthwise_conv2d(torch.ones(2, 1, 3, 3), guarded[1].view(1, 2, 6, 9), padding=1)
    check_close(got, F.conv2d(x, torch.ones(2, 1, 3, 3), None, 1, 1, groups=2), "none", 9)


def test_channels_last_inputs_and_thread_counts(level):
    weight, x = torch.randn(64, 1, 3, 3), torch.randn(2, 64, 30, 30).to(memory_format=torch.channels_last)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(depthwise_conv2d(weight, x, padding=1))
    finally:
        native.set_threads(None)
    check_close(results[0], F.conv2d(x, weight, None, 1, 1, groups=64), "none", 9)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(level, stride):
    arguments = (torch.randn(3, 1, 5, 5), torch.randn(1, 3, 8, 9), stride, 2, torch.randn(3), None, 3)
    torch.library.opcheck(torch.ops.gossamer.depthwise_conv2d.default, arguments)


def test_bad_input_is_named():
    x = torch.ones(1, 3, 9, 9)
    with pytest.raises(ConfigError, match=r"k 3 or 5, got \(3, 1, 7, 7\)"):
        depthwise_conv2d(torch.ones(3, 1, 7, 7), x)
    with pytest.raises(ConfigError, match=r"stride 1 or 2 and padding 0\.\.2, got 3, 0"):
        depthwise_conv2d(torch.ones(3, 1, 3, 3), x, stride=3)
    with pytest.raises(ShapeError, match=r"4 filters need \(images, 4, h, w\), got \(1, 3, 9, 9\)"):
        depthwise_conv2d(torch.ones(4, 1, 3, 3), x)
    with pytest.raises(ShapeError, match="smaller than the kernel 5 x 5"):
        depthwise_conv2d(torch.ones(3, 1, 5, 5), x[..., :3])
    with pytest.raises(ConfigError, match=r"weight is torch\.float64"):
        depthwise_conv2d(torch.ones(3, 1, 3, 3).double(), x)
