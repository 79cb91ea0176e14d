"""In-place swap of linear layers and 1x1 convolutions for packed ones, where they measured faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine import tune
from gossamer.engine.checks import answer
from gossamer.engine.packing import BF16, BITMAP_BF16, FEW_VECTORS, FORMATS, ROW_FORMATS
from gossamer.engine.report import LayerReport, PlanReport
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.kernels.conv import conv2d
from gossamer.kernels.formats import PackedWeight
from gossamer.kernels.gemv import gemv
from gossamer.kernels.spmm import linear

MOST_DENSITY = 0.7  # above it no candidate is tried
_WRAP = "compile torch.nn.Sequential(model)"
MARGIN = 0.95  # a layer is swapped if it then takes less than this share of its time


class _Packed(nn.Module):
    """A layer with a packed weight, whose tensors are buffers."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = weight
        self.bias: Tensor | None
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        for name in ("pointers", "indices", "values", "bits"):
            self.register_buffer(f"weight_{name}", getattr(weight, name))

    def extra_repr(self) -> str:
        return f"{self.packed.columns}, {self.packed.rows}, {self.packed.kind}, density={self.packed.density:.3f}"


class PackedLinear(_Packed):
    """A fully connected layer with a packed weight: (..., in) -> (..., out); for inference.

    Args:
        weight: (out, in) from `gossamer.kernels.formats`; bitmap and csr16 suit a few vectors, the others many.
        bias: (out) or None.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.in_features, self.out_features = weight.columns, weight.rows

    def forward(self, x: Tensor) -> Tensor:
        run = gemv if self.packed.kind in ("bitmap", "csr16") else linear
        with torch.no_grad():
            return run(self.packed, x, bias=self.bias)


class PackedConv1x1(_Packed):
    """A 1x1 convolution of stride 1 with a packed weight; for inference."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.in_channels, self.out_channels = weight.columns, weight.rows

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return conv2d(self.packed, x, bias=self.bias)


@torch.no_grad()
def swap_modules(model: nn.Module, example: Any, rounds: bool = False) -> nn.Module:
    """Replace linear layers and 1x1 convolutions of `model`, in place, by packed ones where that is faster.

    Args:
        model: in evaluation mode.
        example: one input: a tensor, a tuple of positional or a dict of keyword arguments. Each layer is measured
            on what it then reads.
        rounds: products may round to bfloat16.
    Returns:
        the model itself; `model.gossamer_report` is a `PlanReport` with every candidate layer.
    """
    layers = {name: module for name, module in model.named_modules() if _is_candidate(module)}
    if "" in layers:
        raise ConfigError(f"the model is itself the layer, which cannot be exchanged in place: {_WRAP}")
    inputs = record_inputs(model, layers, example)
    report = PlanReport(runs="modules", level=native.level(), threads=native.threads())
    for name, module in layers.items():
        if name not in inputs:
            report.layers.append(_kept(name, module, "the example does not reach it"))
            continue
        packed, entry = _best(name, module, inputs[name], rounds)
        report.layers.append(entry)
        if packed is not None:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, packed.eval())
    model.gossamer_report = report  # type: ignore[assignment]
    return model


def _is_candidate(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_pointwise(module)


def is_pointwise(module: nn.Module) -> bool:
    """A plain 1x1 convolution of stride 1: a product with each pixel."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )


def record_inputs(model: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> dict[str, Tensor]:
    """What each layer reads in one run."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.setdefault(name, args[0].detach().clone())

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    try:
        answer(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _best(name: str, module: nn.Module, x: Tensor, rounds: bool) -> tuple[_Packed | None, LayerReport]:
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    kept = int(torch.count_nonzero(weight)) / max(1, weight.numel())
    if kept > MOST_DENSITY or native.extension() is None:
        return None, _kept(name, module, "it has few zeros" if kept > MOST_DENSITY else "no compiled kernels")
    is_linear = isinstance(module, nn.Linear)
    vectors = x.numel() // max(1, x.shape[-1]) if is_linear else FEW_VECTORS
    formats = ROW_FORMATS if vectors < FEW_VECTORS else FORMATS
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    make = PackedLinear if is_linear else PackedConv1x1
    rivals: dict[str, nn.Module] = {
        kind: make(pack(weight), bias) for kind, pack in formats.items() if rounds or kind not in (*BF16, BITMAP_BF16)
    }
    rivals["torch"] = module
    times = tune.race({kind: partial(rival, x) for kind, rival in rivals.items()}, native.threads())
    dense = times.pop("torch")
    best = min(times, key=lambda kind: times[kind])
    if times[best] > MARGIN * dense:
        why = f"{best} took {1e3 * times[best]:.0f} us"
        return None, _kept(name, module, why, 1e3 * dense)
    entry = LayerReport(name, _kind(module), best, kept, 1e3 * times[best], 1e3 * dense)
    return rivals[best], entry  # type: ignore[return-value]


def _kind(module: nn.Module) -> str:
    return "linear" if isinstance(module, nn.Linear) else "conv 1x1"


def _kept(name: str, module: nn.Module, why: str, dense: float | None = None) -> LayerReport:
    weight: Tensor = module.weight  # type: ignore[assignment]
    kept = int(torch.count_nonzero(weight)) / max(1, weight.numel())
    return LayerReport(name, _kind(module), "torch", kept, dense, dense, None, why)
