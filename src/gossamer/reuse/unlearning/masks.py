"""Which zeros stay: the masks that a network brings, and keeping to them through any edit of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ConfigError, MaskError, ShapeError, unknown
from ...recipes.static import dense
from ...sparsify.groups import LAYERS, Select
from ...sparsify.recipe import Recipe
from ...sparsify.scores import Magnitude
from ...sparsify.sparsifier import Sparsifier
from ...sparsify.updates import SetTo

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Job:
    """How a method is run.

    Attributes:
        masks: parameter name -> bool mask (True = kept); what they drop is exactly 0 at the end.
        seed: of order, noise and new weights. device: as in `TrainConfig`.
        run: folder of a resumable training (methods that train), or None. progress: show it on stderr.
    """

    masks: Masks
    seed: int = 0
    device: str = "auto"
    run: Path | None = None
    resume: bool = False
    progress: bool = False


def zero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the exact zeros in Linear and convolution weights; weights without zeros, or all zero, have none."""
    found = {}
    for path, module in model.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and weight is not None:
            mask = weight.detach() != 0
            if not bool(mask.all()) and bool(mask.any()):
                found[f"{path}.weight" if path else "weight"] = mask
    return found


def resolve_masks(model: nn.Module, masks: Masks | str | None) -> dict[str, Tensor]:
    """The masks to keep to: "zeros" takes `zero_masks`, None none.

    Raises:
        ConfigError: another word, or a name that is no parameter. ShapeError: a mask that does not fit.
        MaskError: a mask that keeps nothing, or a masked weight that is not 0.
    """
    if masks is None:
        return {}
    if isinstance(masks, str):
        if masks != "zeros":
            raise unknown("choice of masks", masks, ("zeros",))
        return zero_masks(model)
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise unknown("masked parameter", name, parameters)
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise ShapeError(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}, its weight needs bool "
                f"{tuple(parameters[name].shape)}"
            )
        if not bool(mask.any()):
            raise MaskError(f"the mask of {name} keeps nothing")
        leaked = int(parameters[name].detach()[~mask.to(parameters[name].device)].count_nonzero())
        if leaked:
            raise MaskError(f"{leaked} masked weights of {name} are not 0; the mask is not this model's")
    return dict(masks)


def fixed(masks: Masks) -> Recipe:
    """A recipe whose Sparsifier has groups for exactly these weights; `hold` then writes the masks into it."""
    if not masks:
        return dense()
    select = Select(layers=tuple(LAYERS), only=tuple(masks))
    return Recipe("fixed-mask", select, updates=(SetTo(Magnitude(), 1.0),))


def hold(masks: Masks) -> Callable[[Sparsifier], None]:
    """A callback that sets a fresh Sparsifier's masks and the zeros that they ask for."""

    def write(sparsifier: Sparsifier) -> None:
        if set(sparsifier.masks) != set(masks):
            odd = sorted(set(sparsifier.masks) ^ set(masks))
            raise ConfigError(f"{odd[0]} cannot be masked here; masks are for weights of {', '.join(LAYERS)} layers")
        for name, mask in masks.items():
            sparsifier.masks[name].copy_(mask)
        sparsifier.enforce()

    return write


@contextmanager
def keeping(model: nn.Module, masks: Masks) -> Iterator[None]:
    """Edit the weights in any way inside; at the end what the masks drop is exactly 0 again."""
    sparsifier = Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.0), fixed(masks), 1)
    try:
        hold(masks)(sparsifier)
        yield
        sparsifier.enforce()
    finally:
        sparsifier.remove()
