"""Projected gradient on the l0 ball: after every step only the largest weights of the whole network stay."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...kernels.topk import topk_mask
from .prune import check_ratio


class L0Projection:
    """Sets the ceil(ratio * P) smallest absolute values of all parameters together to zero.

    Call `step()` after each optimiser step. Zeros may come back at the next step: the optimiser's state is not masked.

    Args:
        parameters: tensors, or (name, tensor) pairs so that warnings name layers; P entries together.
        ratio: in [0, 1); 0 does nothing.
        scope: "global" (the paper); "tensor" gives each tensor the same ratio.
    Raises:
        ConfigError: a ratio outside [0, 1), another scope, or no parameter.
    Source: Seo, Yun and Yang 2024; iterative hard thresholding (Blumensath and Davies 2009).
    """

    def __init__(
        self, parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]], ratio: float, scope: str = "global"
    ) -> None:
        self.ratio = check_ratio("weight ratio", ratio)
        if scope not in ("global", "tensor"):
            raise ConfigError(f"scope must be 'global' or 'tensor', got {scope!r}")
        self.scope = scope
        self.named: list[tuple[str, Tensor]] = [
            item if isinstance(item, tuple) else (f"parameter {place}", item) for place, item in enumerate(parameters)
        ]
        if not self.named:
            raise ConfigError("there is no parameter to project")

    @torch.no_grad()
    def step(self) -> None:
        """Project the parameters, in place."""
        if not self.ratio:
            return
        for mask, (_, tensor) in zip(self.masks(), self.named, strict=True):
            tensor.mul_(mask)

    @torch.no_grad()
    def masks(self) -> list[Tensor]:
        """Which entries of each tensor the projection keeps, now."""
        sizes = [tensor.detach().abs().flatten() for _, tensor in self.named]
        if self.scope == "tensor":
            kept = [topk_mask(size, self._keep(len(size)), name="weights") for size in sizes]
        else:
            together = torch.cat(sizes)
            kept = list(topk_mask(together, self._keep(len(together)), name="weights").split([len(s) for s in sizes]))
        return [mask.view_as(tensor) for mask, (_, tensor) in zip(kept, self.named, strict=True)]

    def _keep(self, count: int) -> int:
        return count - math.ceil(count * self.ratio - 1e-9)

    def warn_if_empty(self) -> None:
        """Warn, by name, of matrices that hold only zeros: a global ratio can empty a layer."""
        for name, tensor in self.named:
            if tensor.ndim > 1 and not bool(tensor.any()):
                warnings.warn(f"{name} holds only zeros at weight ratio {self.ratio}; lower it", UserWarning, 3)


def parameters_of(module: nn.Module, ratio: float) -> L0Projection:
    """The projection of all parameters of a module, by name."""
    return L0Projection(list(module.named_parameters()), ratio)
