"""What equal FLOPs leave out: the activations that a forward pass makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def activations(model: nn.Module, example: Any) -> int:
    """Numbers that the layers without children put out for one sample; training keeps about as many for backward.

    Args:
        example: one input (B, ...) or a tuple of arguments. The model's mode stays as it is.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    count = 0

    def add(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal count
        count += out.numel() if isinstance(out, Tensor) else 0

    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [leaf.register_forward_hook(add) for leaf in leaves if not isinstance(leaf, nn.Identity | nn.Flatten)]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return count // len(inputs[0])
