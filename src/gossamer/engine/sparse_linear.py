"""Training that touches only non-zeros: linear layers whose weights live as flat values at a packed pattern.

>>> from gossamer.recipes.dynamic import rigl
>>> from gossamer.sparsify.sparsifier import Sparsifier
>>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
>>> sparsifier = Sparsifier(model, optimizer, rigl(0.9), steps=1000)
>>> layers = sparsify_linears(sparsifier)  # then train as ever; sparsifier.finalize() undoes it
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import ConfigError, MaskError
from gossamer.kernels import native
from gossamer.kernels.sparse_train import sparse_linear
from gossamer.kernels.train_pattern import Pattern, gather, pack_pattern, positions, scatter_, transfer
from gossamer.sparsify.estimators import Projected
from gossamer.sparsify.sparsifier import Sparsifier

log = logging.getLogger(__name__)

SPARSE = "sparse"
ELEMENTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Dropout)
READABLE = frozenset({"grad", "activations", "gram"})  # statistics that a sparse layer can still give


class SparseLinear(nn.Module):
    """A linear layer that trains the non-zeros of its weight: forward, both gradients and optimiser cost fall with
    density.

    `values` is trained. `weight` is the dense parameter of the layer that this one replaces: exact zeros off the mask,
    kept up to date by `write_back` (which saving, evaluation mode and updates of the mask call). The layer saves and
    loads as the plain `nn.Linear` does. Where the values are no float32 on the CPU, it computes masked dense.

    Args:
        linear: the layer to replace; it keeps its parameters.
        mask: (out, in) bool, read again by `read`.
        relu: apply max(., 0), which is then free.
        row_major: give contiguous results; else the samples of a feature lie side by side (kernels/sparse_train.py).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, mask: Tensor, relu: bool = False, row_major: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.relu, self.row_major = relu, row_major
        self.weight = cast(nn.Parameter, linear.weight)
        self.bias = cast("nn.Parameter | None", linear.bias)
        self.mask = mask
        self.pattern = pack_pattern(mask)
        self.values = nn.Parameter(gather(self.pattern, self.weight.detach()))
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

    def _remember(self) -> None:
        """Both forms agree now: note it, to see later whether somebody wrote to the dense weight."""
        self._weight_version = self.weight._version

    @torch.no_grad()
    def write_back(self) -> None:
        """Bring the dense weight up to date."""
        if self.weight._version != self._weight_version:
            self.read(self.mask)
        else:  # always: fused optimisers change values without a new version
            scatter_(self.pattern, self.values.detach(), self.weight.detach())
            self._remember()

    @torch.no_grad()
    def read(self, mask: Tensor) -> Pattern:
        """Take the values from the dense weight at `mask`; returns the pattern before."""
        before, self.mask = self.pattern, mask
        self.pattern = pack_pattern(mask.cpu(), before.geometry)
        values = gather(self.pattern, self.weight.detach())
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


class LinearStore:
    """Sparse layers in the place of a Sparsifier's linear layers: its `Store` (sparsify/stores.py).

    Args:
        layers: parameter name of each weight -> its layer.
        undo: puts the plain layers back.
    """

    def __init__(self, sparsifier: Sparsifier, layers: dict[str, SparseLinear], swaps: list[_Swap]) -> None:
        self.sparsifier, self.layers, self.swaps = sparsifier, layers, swaps
        self.trained = {name: layer.weight.requires_grad for name, layer in layers.items()}
        for layer in layers.values():
            self._enter(layer)

    def expect(self, dense_gradient: bool) -> None:
        """See Store."""
        for layer in self.layers.values():
            layer.wants_dense_gradient = dense_gradient
            layer.dense_gradient = None

    def gradients(self) -> dict[str, Tensor]:
        """See Store."""
        return {n: layer.dense_gradient for n, layer in self.layers.items() if layer.dense_gradient is not None}

    def write_back(self) -> None:
        """See Store."""
        for layer in self.layers.values():
            layer.write_back()

    def read(self, updated: bool) -> None:
        """See Store."""
        for name, layer in self.layers.items():
            values, before = layer.values, layer.read(self.sparsifier.entry_masks[name])
            self._follow(values, layer.values)
            if updated:
                self._carry_over(layer, before)

    def release(self) -> None:
        """See Store."""
        for name, layer in self.layers.items():
            layer.write_back()
            layer.weight.requires_grad_(self.trained[name])
            self._leave(layer)
        for swap in reversed(self.swaps):
            swap.undo()

    def _follow(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Let the optimiser train `new` where it trained `old`."""
        if new is not old:
            group, state = _group_of(self.sparsifier.optimizer, old), self.sparsifier.optimizer.state
            group["params"] = [new if p is old else p for p in group["params"]]
            if old in state:
                state[new] = state.pop(old)

    def _carry_over(self, layer: SparseLinear, before: Pattern) -> None:
        """The optimiser's buffers of entries that stay."""
        state = self.sparsifier.optimizer.state.get(layer.values, {})
        for key, buffer in state.items():
            if torch.is_tensor(buffer) and buffer.shape == (before.nonzeros,):
                state[key] = transfer(before, buffer, layer.pattern)

    def _enter(self, layer: SparseLinear) -> None:
        """The optimiser trains the values from now on; the dense weight stays in its group without a gradient."""
        weight, state = layer.weight, self.sparsifier.optimizer.state
        weight.requires_grad_(False)
        weight.grad = None
        group = _group_of(self.sparsifier.optimizer, weight)
        group["params"].append(layer.values)
        if weight in state:
            state[layer.values] = {
                key: gather(layer.pattern, value) if _like(value, weight) else value
                for key, value in state.pop(weight).items()
            }

    def _leave(self, layer: SparseLinear) -> None:
        """The optimiser trains the dense weight again, with the buffers that the values had."""
        weight, state = layer.weight, self.sparsifier.optimizer.state
        group = _group_of(self.sparsifier.optimizer, layer.values)
        group["params"] = [p for p in group["params"] if p is not layer.values]
        if layer.values in state:
            state[weight] = {
                key: scatter_(layer.pattern, value, torch.zeros_like(weight)) if _like(value, layer.values) else value
                for key, value in state.pop(layer.values).items()
            }


def _like(value: object, parameter: Tensor) -> bool:
    return torch.is_tensor(value) and value.shape == parameter.shape


def _group_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict:
    return next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))


class _Swap:
    """One module put in the place of another."""

    def __init__(self, model: nn.Module, path: str, new: nn.Module) -> None:
        parent, _, self.leaf = path.rpartition(".")
        self.holder = model.get_submodule(parent)
        self.old = getattr(self.holder, self.leaf)
        setattr(self.holder, self.leaf, new.train(self.old.training))

    def undo(self) -> None:
        """Put the old module back, in the present mode."""
        setattr(self.holder, self.leaf, self.old.train(getattr(self.holder, self.leaf).training))


def sparsify_linears(sparsifier: Sparsifier, max_density: float = 0.5) -> dict[str, str]:
    """Train the masked linear layers of a Sparsifier's model by their non-zeros, from now on.

    Call it after the Sparsifier is made, and before a checkpoint of the optimiser is loaded. Everything else stays: the
    loop, the optimiser, updates of the mask (a dense gradient is computed on the steps that need one), saved states.
    `sparsifier.finalize()` or `remove()` puts plain `nn.Linear` layers back. Inside `nn.Sequential` a following ReLU is
    taken into the layer.

    Args:
        sparsifier: of a recipe whose weights are 0 off the mask (static masks, dynamic sparse training).
        max_density: denser layers stay as they are; the default is where the kernels stop winning (benchmarks).
    Returns:
        parameter name of each masked weight -> "sparse", or why it stays masked dense (also logged, once).
    Raises:
        ConfigError: max_density is not in (0, 1].
        MaskError: a weight is not zero off its mask.
    """
    if not 0 < max_density <= 1:
        raise ConfigError(f"max_density must lie in (0, 1], got {max_density}")
    model, masks = sparsifier.model, sparsifier.entry_masks
    general = _why_not_at_all(sparsifier)
    report = {name: general or _why_not(model, name, mask, max_density) or SPARSE for name, mask in masks.items()}
    chosen = [name for name, why in report.items() if why == SPARSE]
    _tell(report)
    if chosen:
        layers = {name: _make(model, name, masks[name]) for name in chosen}
        swaps = [_Swap(model, name.rpartition(".")[0], layer) for name, layer in layers.items()]
        swaps += _fuse(model)
        sparsifier.attach(LinearStore(sparsifier, layers, swaps))
    return report


def _tell(report: dict[str, str]) -> None:
    reasons = Counter(why for why in report.values() if why != SPARSE)
    if reasons:
        what = "; ".join(f"{count}: {why}" for why, count in reasons.items())
        log.warning("%d of %d masked weights train masked dense (%s)", reasons.total(), len(report), what)


def _why_not_at_all(sparsifier: Sparsifier) -> str | None:
    """Why no layer of this run can be sparse."""
    recipe = sparsifier.recipe
    later = frozenset().union(*(u.needs for u in recipe.updates if u.when is not None))
    if native.extension() is None:
        return "the compiled kernels are missing or switched off"
    if not isinstance(recipe.family, Projected) or not recipe.family.mask_grad:
        return f"{recipe.name} trains weights outside the mask"
    if recipe.weight_ops or recipe.regularizers:
        return f"{recipe.name} edits dense weights or gradients in every step"
    if later - READABLE:
        return f"{recipe.name} needs {', '.join(sorted(later - READABLE))}, which sparse layers cannot give"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "sparse layers are not synchronised between processes"
    return None


def _why_not(model: nn.Module, name: str, mask: Tensor, max_density: float) -> str | None:
    """Why this weight stays masked dense."""
    path, _, attr = name.rpartition(".")
    module = model.get_submodule(path)
    if type(module) is not nn.Linear or attr != "weight" or not path:
        return f"no plain nn.Linear inside the model, but {type(module).__name__}"
    weight = module.weight
    if weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return f"{weight.dtype} on {weight.device}, and the kernels are for float32 on the CPU"
    if _owners(model, weight) > 1 or _hooked(module):
        return "shared with another layer, or with hooks of its own"
    if not weight.requires_grad:
        return "frozen"
    density = float(mask.float().mean())
    if density > max_density:
        return f"denser than {max_density:g}"
    return None


def _owners(model: nn.Module, weight: Tensor) -> int:
    """Under how many names a parameter, or its module, is used."""
    named = model.named_parameters(remove_duplicate=False)
    return sum(parameter is weight for _, parameter in named)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _make(model: nn.Module, name: str, mask: Tensor) -> SparseLinear:
    linear = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(linear, nn.Linear)
    leaked = int(linear.weight.detach()[~mask].count_nonzero())
    if leaked:
        raise MaskError(f"{leaked} weights of {name} are not zero off the mask; call sparsifier.enforce() first")
    return SparseLinear(linear, mask)


def _fuse(model: nn.Module) -> list[_Swap]:
    """Inside sequences: take ReLUs into sparse layers, and keep samples side by side up to the next linear layer."""
    swaps = []
    for path, sequence in list(model.named_modules()):
        if type(sequence) is not nn.Sequential:
            continue
        for layer, (name, after), followers in _neighbours(sequence):
            if type(after) is nn.ReLU and not _hooked(after):
                layer.relu = True
                swaps.append(_Swap(model, f"{path}.{name}" if path else name, nn.Identity()))
            consumer = next((m for m in followers if not isinstance(m, ELEMENTWISE)), None)
            layer.row_major = not isinstance(consumer, (SparseLinear, nn.Linear))
    return swaps


def _neighbours(sequence: nn.Sequential) -> Iterator[tuple[SparseLinear, tuple[str, nn.Module], list[nn.Module]]]:
    """Each sparse layer, the module behind it with its name, and all modules behind it."""
    items = list(sequence.named_children())
    for i, (_, module) in enumerate(items[:-1]):
        if isinstance(module, SparseLinear):
            yield module, items[i + 1], [m for _, m in items[i + 1 :]]
