"""Sparse products over columns and as layers, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import PACKERS, check_close, sparse

from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.epilogue import ACTIVATIONS
from gossamer.kernels.pack import pack_bf16, pack_bitmap, pack_csr_panel
from gossamer.kernels.spmm import linear, spmm


def problem(rows: int, columns: int, pixels: int, seed: int, density: float = 0.3):
    torch.manual_seed(seed)
    weight, x = sparse(rows, columns, density=density), torch.randn(columns, pixels)
    return weight, x, torch.randn(rows), torch.randn(rows, pixels)


@given(
    st.integers(0, 40),
    st.integers(0, 150),
    st.sampled_from([0, 1, 2, 15, 16, 17, 49, 100, 196, 250]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(sorted(PACKERS)),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),
    st.booleans(),
)
@example(1, 1, 1, 1.0, "block 16", "none", False, False)
@example(9, 0, 20, 1.0, "block 4", "relu", True, True)
def test_every_level_agrees_with_torch(rows, columns, pixels, density, packer, activation, with_bias, with_residual):
    weight, x, bias, residual = problem(rows, columns, pixels, rows * 7 + columns, density)
    y = (weight.double() @ x.double()).float()
    y = y + bias[:, None] if with_bias else y
    y = y + residual if with_residual else y
    extras = {"bias": bias if with_bias else None, "residual": residual if with_residual else None}
    for name in native.levels():
        with native.using(name):
            got = spmm(PACKERS[packer](weight), x, activation=activation, **extras)
        check_close(got, y, activation, columns)


@pytest.mark.parametrize("packer", PACKERS)
def test_images_and_tall_shapes(level, packer):
    weight, x, bias, _ = problem(70, 300, 33, 0)
    images = torch.stack([x, 2 * x, -x])
    got = spmm(PACKERS[packer](weight), images, bias=bias, activation="relu6")
    check_close(got, weight @ images + bias[:, None], "relu6", 300)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("batch", [(), (0,), (1,), (3, 5), (130,)])
def test_linear(level, packer, batch):
    weight, _, bias, _ = problem(37, 90, 1, 1)
    x, residual = torch.randn(*batch, 90), torch.randn(*batch, 37)
    got = linear(PACKERS[packer](weight), x, bias=bias, residual=residual, activation="gelu")
    check_close(got, x @ weight.t() + bias + residual, "gelu", 90)


def test_strided_and_unaligned_inputs(level):
    weight, x, bias, _ = problem(20, 60, 101, 2)
    packed, expected = pack_csr_panel(weight), weight @ x
    flat = torch.zeros(60 * 101 + 1)
    flat[1:] = x.flatten()
    for view in (x.t().contiguous().t(), flat[1:].view(60, 101), torch.stack([x, x], -1)[..., 0]):
        check_close(spmm(packed, view), expected, "none", 60)
    check_close(linear(packed, x.t()), expected.t(), "none", 60)
    strided = torch.stack([bias, bias], 1)[:, 0]
    check_close(spmm(packed, x, bias=strided), expected + bias[:, None], "none", 60)


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("pixels", [49, 500])
def test_any_thread_count_gives_the_same_bits(level, packer, pixels):
    weight, x, bias, residual = problem(130, 200, pixels, 3)
    packed = PACKERS[packer](weight)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(spmm(packed, x, bias=bias, residual=residual, activation="hardswish"))
    finally:
        native.set_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("packer", [*PACKERS, "bf16", "bf16 of 4"])
@pytest.mark.parametrize("tokens", [3, 40, 130])
def test_a_layer_on_several_threads_is_the_layer_on_one(level, packer, tokens):
    # packing, products and the turn of the result follow each other on the same threads: more columns than one piece
    # of the packing has, more rows than one of the turn, and neither a multiple of what a vector holds
    weight, _, bias, _ = problem(130, 203, 1, 4)
    pack = {"bf16": pack_bf16, "bf16 of 4": lambda w: pack_bf16(w, 4)} | PACKERS
    packed, x = pack[packer](weight), torch.randn(tokens, 203)
    try:
        native.set_threads(1)
        alone = linear(packed, x, bias=bias, activation="relu")
        if not packer.startswith("bf16"):
            check_close(alone, x @ weight.t() + bias, "relu", 203)
        for count in (2, 3, 5):
            native.set_threads(count)
            for _ in range(20):
                assert torch.equal(linear(packed, x, bias=bias, activation="relu"), alone)
    finally:
        native.set_threads(None)


def test_dead_channels_do_not_spread_infinities(level):
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 2.0], [float("inf"), 1.0]])
    if level != "none":  # the dense reference multiplies zero by infinity
        assert spmm(pack_csr_panel(weight), x)[0].tolist() == [1.0, 2.0]


def test_nan_passes_through_activations(level):
    x = torch.tensor([[float("nan"), 1.0]])
    for activation in ACTIVATIONS:
        got = spmm(pack_csr_panel(torch.ones(1, 1)), x, activation=activation)
        assert got.isnan().tolist() == [[True, False]], activation


@pytest.mark.parametrize("packer", ["csr_panel", "block 8 of 50"])
def test_opcheck(level, packer):
    weight, x, bias, _ = problem(9, 20, 5, 4)
    packed = PACKERS[packer](weight)
    layout = [packed.rows, packed.columns, packed.block, packed.panel]
    arguments = (x.t(), packed.pointers, packed.indices, packed.values, layout, bias, None, 1)
    torch.library.opcheck(torch.ops.gossamer.sparse_linear.default, arguments)


def test_export_keeps_one_node():
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = pack_csr_panel(sparse(6, 10))

        def forward(self, x):
            return linear(self.packed, x, activation="relu")

    layer, x = Layer(), torch.randn(4, 10)
    program = torch.export.export(layer, (x,))
    assert [n.target for n in program.graph.nodes if "gossamer" in str(n.target)] == [
        torch.ops.gossamer.sparse_linear.default
    ]
    assert torch.equal(program.module()(x), layer(x))


def test_bad_input_is_named():
    packed = pack_csr_panel(torch.ones(2, 3))
    with pytest.raises(ShapeError, match=r"needs \(\.\., 3, n\), got \(4, 5\)"):
        spmm(packed, torch.ones(4, 5))
    with pytest.raises(ShapeError, match=r"needs \(\.\.\., 3\), got \(4, 5\)"):
        linear(packed, torch.ones(4, 5))
    with pytest.raises(ShapeError, match=r"bias must have shape \(2,\), got \(3,\)"):
        spmm(packed, torch.ones(3, 5), bias=torch.ones(3))
    with pytest.raises(ShapeError, match=r"residual must have shape \(2, 5\)"):
        spmm(packed, torch.ones(3, 5), residual=torch.ones(5))
    with pytest.raises(ConfigError, match=r"x is torch\.float64"):
        linear(packed, torch.ones(4, 3).double())
    with pytest.raises(ConfigError, match=r"x is torch\.complex64"):
        spmm(packed, torch.ones(3, 4).to(torch.complex64))
    with pytest.raises(ConfigError, match="did you mean 'relu' or 'relu6'"):
        spmm(packed, torch.ones(3, 5), activation="relu7")
    with pytest.raises(ConfigError, match="not bitmap; gemv takes bitmap"):
        linear(pack_bitmap(torch.ones(2, 3)), torch.ones(4, 3))
    with pytest.raises(ConfigError, match="x requires one"):
        linear(packed, torch.ones(4, 3, requires_grad=True))
