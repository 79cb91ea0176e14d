"""In-place swap of linear layers for 8-bit ones, where calibration finds them near enough and a clock faster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine import tune
from gossamer.engine.modules import MARGIN, record_inputs
from gossamer.engine.packing import FEW_VECTORS
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.kernels.int8 import Int8Weight, gemv_int8, pack_int8

INT8 = "int8"
_TENSORS = ("pointers", "bits", "values", "scales", "offsets")


class Int8Linear(nn.Module):
    """A fully connected layer in 8-bit integers, its zeros left out: (..., in) -> (..., out); for inference.

    Args:
        weight: from `pack_int8`.
        bias: (out) or None.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.packed = weight.columns, weight.rows, weight
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        for name in _TENSORS:
            self.register_buffer(f"weight_{name}", getattr(weight, name))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return gemv_int8(self.packed, x, bias=self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, int8, density={self.packed.density:.3f}"


@torch.no_grad()
def swap_int8(model: nn.Module, calibration: Any, most_error: float = 0.02) -> dict[str, str]:
    """Replace linear layers of `model`, in place, by 8-bit ones.

    For layers that meet fewer than 8 vectors at a time (a classifier or a decoder at batch 1): more are faster as
    sparse float32. Unlike `gossamer.compile`, this changes results, by about 1 % of a layer's output; measure your
    task's accuracy before and after.

    Args:
        model: in evaluation mode, float32 on the CPU.
        calibration: one typical input, with the batch that will be used: a tensor, a tuple of positional or a dict of
            keyword arguments.
        most_error: a layer whose output on the calibration input is further off than this (relative, in the
            Frobenius norm) stays.
    Returns:
        name of each linear layer -> "int8", or why it stays.
    Raises:
        ConfigError: the model is in training mode.
    """
    if model.training:
        raise ConfigError("8-bit layers are for inference, but the model is in training mode; call model.eval() first")
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear and name}
    inputs = record_inputs(model, layers, calibration)
    report = {}
    for name, layer in layers.items():
        made, report[name] = _try(layer, inputs, name, most_error)
        if made is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, made)
    return report


def _try(layer: nn.Linear, inputs: Mapping[str, Tensor], name: str, most_error: float) -> tuple[Int8Linear | None, str]:
    """The 8-bit layer and "int8", or None and the reason."""
    if name not in inputs:
        return None, "the calibration input does not reach it"
    x = inputs[name]
    vectors = x.numel() // max(1, x.shape[-1])
    if vectors >= FEW_VECTORS:
        return None, f"it meets {vectors} vectors at a time; sparse float32 is faster from {FEW_VECTORS} on"
    if native.extension() is None:
        return None, "no compiled kernels"
    made = Int8Linear(pack_int8(layer.weight), layer.bias)
    wanted = layer(x)
    error = float((made(x) - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not error <= most_error:
        return None, f"its output would be off by {error:.1%}"
    times = tune.race({INT8: partial(made, x), "torch": partial(layer, x)}, native.threads())
    if times[INT8] > MARGIN * times["torch"]:
        return None, f"it took {1e3 * times[INT8]:.0f} us against {1e3 * times['torch']:.0f}"
    return made, INT8
