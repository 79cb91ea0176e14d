"""How often each of many units is used: features of a dictionary, experts of a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, ShapeError


class Usage(nn.Module):
    """Running usage of `units` units; all of it is buffers, so that a checkpoint of the owner holds it.

    Attributes:
        density: (units,), average share of samples that use a unit; a moving average of `decay` over batches,
            corrected for its start from zero.
        silent: (units,) int64, samples since a unit was last used.
        batches: 0-d int64, batches seen.

    Args:
        decay: of the moving average (0.99).
    Raises:
        ConfigError: decay outside [0, 1), or no unit.

    >>> usage = Usage(2, decay=0.5)
    >>> usage.update(torch.tensor([3, 0]), 4)
    >>> usage.density.tolist(), usage.silent.tolist()
    ([0.75, 0.0], [0, 4])
    """

    density: Tensor
    silent: Tensor
    batches: Tensor

    def __init__(self, units: int, decay: float = 0.99) -> None:
        super().__init__()
        if not (0 <= decay < 1 and units > 0):
            raise ConfigError(f"usage needs at least one unit and 0 <= decay < 1, got {units} and {decay}")
        self.decay = decay
        self.register_buffer("density", torch.zeros(units))
        self.register_buffer("silent", torch.zeros(units, dtype=torch.int64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, counts: Tensor, samples: int) -> None:
        """Take in a batch: `counts` (units,) of its `samples` used each unit.

        Raises:
            ShapeError: as many counts as units are needed.
        """
        if counts.shape != self.density.shape:
            raise ShapeError(f"usage of {len(self.density)} units got counts of shape {tuple(counts.shape)}")
        self.batches += 1
        share = (1 - self.decay) / (1 - self.decay ** int(self.batches))  # the plain mean at first
        self.density.lerp_(counts.to(self.density) / samples, share)
        self.silent += samples
        self.silent[counts > 0] = 0

    def dead(self, window: int) -> Tensor:
        """bool (units,): not used by the last `window` samples."""
        return self.silent >= window

    def ranks(self) -> Tensor:
        """(units,) int64: 0 for the most used; ties go to the lower index."""
        order = torch.argsort(self.density, descending=True, stable=True)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order), device=order.device)
        return ranks

    @torch.no_grad()
    def reset(self, units: Tensor) -> None:
        """Forget that `units` (indices or mask) were silent, as after they were made anew."""
        self.silent[units] = 0
