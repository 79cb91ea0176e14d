"""In-place swap of linear layers for 8-bit ones, where calibration finds them near enough and a clock faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from gossamer.kernels.int8_steps import Int8Steps, gemv_int8_steps, pack_int8_steps

INT8, STEPS = "int8", "int8 steps"
FORMATS: dict[str, Callable[[Tensor], Int8Weight | Int8Steps]] = {INT8: pack_int8, STEPS: pack_int8_steps}
_TENSORS = ("pointers", "bits", "starts", "values", "places", "scales", "offsets")


class Int8Linear(nn.Module):
    """A fully connected layer in 8-bit integers, its zeros left out: (..., in) -> (..., out); for inference.

    Args:
        weight: from `pack_int8` or, faster below a density of some 0.3, `pack_int8_steps`.
        bias: (out) or None.
    """

    def __init__(self, weight: Int8Weight | Int8Steps, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.packed = weight.columns, weight.rows, weight
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        for name in _TENSORS:
            if hasattr(weight, name):
                self.register_buffer(f"weight_{name}", getattr(weight, name))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            if isinstance(self.packed, Int8Steps):
                return gemv_int8_steps(self.packed, x, bias=self.bias)
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
        name of each linear layer -> "int8" (a bitmap) or "int8 steps", whichever was faster, or why it stays.
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
            setattr(model.get_submodule(parent), attribute, made.eval())
    return report


def _try(layer: nn.Linear, inputs: Mapping[str, Tensor], name: str, most_error: float) -> tuple[Int8Linear | None, str]:
    """The 8-bit layer and its kind, or None and the reason."""
    if name not in inputs:
        return None, "the calibration input does not reach it"
    x = inputs[name]
    vectors = x.numel() // max(1, x.shape[-1])
    if vectors >= FEW_VECTORS:
        return None, f"it meets {vectors} vectors at a time; sparse float32 is faster from {FEW_VECTORS} on"
    if native.extension() is None:
        return None, "no compiled kernels"
    made = {kind: Int8Linear(pack(layer.weight), layer.bias) for kind, pack in FORMATS.items()}
    wanted = layer(x)
    error = float((made[INT8](x) - wanted).norm() / wanted.norm().clamp(min=1e-30))  # all give the same bits
    if not error <= most_error:
        return None, f"its output would be off by {error:.1%}"
    times = tune.race({kind: partial(one, x) for kind, one in {**made, "torch": layer}.items()}, native.threads())
    best = min(made, key=lambda kind: times[kind])
    if times[best] > MARGIN * times["torch"]:
        return None, f"it took {1e3 * times[best]:.0f} us against {1e3 * times['torch']:.0f}"
    return made[best], best
