"""The layers that one-shot pruning works on, each seen as matrices over the columns that its inputs fill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import ParametrizationList

from ..errors import ConfigError, NumericsError, unknown
from ..sparsify.groups import Select
from ..sparsify.patterns import NM, Pattern

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """A Linear, a convolution, or a Linear with a transposed weight (the `Conv1D` of GPT-2).

    A weight is oriented as (out, in, *kernel) and cut into `groups` matrices (out / groups, columns).
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, as the module holds it."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for everything else."""
        return self.module.groups if isinstance(self.module, _CONVS) else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the oriented weight."""
        return tuple(self.oriented(self.weight).shape)

    def oriented(self, tensor: Tensor) -> Tensor:
        """A tensor of the weight's shape as (out, in, *kernel), or back: it is its own inverse."""
        return tensor.t() if _is_transposed(self.module) else tensor

    def order(self, pattern: Pattern) -> Tensor:
        """The columns in the order in which a pattern groups them: N:M takes input channels as neighbours."""
        kernel = self.shape[2:]
        columns = torch.arange(torch.Size(self.shape[1:]).numel(), device=self.weight.device)
        if kernel and isinstance(pattern, NM) and pattern.layout == "channels_last":
            return columns.view(self.shape[1:]).movedim(0, -1).reshape(-1)
        return columns

    def geometry(self) -> tuple[object, ...]:
        """What decides how inputs fill the columns: layers of one input and one geometry share statistics."""
        m = self.module
        if isinstance(m, _CONVS):
            return (m.kernel_size, m.stride, m.padding, m.dilation, m.groups, m.padding_mode)
        return ()

    def rows(self, x: Tensor) -> Tensor:
        """Inputs of the module as (groups, samples, columns); a sample of a convolution is one output position."""
        m = self.module
        if not isinstance(m, _CONVS):
            return x.reshape(1, -1, x.shape[-1])
        dims = len(m.kernel_size)
        if x.ndim == dims + 1:
            x = x[None]
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
        x = F.pad(x, m._reversed_padding_repeated_twice, mode)
        for d, (size, step, gap) in enumerate(zip(m.kernel_size, m.stride, m.dilation, strict=True)):
            x = x.unfold(2 + d, gap * (size - 1) + 1, step)[..., ::gap]
        x = x.movedim(1, 1 + dims)  # (B, *out, in, *kernel)
        return x.reshape(-1, m.groups, self.weight[0].numel()).transpose(0, 1)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _is_layer(module: nn.Module, kinds: tuple[str, ...]) -> bool:
    if "conv" in kinds and isinstance(module, _CONVS):
        return True
    return "linear" in kinds and (isinstance(module, nn.Linear) or _is_transposed(module))


def prunable(model: nn.Module, select: Select) -> tuple[list[Layer], dict[str, str]]:
    """The layers of `model` that `select` chooses, in registration order, and why others stay dense.

    Weights that several modules share (output layers tied to an embedding), output embeddings of Hugging Face models,
    parametrised weights, and matrices of other modules (transposed convolutions, recurrent layers, the joint projection
    of torch's attention, experts stacked in one tensor) stay dense.

    Raises:
        ConfigError: nothing is left to prune, or a name pattern of `select` matches nothing.
        NumericsError: a weight holds NaN.
    """
    for kind in select.layers:
        if kind not in ("linear", "conv", "gate"):
            raise unknown("layer kind of one-shot pruning", kind, ("linear", "conv"))
    found = [(n, m) for n, m in model.named_modules() if _is_layer(m, select.layers)]
    named = [(f"{path}.weight" if path else "weight", module) for path, module in found]
    for glob in (*select.only, *select.exclude):
        if glob != "*" and not any(fnmatchcase(name, glob) for name, _ in named):
            raise unknown("weight pattern", glob, [name for name, _ in named])
    chosen = [(name, m) for name, m in named if _wanted(name, m, select)]
    chosen = chosen[1 if select.first_dense else 0 : len(chosen) - (1 if select.last_dense else 0)]
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    layers, skipped = [], _others(model, select)
    for name, module in chosen:
        reason = _reason(module, owners, head)
        if reason:
            skipped[name] = reason
            continue
        layers.append(Layer(name, module))
        if not bool(torch.isfinite(layers[-1].weight).all()):
            raise NumericsError(f"{name} has NaN or infinite weights; load a sound model first")
    if not layers:
        raise ConfigError(f"nothing to prune in {type(model).__name__}: {skipped or 'no Linear or Conv is selected'}")
    return layers, skipped


def _others(model: nn.Module, select: Select) -> dict[str, str]:
    """Weights that might be meant, of modules that one-shot pruning does not know: recurrent ones, stacked experts."""
    found = {}
    for path, module in model.named_modules():
        if _is_layer(module, ("linear", "conv")) or isinstance(module, (nn.Embedding, ParametrizationList)):
            continue
        for key, p in module._parameters.items():
            name = f"{path}.{key}".lstrip(".")
            matrix = p is not None and p.ndim > 1 and min(p.shape) > 1
            if matrix and any(fnmatchcase(name, glob) for glob in select.only):
                found[name] = f"weights of a {type(module).__name__} are not pruned in one shot"
    return found


def _wanted(name: str, module: nn.Module, select: Select) -> bool:
    weight = module._parameters.get("weight")
    big = weight is None or weight.numel() >= select.min_numel
    chosen = any(fnmatchcase(name, g) for g in select.only)
    return big and chosen and not any(fnmatchcase(name, g) for g in select.exclude)


def _reason(module: nn.Module, owners: Counter[int], head: object) -> str | None:
    """Why a layer cannot be pruned, or None."""
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed (a parametrisation); finalize the sparsifier first"
    if weight.is_meta:
        raise ConfigError("a weight lies on the meta device; materialise the model first")
    if owners[id(weight)] > 1:
        return "its weight is shared with another module"
    return "output embedding, which stays dense" if module is head else None
