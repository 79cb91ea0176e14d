"""What the tests of sparse products share: weights, packers and the comparison with plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.kernels.epilogue import ACTIVATIONS
from gossamer.kernels.pack import pack_block, pack_csr_code, pack_csr_panel

PACKERS = {
    "csr_panel": pack_csr_panel,
    "csr_panel of 7": lambda w: pack_csr_panel(w, 7),
    "csr_code": pack_csr_code,
    "block 4": lambda w: pack_block(w, 4),
    "block 8 of 50": lambda w: pack_block(w, 8, 50),
    "block 16": lambda w: pack_block(w, 16),
}


def sparse(*shape: int, density: float = 0.3) -> Tensor:
    """A random weight with an empty and a full first and last row, where there are as many."""
    weight = torch.randn(shape) * (torch.rand(shape) < density)
    if shape[0] > 2 and 0 < density < 1:
        weight[0] = 0
        weight[-1] = torch.randn(shape[1:])
    return weight


def check_close(got: Tensor, y: Tensor, activation: str, terms: int) -> None:
    """got == activation(y) up to the rounding of sums of `terms` products."""
    expected = ACTIVATIONS[activation](y)
    assert got.shape == expected.shape
    assert got.dtype is torch.float32
    scale = max(1.0, float(y.abs().max()) if y.numel() else 1.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * scale * (1 + terms**0.5))
