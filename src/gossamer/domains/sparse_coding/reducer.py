"""Sums over the processes among which the data are divided."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ...training import distributed


class Reducer:
    """One process: everything is there already."""

    rank, world = 0, 1

    def sum(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of equally named tensors of all processes, the same bits on each."""
        return dict(parts)

    def offset(self, count: int) -> tuple[int, int]:
        """(points of the processes before this one, points of all)."""
        return 0, count

    def concatenate(self, values: Tensor) -> Tensor:
        """The 1-d tensors of all processes, end to end."""
        return values


class Processes(Reducer):
    """The processes of torch.distributed's group; every method is a collective call."""

    def __init__(self) -> None:
        self.rank, self.world = distributed.rank(), distributed.world()

    def sum(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        flat = torch.cat([part.reshape(-1) for part in parts.values()])
        dist.all_reduce(flat)
        pieces = flat.split([part.numel() for part in parts.values()])
        return {name: piece.view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)}

    def offset(self, count: int) -> tuple[int, int]:
        counts = [int(value) for value in distributed.gather(count)]
        return sum(counts[: self.rank]), sum(counts)

    def concatenate(self, values: Tensor) -> Tensor:
        return torch.cat([part.to(values) for part in distributed.gather(values.cpu())])


def reducer(over_processes: bool) -> Reducer:
    """The reducer for `over_processes`; a single process where no group is running."""
    return Processes() if over_processes and distributed.active() else Reducer()
