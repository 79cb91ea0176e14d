"""A transformed network by the names of its parts, so that the settings of a run can build it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from torch import nn

from ...errors import ConfigError
from ...models.zoo import build
from .transform import IsoFlop, iso_flop

PATH = "gossamer.architectures.isoflop.build:network"  # as the model of a configuration


def transformed(
    base: str,
    family: str,
    sparsity: float,
    shape: Sequence[int],
    classes: int,
    *,
    base_options: Mapping[str, Any] | None = None,
    layer: Mapping[str, Any] | None = None,
    tokens: bool = False,
    exclude: Sequence[str] = (),
    first_dense: bool = True,
    last_dense: bool = True,
) -> IsoFlop:
    """`iso_flop` of a network of the zoo, or of one by its import path, with new weights from torch's random state.

    Args:
        base, base_options: as for `models.build`; an import path gets its own options alone.
        shape: of one input. classes: of the output. tokens: inputs are numbers of tokens, not values.
        layer: options of the family's layer, see `iso_flop`; the others are described there.
    Raises:
        ConfigError: as `iso_flop` and `build`; an option that the family's layer does not have.
    """
    own = {} if ":" in base else {"shape": tuple(shape), "classes": classes}
    model = build(base, **{**own, **(base_options or {})})
    example = torch.zeros(1, *shape, dtype=torch.long if tokens else torch.float32)
    chosen = {"exclude": tuple(exclude), "first_dense": first_dense, "last_dense": last_dense}
    seed = int(torch.randint(2**31, (1,)))
    try:
        return iso_flop(model, family, sparsity, example, seed=seed, **chosen, **(layer or {}))  # type: ignore[arg-type]
    except TypeError as error:
        raise ConfigError(f"{family} layers with the options {dict(layer or {})}: {error}") from error


@wraps(transformed, assigned=())  # a configuration's options are checked against that signature
def network(*arguments: Any, **options: Any) -> nn.Module:
    """The network of `transformed`, dense until a recipe masks it."""
    return transformed(*arguments, **options).model
