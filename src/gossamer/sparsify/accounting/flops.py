"""FLOPs of one forward pass, per weight, dense and sparse. One multiply-accumulate is two FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...errors import ConfigError
from ..context import undisturbed
from .parameters import Masks, named_weights, unique_weights

PRODUCTS = "products"  # the row of products of two activations: attention scores and values
aten = torch.ops.aten


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs per sample that one weight causes; `density` is its kept fraction."""

    name: str
    dense: float
    density: float = 1.0

    @property
    def sparse(self) -> float:
        """dense * density: what a kernel that skips every zero would do."""
        return self.dense * self.density


@dataclass(frozen=True)
class Flops:
    """FLOPs per sample of a network: rows in order of first use, and their sums."""

    layers: tuple[LayerFlops, ...]

    @property
    def dense(self) -> float:
        """f_D."""
        return sum(layer.dense for layer in self.layers)

    @property
    def sparse(self) -> float:
        """f_S."""
        return sum(layer.sparse for layer in self.layers)

    @property
    def macs(self) -> float:
        """Dense multiply-accumulates."""
        return self.dense / 2

    @property
    def ratio(self) -> float:
        """f_S / f_D; 1 where nothing is counted."""
        return self.sparse / self.dense if self.dense else 1.0

    def at(self, densities: Mapping[str, float]) -> float:
        """f_S at other densities of the weights; those not named are dense."""
        return sum(layer.dense * densities.get(layer.name, 1.0) for layer in self.layers)


def _matmul(args: tuple[Any, ...]) -> float:
    x, y = args[-2:]
    return 2 * math.prod(x.shape) * y.shape[-1]


def _convolution(args: tuple[Any, ...]) -> float:
    """Every weight meets every output position (input position where transposed) of each sample once."""
    x, weight, _, stride, padding, dilation, transposed, _, _ = args[:9]
    side = x.shape[2:]
    if not transposed:
        kernel = weight.shape[2:]
        full = [_spread(values, len(side)) for values in (stride, padding, dilation)]
        side = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(side, kernel, *full, strict=True)]
    return 2 * x.shape[0] * math.prod(side) * weight.numel()


def _spread(values: list[int], count: int) -> list[int]:
    return list(values) * count if len(values) == 1 else list(values)


def _attention(args: tuple[Any, ...]) -> float:
    q, k, v = args[:3]
    return 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


# Operator -> (which arguments may be weights, FLOPs of the arguments). Bias additions are not counted.
COUNTED: dict[Any, tuple[tuple[int, ...], Callable[[tuple[Any, ...]], float]]] = {
    aten.mm.default: ((0, 1), _matmul),
    aten.addmm.default: ((1, 2), lambda args: _matmul(args[:3])),
    aten.bmm.default: ((0, 1), _matmul),
    aten.baddbmm.default: ((1, 2), lambda args: _matmul(args[:3])),
    aten.mv.default: ((0, 1), lambda args: 2 * args[0].numel()),
    aten.dot.default: ((0, 1), lambda args: 2 * args[0].numel()),
    aten.convolution.default: ((1,), _convolution),
    aten._scaled_dot_product_flash_attention_for_cpu.default: ((), _attention),
    aten._scaled_dot_product_flash_attention.default: ((), _attention),
    aten._scaled_dot_product_efficient_attention.default: ((), _attention),
    aten._scaled_dot_product_cudnn_attention.default: ((), _attention),
}


class _Counter(TorchDispatchMode):
    """Adds up FLOPs by the weight whose memory an operator reads.

    `owners`: memory address -> weight, "" for buffers. What is computed from one weight and buffers only (a cast, a
    masked or normalised weight) belongs to that weight.
    """

    def __init__(self, owners: dict[int, str]) -> None:
        super().__init__()
        self.owners = owners
        self.total: dict[str, float] = {}
        self.alive: list[Tensor] = []  # so that no address is used twice

    def _follow(self, inputs: Any, outputs: Any) -> Any:
        read = [self.owners.get(_address(t)) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        weights = {name for name in read if name}
        if len(weights) == 1 and None not in read:
            derived = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
            self.alive += derived
            self.owners.update(dict.fromkeys(map(_address, derived), weights.pop()))
        return outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = COUNTED.get(func)
        if rule is None:
            with self:  # composite operators come back as the operators that they consist of
                whole = func.decompose(*args, **(kwargs or {}))
            return self._follow((args, kwargs), func(*args, **(kwargs or {}))) if whole is NotImplemented else whole
        places, cost = rule
        names = (self.owners.get(_address(args[i])) for i in places)
        name = next((found for found in names if found), PRODUCTS)
        self.total[name] = self.total.get(name, 0.0) + cost(args)
        return func(*args, **(kwargs or {}))


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation without gradients, side effects or fused kernels that hide what they compute."""
    training = {module: module.training for module in model.modules()}
    fused, native = torch.backends.mha.get_fastpath_enabled(), bool(torch.backends.mkldnn.enabled)
    recurrent = any(isinstance(module, nn.RNNBase) for module in training)
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        torch.backends.mkldnn.enabled = native and not recurrent  # type: ignore[assignment]
        with undisturbed(model), torch.no_grad():
            yield
    finally:
        torch.backends.mkldnn.enabled = native  # type: ignore[assignment]
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training.items():
            module.training = mode


def flops(
    model: nn.Module,
    example: Any,
    masks: Masks | None = None,
    *,
    attention: bool = False,
    samples: int | None = None,
) -> Flops:
    """FLOPs of one forward pass per sample, by weight; runs the model once, in evaluation mode.

    Counted are matrix products and convolutions (groups, stride, dilation, transposed), found by the weight that
    they read, in modules and plain functions alike; a weight used twice counts twice. Norms, activations and
    biases are not counted; products of two activations only with `attention`.

    Args:
        example: one input (B, ...), or a tuple of positional arguments.
        masks: parameter name -> bool mask. None: the non-zero values decide.
        attention: add a row "products" for products of two activations (queries and keys, scores and values);
            masks of causal attention save nothing here.
        samples: batch size of the example; default: length of its first tensor.
    Raises:
        ConfigError: no tensor in the example, or an example without samples.
    Source: counting rules of Evci et al. 2020 (RigL), appendix H: sparse = dense * density.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if samples is None and not (tensors and tensors[0].ndim):
        raise ConfigError("FLOPs need an example input with a batch dimension, such as torch.zeros(1, 3, 32, 32)")
    batch = samples if samples is not None else len(tensors[0])
    if batch < 1:
        raise ConfigError(f"FLOPs are per sample, the example has {batch}")
    with parametrize.cached(), quiet(model):
        owners, densities = _owners(model, masks)
        counter = _Counter(owners)
        with counter:
            model(*inputs)
    rows = (LayerFlops(name, total / batch, densities.get(name, 1.0)) for name, total in counter.total.items())
    return Flops(tuple(row for row in rows if attention or row.name != PRODUCTS))


def _owners(model: nn.Module, masks: Masks | None) -> tuple[dict[int, str], dict[str, float]]:
    """(memory address -> weight, weight -> density)."""
    densities = {}
    for name, value, mask in unique_weights(model, masks):
        kept = mask if mask is not None else value
        dense = not value.numel() or (mask is None and masks is not None)
        densities[name] = 1.0 if dense else int(kept.count_nonzero()) / kept.numel()
    owners: dict[int, str] = {}
    for name, value in named_weights(model):
        if value.ndim:
            owners.setdefault(_address(value), name)
    for buffer in model.buffers():
        owners.setdefault(_address(buffer), "")
    return owners, densities
