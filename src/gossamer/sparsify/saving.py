"""The state of a Sparsifier as a tree of tensors and JSON values, and back. Masks are bit-packed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from ..kernels.bitmap import pack, packed_shape, unpack

if TYPE_CHECKING:
    from .sparsifier import Sparsifier

VERSION = 1


def state_of(sp: Sparsifier) -> dict[str, Any]:
    """Everything a resumed run needs beside model and optimiser."""
    return {
        "version": VERSION,
        "recipe": sp.recipe.to_yaml(),
        "steps": sp.steps,
        "seed": sp.seed,
        "step": sp.step,
        "flips": sp._flips,
        "dense_gradient_steps": sp.dense_gradient_steps,
        "history": list(sp.history),
        "masks": {name: pack(mask.cpu()) for name, mask in sp.masks.items()},
        "ever": {name: pack(mask.cpu()) for name, mask in sp.ever.items()},
        "statistics": sp.statistics.state_dict(),
    }


def check_state(sp: Sparsifier, state: dict[str, Any]) -> None:
    """Raise CheckpointError if the state is of another version, recipe, length of run, seed or model."""
    if state.get("version") != VERSION:
        raise CheckpointError(f"sparsifier state has version {state.get('version')}, this is {VERSION}")
    for key, mine in (("recipe", sp.recipe.to_yaml()), ("steps", sp.steps), ("seed", sp.seed)):
        if state[key] != mine:
            raise CheckpointError(f"the checkpoint was made with {key}={state[key]!r}, this run has {mine!r}")
    for key in ("masks", "ever"):
        if set(state[key]) != set(sp.masks):
            odd = sorted(set(state[key]) ^ set(sp.masks))
            raise CheckpointError(f"the checkpoint's masks are of another model: they differ in {odd[:3]}")
        for name, bits in state[key].items():
            shape = tuple(sp.masks[name].shape)
            if tuple(bits.shape) != packed_shape(shape):
                raise CheckpointError(f"the mask of {name} does not have the shape {shape}")


@torch.no_grad()
def restore(sp: Sparsifier, state: dict[str, Any]) -> None:
    """Take over a checked state; masks are written in place, for compiled graphs hold on to them."""
    for key, store in (("masks", sp.masks), ("ever", sp.ever)):
        for name, bits in state[key].items():
            store[name].copy_(unpack(bits, tuple(store[name].shape)))
    sp.step = int(state["step"])
    sp._flips = int(state["flips"])
    sp.dense_gradient_steps = int(state["dense_gradient_steps"])
    sp.history = [dict(row) for row in state["history"]]
    sp.statistics.load_state_dict(state["statistics"])
