"""Sparse codes against dense products: values, gradients, odd shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import ShapeError
from gossamer.kernels.codes import SparseCode, decode, decode_reference, dots, dots_reference, encode

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 70), st.integers(0, 2**31), st.floats(0, 1))


def _case(shape):
    rows, columns, width, seed, density = shape
    g = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, columns, generator=g) * (torch.rand(rows, columns, generator=g) < density)
    return (
        dense.double(),
        torch.randn(columns, width, generator=g).double(),
        torch.randn(rows, width, generator=g).double(),
    )


@given(SHAPES)
def test_products_equal_the_dense_ones(shape):
    dense, dictionary, left = _case(shape)
    code = SparseCode.of(dense)
    assert torch.equal(code.dense(), dense)
    assert torch.equal(code.transpose().dense(), dense.t())
    assert torch.allclose(decode(code, dictionary), decode_reference(code, dictionary), atol=1e-12)
    assert torch.allclose(dots(code, left, dictionary), dots_reference(code, left, dictionary), atol=1e-12)
    middle = dense.shape[1] // 2
    assert torch.equal(code.only(middle, dense.shape[1]).dense(), dense[:, middle:])


def test_many_pieces_of_dots_equal_one():
    dense = torch.rand(40, 30) * (torch.rand(40, 30) < 0.7)
    code, left, right = SparseCode.of(dense), torch.randn(40, 5000), torch.randn(30, 5000)
    assert torch.allclose(dots(code, left, right), dots_reference(code, left, right), atol=1e-2)


def test_gradients_of_decode():
    dense = torch.tensor([[0.0, 2.0, 0.5], [0.0, 0.0, 0.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    code, dictionary = SparseCode.of(dense), torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    values = code.values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, d: decode(code.with_values(v), d), (values, dictionary))


def test_gradients_of_encode_are_those_of_the_dense_product_at_chosen_entries():
    x, w = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 6))
    b = torch.randn(6, dtype=torch.float64, requires_grad=True)
    pre = x @ w.t() + b
    mask = pre > 0.3
    outside = torch.randn(5, 6, dtype=torch.float64)
    wanted = torch.autograd.grad(((pre.relu() * mask) * outside).sum(), (x, w, b))
    code = encode(x, w, b, pre.detach(), mask)
    got = torch.autograd.grad((code.values * outside[mask]).sum(), (x, w, b))
    assert torch.equal(code.dense() != 0, mask)
    assert all(torch.allclose(g, v) for g, v in zip(got, wanted, strict=True))


def test_empty_codes_decode_to_zero():
    code = SparseCode.of(torch.zeros(3, 4))
    dictionary = torch.randn(4, 5, requires_grad=True)
    out = decode(code, dictionary)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(3, 5))
    assert torch.equal(dictionary.grad, torch.zeros(4, 5))


def test_misfits_are_named():
    with pytest.raises(ShapeError, match="a code of 4 columns needs as many dictionary rows, got \\(3, 5\\)"):
        decode(SparseCode.of(torch.zeros(3, 4)), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match="a matrix and a mask of its shape"):
        SparseCode.of(torch.zeros(3))
