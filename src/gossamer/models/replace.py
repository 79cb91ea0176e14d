"""Exchange of modules inside a built model, with undo."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from torch import nn

from gossamer.errors import ConfigError, unknown

Match = type[nn.Module] | tuple[type[nn.Module], ...] | str


def matching(model: nn.Module, match: Match) -> dict[str, nn.Module]:
    """The submodules of `model` by name, in order, that are of the type(s) or whose name fits the glob `match`.

    A module that is used under several names appears under each. The model itself is not among them.

    Raises:
        ConfigError: nothing fits; for a glob the message gives the nearest names.

    >>> list(matching(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear))
    ['0']
    """
    named = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    if isinstance(match, str):
        found = {name: module for name, module in named.items() if fnmatchcase(name, match)}
    else:
        found = {name: module for name, module in named.items() if isinstance(module, match)}
    if found:
        return found
    if isinstance(match, str):
        raise unknown("module", match, named)
    raise ConfigError(f"{type(model).__name__} has no module of type {match}")


def replace(
    model: nn.Module, match: Match, factory: Callable[[str, nn.Module], nn.Module | None]
) -> Callable[[], None]:
    """Puts `factory(name, module)` in the place of each matching module, in place.

    A module that is used under several names is replaced by one new module under all of them; inside a replaced
    module nothing more is replaced. The new module takes over training or evaluation mode.

    Args:
        model: changed in place.
        match: a module type, a tuple of types, or a glob over the dotted names such as "blocks.*.mlp".
        factory: makes the new module; None leaves the old one.
    Returns:
        a function that puts the old modules back.
    Raises:
        ConfigError: nothing matches.
    """
    made: dict[int, nn.Module | None] = {}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    inside: tuple[str, ...] = ()
    for name, old in matching(model, match).items():
        if name.startswith(inside):
            continue
        if id(old) not in made:
            made[id(old)] = factory(name, old)
        new = made[id(old)]
        if new is None:
            continue
        parent, _, leaf = name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, leaf, new.train(old.training))
        swapped.append((holder, leaf, old))
        inside += (f"{name}.",)

    def undo() -> None:
        for holder, leaf, old in reversed(swapped):
            setattr(holder, leaf, old)

    return undo
