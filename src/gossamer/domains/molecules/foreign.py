"""The path gate around a tensor product of e3nn that somebody else built."""

from __future__ import annotations

import warnings
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, ShapeError

from .irreps import o3
from .paths import PathGate


class GatedTensorProduct(nn.Module):
    """An `e3nn.o3.TensorProduct` with a gate over its instructions, any connection mode.

    While the gate still chooses, the whole product is computed with the weights of dropped paths at zero; `freeze`
    builds the smaller product, which is what saves time.

    Args:
        product: every instruction must have weights; its internal weights, where it has some, are taken over.
        sparsity, choice, seed: see `PathGate`.
    Raises:
        ConfigError: not such a product, or a path without weights.
    """

    def __init__(self, product: Any, sparsity: float = 0.7, choice: str = "adaptive", seed: int = 0) -> None:
        super().__init__()
        if not hasattr(product, "instructions") or not hasattr(product, "weight_numel"):
            raise ConfigError(f"{type(product).__name__} is no e3nn tensor product: it has no instructions")
        if not all(ins.has_weight for ins in product.instructions):
            raise ConfigError("a path has no weights, so that it cannot be switched off; build it with weights")
        self.product = product
        orders = [
            (product.irreps_in1[i.i_in1].ir.l, product.irreps_in2[i.i_in2].ir.l, product.irreps_out[i.i_out].ir.l)
            for i in product.instructions
        ]
        alpha = torch.tensor([float(i.path_weight) for i in product.instructions])
        self.gate = PathGate(orders, alpha, sparsity, choice, seed)
        self.sizes = [prod(ins.path_shape) for ins in product.instructions]

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """As the product itself; `weight` (n, weight_numel) or (weight_numel,) where it has none of its own."""
        weight = self._weight(weight)
        if weight.shape[-1] != sum(self.sizes):
            raise ShapeError(f"{weight.shape[-1]} weights for a product of {sum(self.sizes)}")
        factors = torch.zeros_like(self.gate.scores).index_put((self.gate.indices(),), self._factors())
        scaled = weight * factors.repeat_interleave(torch.tensor(self.sizes, device=weight.device))
        if scaled.ndim == 1 and not self.product.shared_weights:
            scaled = scaled.expand(*x.shape[:-1], -1)
        out: Tensor = self.product(x, y, scaled)
        return out

    def _factors(self) -> Tensor:
        """(keep,) what the gate multiplies; the normalisation alpha is in the product already."""
        return self.gate.coefficients() / self.gate.alpha[self.gate.indices()]

    def _weight(self, weight: Tensor | None) -> Tensor:
        own: Tensor | None = self.product.weight if self.product.internal_weights else weight
        if own is None:
            raise ShapeError("this product has no weights of its own; pass them")
        return own

    def columns(self) -> Tensor:
        """Positions of the kept paths' weights among all weights: what to take of external weights after `freeze`."""
        spans = torch.arange(sum(self.sizes)).split(self.sizes)
        return torch.cat([spans[int(i)] for i in self.gate.indices()])

    def freeze(self) -> Any:
        """A plain `e3nn.o3.TensorProduct` of the kept paths; external weights must be cut to `columns()`.

        Raises ConfigError in the random phase.
        """
        self.gate.check_frozen()
        old, coefficients = self.product, self._factors().detach()
        instructions = []
        for position, place in enumerate(self.gate.indices().tolist()):
            ins = old.instructions[place]
            weight = float(ins.path_weight * coefficients[position]) ** 2
            if coefficients[position] < 0:
                raise ConfigError("a kept path has a negative score, which e3nn cannot express; train it further")
            instructions.append((ins.i_in1, ins.i_in2, ins.i_out, ins.connection_mode, True, weight))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = o3().TensorProduct(
                old.irreps_in1,
                old.irreps_in2,
                old.irreps_out,
                instructions,
                irrep_normalization="none",
                path_normalization="none",
                internal_weights=old.internal_weights,
                shared_weights=old.shared_weights,
            )
        if old.internal_weights:
            small.weight.data = old.weight.data[self.columns()]
        return small
