"""Linear layers and 1x1 convolutions that train their non-zeros only."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ShapeError
from gossamer.kernels.sparse_train import sparse_linear
from gossamer.kernels.train_pattern import Pattern, gather, pack_pattern, positions, scatter_

log = logging.getLogger(__name__)


class SparseLinear(nn.Module):
    """A linear layer that trains the non-zeros of its weight: forward, both gradients and optimiser cost fall with
    density.

    `values` is trained. `weight` is the dense parameter of the layer that this one replaces: exact zeros off the mask,
    kept up to date by `write_back` (which saving, evaluation mode and updates of the mask call). The layer saves and
    loads as the plain `nn.Linear` does. Where the values are no float32 on the CPU, it computes masked dense.

    Args:
        linear: the layer to replace; it keeps its parameters.
        mask: of the weight's shape, bool, read again by `read`.
        relu: apply max(., 0), which is then free.
        row_major: give contiguous results; else the samples of a feature lie side by side (kernels/sparse_train.py).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear | nn.Conv2d, mask: Tensor, relu: bool = False, row_major: bool = True) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape[:2]
        self.relu, self.row_major = relu, row_major
        self.weight = cast(nn.Parameter, linear.weight)
        self.bias = cast("nn.Parameter | None", linear.bias)
        self.mask = mask
        self.pattern = pack_pattern(mask.flatten(1))
        self.values = nn.Parameter(gather(self.pattern, self._matrix()))
        self.dense_gradient: Tensor | None = None
        self.wants_dense_gradient = False
        self._told = False
        self._remember()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out).

        Raises:
            ShapeError, ConfigError: x does not fit the layer, or is not of its dtype.
        """
        if not torch.compiler.is_compiling() and self.weight._version != self._weight_version:
            self.read(self.mask)  # somebody wrote to the dense weight
        if torch.is_autocast_enabled("cpu"):
            x = x.to(self.values.dtype)
        if self.values.device.type != "cpu" or self.values.dtype is not torch.float32:
            y = self._masked_dense(x)
        else:
            y = sparse_linear(x, self.values, self.bias, self.pattern, relu=self.relu, row_major=self.row_major)
        if self.wants_dense_gradient and y.requires_grad:
            y.register_hook(_Observer(self, x.detach(), y.detach() if self.relu else None))
        return y

    def _masked_dense(self, x: Tensor) -> Tensor:
        if not self._told:
            self._told = True
            log.warning(
                "a sparse layer (%d, %d) of %s on %s computes masked dense: sparse training needs float32 on the CPU",
                self.out_features,
                self.in_features,
                self.values.dtype,
                self.values.device,
            )
        place = tuple(index.to(self.values.device) for index in positions(self.pattern))
        weight = self.values.new_zeros(self.out_features, self.in_features).index_put(place, self.values)
        y = F.linear(x, weight, self.bias)
        return y.relu() if self.relu else y

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, nonzeros={self.pattern.nonzeros}"

    # ------------------------------------------------------------------ values and the dense weight

    def _matrix(self) -> Tensor:
        """The dense weight as (out, in), in its own memory."""
        return self.weight.detach().flatten(1)

    def _remember(self) -> None:
        """Both forms agree now: note it, to see later whether somebody wrote to the dense weight."""
        self._weight_version = self.weight._version

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the dense weight up to date."""
        if self.weight._version != self._weight_version:
            self.read(self.mask)
        else:  # always: fused optimisers change values without a new version
            scatter_(self.pattern, self.values.detach(), self._matrix())
            self._remember()

    @torch.no_grad()
    def read(self, mask: Tensor) -> Pattern:
        """Take the values from the dense weight at `mask`; returns the pattern before."""
        before, self.mask = self.pattern, mask
        self.pattern = pack_pattern(mask.cpu().flatten(1), before.geometry)
        values = gather(self.pattern, self._matrix())
        if values.shape == self.values.shape:
            self.values.copy_(values)
        else:
            # A new parameter: autograd remembers the length of the old one.
            self.values = nn.Parameter(values, requires_grad=self.values.requires_grad)
        self.values.grad = None
        self._remember()
        return before

    def train(self, mode: bool = True) -> SparseLinear:
        """As of any module; evaluation finds the dense weight up to date."""
        if not mode:
            self.write_back()
        return super().train(mode)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        self.write_back()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}values")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        trained = self._parameters.pop("values")  # it is no part of the saved state
        try:
            super()._load_from_state_dict(state_dict, prefix, *rest)
        finally:
            self._parameters["values"] = trained
        if f"{prefix}weight" in state_dict:
            self.read(self.mask)


class SparseConv1x1(SparseLinear):
    """The same in the place of a 1x1 convolution of stride 1: (images, in, h, w) -> (images, out, h, w).

    Pixels of all images are the samples: channels come to the front for that, and go back behind it.

    Args:
        convolution: the layer to replace; it keeps its parameters.
        mask: (out, in, 1, 1) bool. relu: as in SparseLinear.
    """

    def __init__(self, convolution: nn.Conv2d, mask: Tensor, relu: bool = False) -> None:
        super().__init__(convolution, mask, relu, row_major=False)

    def forward(self, x: Tensor) -> Tensor:
        """As SparseLinear's, with channels in the second dimension of four.

        Raises:
            ShapeError, ConfigError: x does not fit the layer, or is not of its dtype.
        """
        if x.dim() != 4:
            raise ShapeError(f"a convolution needs (images, channels, height, width), got {tuple(x.shape)}")
        images, channels, height, width = x.shape
        pixels = x.transpose(0, 1).reshape(channels, images * height * width).t()
        y = super().forward(pixels).t()
        return y.unflatten(1, (images, height, width)).transpose(0, 1).contiguous()


class _Observer:
    """Adds dy^T x to the layer's dense gradient when dy arrives: dense work, on the steps before an update only."""

    def __init__(self, layer: SparseLinear, x: Tensor, y: Tensor | None) -> None:
        self.layer, self.x, self.y = layer, x, y

    @torch.no_grad()
    def __call__(self, dy: Tensor) -> None:
        if self.y is not None:
            dy = torch.where(self.y <= 0, 0.0, dy)
        dense = dy.flatten(0, -2).t() @ self.x.flatten(0, -2)
        layer = self.layer
        layer.dense_gradient = dense if layer.dense_gradient is None else layer.dense_gradient.add_(dense)
