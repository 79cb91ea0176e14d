"""Pooling, addition and activations at every level, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import ACTIVATIONS
from gossamer.kernels.pointwise import add, global_average_pool, max_pool2d

INF = float("inf")


@given(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(sorted(ACTIVATIONS)))
@example([40_000], "gelu")
def test_addition_and_activation(shape, activation):
    a, b = 4 * torch.randn(shape), torch.randn(shape)
    for name in native.levels()[1:]:  # torch's own float32 GELU is off by up to 1.2e-6
        with native.using(name):
            for got, y in ((add(a, b, activation=activation), a + b), (add(a, activation=activation), a)):
                expected = ACTIVATIONS[activation](y.double()).float()
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("level", native.levels()[1:], indirect=True)
def test_activations_over_their_whole_range(level):
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e30])])
    for activation, function in ACTIVATIONS.items():
        expected = function(x.double()).float()
        torch.testing.assert_close(add(x, activation=activation), expected, rtol=1e-6, atol=5e-7)


@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 60), st.integers(1, 20))
def test_global_average_pool(images, channels, height, width):
    x = torch.randn(images, channels, height, width)
    for name in native.levels():
        with native.using(name):
            torch.testing.assert_close(global_average_pool(x), x.mean((2, 3)), rtol=1e-5, atol=1e-6)


@given(
    st.integers(1, 3),
    st.tuples(st.integers(1, 12), st.integers(1, 80)),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
)
@example(1, (12, 80), 3, 2, 1, True)
@example(1, (5, 40), 2, 1, 0, True)
def test_max_pool_is_exact_and_keeps_nan(channels, size, kernel, stride, padding, with_nan):
    assume(padding <= kernel // 2 and min(size) + 2 * padding >= kernel)
    x = torch.randn(2, channels, *size)
    if with_nan:
        x[torch.rand_like(x) < 0.05] = float("nan")
        x[torch.rand_like(x) < 0.3] = -INF
    expected = F.max_pool2d(x, kernel, stride, padding)
    for name in native.levels():
        with native.using(name):
            torch.testing.assert_close(max_pool2d(x, kernel, stride, padding), expected, rtol=0, atol=0, equal_nan=True)


def test_strided_inputs(level):
    x = torch.randn(2, 6, 9, 17).to(memory_format=torch.channels_last)
    torch.testing.assert_close(global_average_pool(x), x.mean((2, 3)), rtol=1e-5, atol=1e-6)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))
    assert torch.equal(add(x, x.transpose(2, 3).contiguous().transpose(2, 3)), 2 * x)


def test_opcheck(level):
    x = torch.randn(1, 3, 6, 8)
    torch.library.opcheck(torch.ops.gossamer.add_activation.default, (x, x.clone(), 1))
    torch.library.opcheck(torch.ops.gossamer.add_activation.default, (x, None, 0))
    torch.library.opcheck(torch.ops.gossamer.global_average_pool.default, (x,))
    torch.library.opcheck(torch.ops.gossamer.max_pool2d.default, (x, 3, 2, 1))


def test_results_never_share_memory_with_inputs(level):
    x = torch.ones(3)
    add(x).zero_()
    assert x.tolist() == [1.0, 1.0, 1.0]


def test_bad_input_is_named():
    x = torch.ones(1, 2, 3, 3)
    with pytest.raises(ShapeError, match=r"b must have shape \(1, 2, 3, 3\), got \(2, 3, 3\)"):
        add(x, x[0])
    with pytest.raises(ConfigError, match="unknown activation 'tanh'"):
        add(x, activation="tanh")
    with pytest.raises(ShapeError, match=r"with pixels, got \(1, 2, 0, 3\)"):
        global_average_pool(x[:, :, :0])
    with pytest.raises(ConfigError, match="kernel 2, stride 2, padding 2"):
        max_pool2d(x, 2, padding=2)
    with pytest.raises(ShapeError, match=r"5 x 5 window needs \(images, channels, h, w\), got \(1, 2, 3, 3\)"):
        max_pool2d(x, 5)
