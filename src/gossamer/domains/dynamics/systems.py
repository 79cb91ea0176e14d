"""Small systems with contact, generated data, and their learned form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...errors import ConfigError
from .folded import Array
from .learning import Data
from .transition import Box, Dynamics, Term


@dataclass(frozen=True)
class Pushing:
    """Quasi-static pushing of discs in the plane by a point: state (o_1, ..., o_k, p), action the pusher's step.

    The pusher moves by u; a disc closer than `radius` is moved along the line of centres until it touches. Discs do
    not touch each other. The learned model sees (o - p, u) of one disc, so that one network serves all discs: a graph
    network with one edge per disc, and `objects` discs cost `objects` times the binaries.

    Args:
        objects: discs. radius: of contact, 0.3. reach: largest step per axis, 0.25. room: half side of the box of o - p
            that data are drawn from, and in which plans stay.
    Source: specification, section 7.
    """

    objects: int = 1
    radius: float = 0.3
    reach: float = 0.25
    room: float = 1.0

    def __post_init__(self) -> None:
        if self.objects < 1 or min(self.radius, self.reach, self.room) <= 0:
            raise ConfigError(f"pushing needs at least one disc and positive lengths, got {self}")

    @property
    def u_box(self) -> Box:
        return np.full(2, -self.reach), np.full(2, self.reach)

    @property
    def domain(self) -> Box:
        high = np.array([self.room, self.room, self.reach, self.reach])
        return -high, high

    def moved(self, relative: Array, u: Array) -> Array:
        """(B, 2) displacement of discs at o - p (B, 2) when the pusher steps by u (B, 2)."""
        gap = relative - u
        distance = np.linalg.norm(gap, axis=1, keepdims=True)
        unit = np.where(distance > 1e-9, gap / np.maximum(distance, 1e-9), np.array([1.0, 0.0]))
        result: Array = np.where(distance < self.radius, (self.radius - distance) * unit, 0.0)
        return result

    def step(self, x: Array, u: Array) -> Array:
        """The true next state (2 objects + 2,)."""
        u = np.clip(u, *self.u_box)
        discs, pusher = x[:-2].reshape(self.objects, 2), x[-2:]
        after = discs + self.moved(discs - pusher, np.tile(u, (self.objects, 1)))
        return np.concatenate([after.ravel(), pusher + u])

    def data(self, count: int, seed: int) -> Data:
        """`count` random inputs (o - p, u) and displacements, float32."""
        draw = np.random.default_rng(seed).uniform(*self.domain, size=(count, 4))
        target = self.moved(draw[:, :2], draw[:, 2:])
        return torch.tensor(draw, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)

    def dynamics(self, model: nn.Module) -> Dynamics:
        """The learned dynamics around a network (4 -> 2)."""
        n = 2 * self.objects + 2
        terms = []
        for disc in range(self.objects):
            read, write = np.zeros((4, n + 2)), np.zeros((n, 2))
            own = slice(2 * disc, 2 * disc + 2)
            read[:2, own], read[:2, n - 2 : n], read[2:, n:] = np.eye(2), -np.eye(2), np.eye(2)
            write[own] = np.eye(2)
            terms.append(Term(read, write))
        action = np.zeros((n, 2))
        action[-2:] = np.eye(2)
        return Dynamics(model, np.eye(n), action, tuple(terms), self.domain)


def tent(regions: int, count: int, seed: int) -> Data:
    """A continuous zigzag on [-1, 1] with `regions` equal pieces of slope +1, -1, ...; x and y (count, 1), float32."""
    if regions < 1:
        raise ConfigError(f"regions={regions}: give at least 1")
    x = np.random.default_rng(seed).uniform(-1, 1, size=(count, 1))
    phase = (x + 1) * regions / 2
    y = np.where(np.floor(phase) % 2 == 0, phase % 1, 1 - phase % 1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
