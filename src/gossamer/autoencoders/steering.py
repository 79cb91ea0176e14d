"""Features turned up, set or removed in a running model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gossamer.autoencoders.hooks import replaced
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.errors import ConfigError


def edit(
    sae: SparseAutoencoder,
    *,
    add: Mapping[int, float] | None = None,
    set_to: Mapping[int, float] | None = None,
    ablate: Sequence[int] = (),
) -> Callable[[Tensor], Tensor]:
    """A change of activations (..., d); what the dictionary does not explain stays as it is.

    Args:
        add: feature -> activation that is added to every token, in units of its own activations.
        set_to: feature -> activation that every token has then. ablate: features that every token loses.
    Raises:
        ConfigError: a feature that does not exist, one in both, none at all, or a transcoder.
    """
    add, fixed = dict(add or {}), dict(set_to or {}) | dict.fromkeys(ablate, 0.0)
    chosen = [*add, *fixed]
    wrong = [feature for feature in chosen if not 0 <= feature < sae.features]
    if sae.transcodes:
        raise ConfigError("a transcoder writes to another place than it reads; steer with an autoencoder")
    if wrong or not chosen or set(add) & set(fixed):
        raise ConfigError(f"features {chosen}: choose some of 0 ... {sae.features - 1}, each once; wrong: {wrong}")
    rows = sae.decoder.detach() / sae.scale_out

    def change(x: Tensor) -> Tensor:
        out = x
        for feature, amount in add.items():
            out = out + amount * rows[feature]
        if fixed:
            z = sae.encode(x, batch=False)[..., list(fixed)]
            wanted = torch.tensor(list(fixed.values())).to(z)
            out = out + (wanted - z) @ rows[list(fixed)]
        return out

    return change


@contextmanager
def steered(
    model: nn.Module,
    module: str,
    sae: SparseAutoencoder,
    *,
    add: Mapping[int, float] | None = None,
    set_to: Mapping[int, float] | None = None,
    ablate: Sequence[int] = (),
) -> Iterator[None]:
    """While it is entered, the named module's output is changed as `edit` says."""
    with replaced(model, module, edit(sae, add=add, set_to=set_to, ablate=ablate)):
        yield
