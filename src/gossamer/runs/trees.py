"""Nested state as JSON: tensors are taken out and named, everything else is writte

n so that it comes back equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import CheckpointError

Tree = Any  # nested dict, list or tuple whose leaves are tensors, str, int, float, bool or None


def flatten(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """The JSON value that describes `tree`, and its tensors by name (their path, joined by `/`).

    Dictionaries keep their order and may have integer keys; tuples stay tuples; NaN and infinity survive.

    Raises:
        CheckpointError: a leaf that is neither a tensor nor a JSON value, named by its path.
    """
    tensors: dict[str, Tensor] = {}

    def encode(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            name = path if path not in tensors else f"{path}#{len(tensors)}"
            tensors[name] = node
            return {"$tensor": name}
        if isinstance(node, Mapping):
            items = [(key, encode(value, f"{path}/{key}" if path else str(key))) for key, value in node.items()]
            if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
                return dict(items)
            return {"$items": [[encode(key, f"{path}/(key)"), value] for key, value in items]}
        if isinstance(node, list | tuple):
            values = [encode(value, f"{path}/{i}" if path else str(i)) for i, value in enumerate(node)]
            return values if isinstance(node, list) else {"$tuple": values}
        if isinstance(node, float) and not math.isfinite(node):
            return {"$float": repr(float(node))}
        if node is None or isinstance(node, bool):
            return node
        for kind in (int, float, str):
            if isinstance(node, kind):
                return kind(node)  # a plain one: numpy's float64 is a float, too
        raise CheckpointError(
            f"{path or 'the state'} is a {type(node).__name__}; a checkpoint holds tensors, text, numbers, "
            "true/false, null, and lists and dictionaries of them"
        )

    return encode(tree, ""), tensors


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree that `flatten` described."""
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$items" in value:
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in value["$items"]}
    if "$tuple" in value:
        return tuple(unflatten(item, tensors) for item in value["$tuple"])
    if "$float" in value:
        return float(value["$float"])
    return {key: unflatten(item, tensors) for key, item in value.items()}


def check_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str = "the model") -> None:
    """Check that two sets of named tensors have the same names, shapes and dtypes.

    Raises:
        CheckpointError: they differ; the message names the first difference and the nearest names.
    """
    missing = [name for name in wanted if name not in found]
    spare = [name for name in found if name not in wanted]
    if missing or spare:
        name, others = (missing[0], spare or list(found)) if missing else (spare[0], list(wanted))
        near = get_close_matches(name, others, n=3, cutoff=0.5)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        side = "is missing from the checkpoint" if missing else f"is unknown to {what}"
        raise CheckpointError(
            f"the checkpoint is of another model: {name} {side}{hint}; "
            f"{len(missing)} missing, {len(spare)} unknown. Build the model that was saved"
        )
    for name, tensor in wanted.items():
        got = found[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {tuple(got.shape)} of {got.dtype} "
                f"in the checkpoint, {tuple(tensor.shape)} of {tensor.dtype} in {what}"
            )


def load_model(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a saved `state_dict` into `model`, after `check_same`."""
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    check_same({name: value for name, value in state.items() if isinstance(value, Tensor)}, tensors)
    model.load_state_dict(dict(state))
