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

import torch
from torch import Tensor, nn

from gossamer.engine.modules import is_pointwise
from gossamer.engine.sparse_layer import SparseConv1x1, SparseLinear
from gossamer.engine.sparse_store import LinearStore, Swap
from gossamer.errors import ConfigError, MaskError
from gossamer.kernels import native
from gossamer.sparsify.estimators import Projected
from gossamer.sparsify.sparsifier import Sparsifier

__all__ = ["SPARSE", "SparseConv1x1", "SparseLinear", "sparsify_linears"]

log = logging.getLogger(__name__)

SPARSE = "sparse"
MOST_CONV_DENSITY = 0.3
ELEMENTWISE = (nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Dropout)
READABLE = frozenset({"grad", "activations", "gram"})  # statistics that a sparse layer can still give


def sparsify_linears(sparsifier: Sparsifier, max_density: float = 0.5) -> dict[str, str]:
    """Train the masked linear layers and 1x1 convolutions of a Sparsifier's model by their non-zeros, from now on.

    Call it after the Sparsifier is made, and before a checkpoint of the optimiser is loaded. Everything else stays: the
    loop, the optimiser, updates of the mask (a dense gradient is computed on the steps that need one), saved states.
    `sparsifier.finalize()` or `remove()` puts plain `nn.Linear` layers back. Inside `nn.Sequential` a following ReLU is
    taken into the layer.

    Layers that are sparse already stay so: call it again where a dense-to-sparse recipe has made more of them sparse
    enough.

    Args:
        sparsifier: of a recipe whose weights are 0 off the mask (static masks, dynamic sparse training).
        max_density: denser layers stay as they are; the default is where the kernels stop winning (benchmarks).
            Convolutions need at least 70 % of zeros, as their pixels are put in order first.
    Returns:
        parameter name of each masked weight -> "sparse", or why it stays masked dense (also logged, once).
    Raises:
        ConfigError: no Sparsifier, or max_density is not in (0, 1].
        MaskError: a weight is not zero off its mask.
    """
    if not isinstance(sparsifier, Sparsifier):
        raise ConfigError(
            f"sparsify_linears takes a Sparsifier, whose model it changes; got {type(sparsifier).__name__}"
        )
    if not 0 < max_density <= 1:
        raise ConfigError(f"max_density must lie in (0, 1], got {max_density}")
    model, masks = sparsifier.model, sparsifier.entry_masks
    general = _why_not_at_all(sparsifier)
    done = {name for name in masks if isinstance(model.get_submodule(name.rpartition(".")[0]), SparseLinear)}
    rest = {name: mask for name, mask in masks.items() if name not in done}
    why = {name: general or _why_not(model, name, mask, max_density) or SPARSE for name, mask in rest.items()}
    report = {name: SPARSE if name in done else why[name] for name in masks}
    chosen = [name for name in rest if report[name] == SPARSE]
    _tell(report)
    if chosen:
        layers = {name: _make(model, name, masks[name]) for name in chosen}
        swaps = [Swap(model, name.rpartition(".")[0], layer) for name, layer in layers.items()]
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
    if not (type(module) is nn.Linear or is_pointwise(module)) or attr != "weight" or not path:
        return f"no plain nn.Linear or 1x1 nn.Conv2d of stride 1 inside the model, but {type(module).__name__}"
    weight = module.weight
    if weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return f"{weight.dtype} on {weight.device}, and the kernels are for float32 on the CPU"
    if _owners(model, weight) > 1 or _hooked(module):
        return "shared with another layer, or with hooks of its own"
    if not weight.requires_grad:
        return "frozen"
    density = float(mask.float().mean())
    most = min(max_density, MOST_CONV_DENSITY) if weight.dim() == 4 else max_density
    if density > most:
        return f"denser than {most:g}"
    return None


def _owners(model: nn.Module, weight: Tensor) -> int:
    """Under how many names a parameter, or its module, is used."""
    named = model.named_parameters(remove_duplicate=False)
    return sum(parameter is weight for _, parameter in named)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _make(model: nn.Module, name: str, mask: Tensor) -> SparseLinear:
    layer = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    leaked = int(layer.weight.detach()[~mask].count_nonzero())
    if leaked:
        raise MaskError(f"{leaked} weights of {name} are not zero off the mask; call sparsifier.enforce() first")
    return SparseConv1x1(layer, mask) if isinstance(layer, nn.Conv2d) else SparseLinear(layer, mask)


def _fuse(model: nn.Module) -> list[Swap]:
    """Inside sequences: take ReLUs into sparse layers, and keep samples side by side up to the next linear layer."""
    swaps = []
    for path, sequence in list(model.named_modules()):
        if type(sequence) is not nn.Sequential:
            continue
        for layer, (name, after), followers in _neighbours(sequence):
            if type(after) is nn.ReLU and not _hooked(after):
                layer.relu = True
                swaps.append(Swap(model, f"{path}.{name}" if path else name, nn.Identity()))
            consumer = next((m for m in followers if not isinstance(m, ELEMENTWISE)), None)
            if isinstance(layer, SparseConv1x1):
                continue
            layer.row_major = not isinstance(consumer, (SparseLinear, nn.Linear))
    return swaps


def _neighbours(sequence: nn.Sequential) -> Iterator[tuple[SparseLinear, tuple[str, nn.Module], list[nn.Module]]]:
    """Each sparse layer, the module behind it with its name, and all modules behind it."""
    items = list(sequence.named_children())
    for i, (_, module) in enumerate(items[:-1]):
        if isinstance(module, SparseLinear):
            yield module, items[i + 1], [m for _, m in items[i + 1 :]]
