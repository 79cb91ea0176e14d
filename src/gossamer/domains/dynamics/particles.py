"""Ropes and piles in the plane, moved by a round tool: their simulation, their data, their graph networks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from ...errors import ConfigError, unknown
from .folded import Array
from .graph import GraphNetwork, Round
from .learning import Data
from .model import GatedReLUMLP
from .transition import Box

KINDS = ("rope", "pile")


@dataclass(frozen=True)
class Particles:
    """Bodies without inertia. A tool keeps their centres `radius` away from its own.

    In a rope neighbours hold each other within `spacing`, as a thread does: it can be bent, not stretched. In a pile
    no two centres come nearer than `spacing`. The tool travels: state (q_1, ..., q_n, p), action its step; or it is
    lowered anew for each stroke (`placed`): state (q_1, ..., q_n), action (where, stroke).

    Args:
        kind: "rope" or "pile". bodies: n. radius, spacing: lengths. reach: longest step of the tool per axis.
        room: half side of the box of q_i - p that data are drawn from, and in which plans stay.
        substeps, sweeps: of the simulation: moves of the tool in a step, and projections after each.
    Raises:
        ConfigError: another kind, too few bodies, or a length that is not positive.
    Source: position-based dynamics without inertia, Mueller et al. 2007, section 3.3; tasks of the publication.
    """

    kind: str
    bodies: int
    radius: float = 0.15
    spacing: float = 0.2
    reach: float = 0.2
    room: float = 1.6
    placed: bool = False
    substeps: int = 4
    sweeps: int = 6

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of particles", self.kind, KINDS)
        if self.bodies < 2 or min(self.radius, self.spacing, self.reach, self.room, self.substeps, self.sweeps) <= 0:
            raise ConfigError(f"particles need two bodies or more, and positive lengths and counts, got {self}")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Bodies that act on each other: neighbours in a rope, all in a pile."""
        if self.kind == "rope":
            return [(i, i + 1) for i in range(self.bodies - 1)]
        return list(combinations(range(self.bodies), 2))

    @property
    def size(self) -> int:
        """Entries of the state."""
        return 2 * self.bodies + (0 if self.placed else 2)

    @property
    def u_box(self) -> Box:
        """Of the action; a tool is put down at most 0.8 away from the middle of the table."""
        high = np.array([0.8, 0.8] * self.placed + [self.reach] * 2)
        return -high, high

    def moved(self, q: Array, p: Array, u: Array) -> tuple[Array, Array]:
        """Bodies (B, n, 2) and tool (B, 2) after the tool went from p (B, 2) by u (B, 2)."""
        ends = self._ends()
        for _ in range(self.substeps):
            p = p + u / self.substeps
            for _ in range(self.sweeps):
                q = q + self._correction(q, ends)
                q = q + _away(q - p[:, None], self.radius)
        return q, p

    def step(self, x: Array, u: Array) -> Array:
        """The true next state."""
        u = np.clip(u, *self.u_box)
        q = x[: 2 * self.bodies].reshape(1, -1, 2)
        p, stroke = (u[:2], u[2:]) if self.placed else (x[-2:], u)
        after, end = self.moved(q, p[None], stroke[None])
        return after.ravel() if self.placed else np.concatenate([after.ravel(), end[0]])

    def data(self, count: int, seed: int) -> Data:
        """Inputs (count, 2 n + 4): bodies, tool, step; and displacements of the bodies (count, 2 n); float32.

        The tool is near a body in three of four samples.
        """
        rng = np.random.default_rng(seed)
        q = self._laid(count, rng)
        body = q[np.arange(count), rng.integers(self.bodies, size=count)]
        near = body + rng.uniform(-1, 1, (count, 2)) * (self.radius + self.reach)
        p = np.where(rng.random((count, 1)) < 0.75, near, rng.uniform(-self.room / 2, self.room / 2, (count, 2)))
        u = rng.uniform(-self.reach, self.reach, (count, 2))
        after, _ = self.moved(q, p, u)
        inputs = np.concatenate([q.reshape(count, -1), p, u], 1)
        return torch.tensor(inputs, dtype=torch.float32), torch.tensor((after - q).reshape(count, -1)).float()

    def network(self, tool: tuple[int, ...] = (16, 16), pair: tuple[int, ...] = (12,), passes: int = 1) -> GraphNetwork:
        """A graph network of this system: the tool acts on each body, then bodies on each other, `passes` times.

        Args:
            tool, pair: hidden widths of the two shared networks.
        """
        n, m = self.size, len(self.u_box[0])
        reads, writes = [], []
        for i in range(self.bodies):
            read, write = np.zeros((4, n + m)), np.zeros((n, 2))
            read[:2, 2 * i : 2 * i + 2] = write[2 * i : 2 * i + 2] = np.eye(2)
            read[:2, -4:-2], read[2:, -2:] = -np.eye(2), np.eye(2)  # bodies, tool, step: in this order in both forms
            reads.append(read)
            writes.append(write)
        action = np.zeros((n, m))
        if not self.placed:
            action[-2:] = np.eye(2)
        side = np.array([self.room, self.room, self.reach, self.reach])
        rounds = [Round("tool", np.stack(reads), np.stack(writes), action, (-side, side))]
        rounds += [self._between(n, m)] * passes
        nets = {"tool": GatedReLUMLP((4, *tool, 2)), "pair": GatedReLUMLP((2, *pair, 2))}
        return GraphNetwork(nets, rounds, n, m, 2 * self.bodies)

    def _between(self, n: int, m: int) -> Round:
        """What one end of a pair gains, the other loses."""
        reads, writes = [], []
        for ends in self.pairs:
            read, write = np.zeros((2, n + m)), np.zeros((n, 2))
            for i, sign in zip(ends, (1, -1), strict=True):
                read[:, 2 * i : 2 * i + 2] = write[2 * i : 2 * i + 2] = sign * np.eye(2)
            reads.append(read)
            writes.append(write)
        side = np.full(2, 2 * self.spacing + self.reach if self.kind == "rope" else self.room)
        return Round("pair", np.stack(reads), np.stack(writes), np.zeros((n, m)), (-side, side))

    def _ends(self) -> Array:
        """(pairs, n): +1 and -1 at the two ends of a pair."""
        ends = np.zeros((len(self.pairs), self.bodies))
        for row, (i, j) in enumerate(self.pairs):
            ends[row, i], ends[row, j] = 1.0, -1.0
        return ends

    def _correction(self, q: Array, ends: Array) -> Array:
        """Half of what is too long or too short, at both ends of every pair."""
        gap = ends @ q
        distance = np.linalg.norm(gap, axis=2, keepdims=True)
        wrong = self.spacing - distance
        wrong = np.minimum(wrong, 0) if self.kind == "rope" else np.maximum(wrong, 0)
        result: Array = ends.T @ (0.5 * wrong * gap / np.maximum(distance, 1e-9))
        return result

    def _laid(self, count: int, rng: np.random.Generator) -> Array:
        """Bodies (count, n, 2) as they may lie: a thread with bends, or granules side by side."""
        if self.kind == "rope":
            turns = rng.normal(0, 0.6, (count, self.bodies - 1))
            turns[:, 0] = rng.uniform(-np.pi, np.pi, count)
            angle, length = turns.cumsum(1), self.spacing * rng.uniform(0.75, 1, (count, self.bodies - 1))
            links = length[..., None] * np.stack([np.cos(angle), np.sin(angle)], 2)
            q = np.concatenate([np.zeros((count, 1, 2)), links.cumsum(1)], 1)
            return q - q.mean(1, keepdims=True)
        side = self.spacing * np.sqrt(self.bodies) * rng.uniform(0.6, 2.0, (count, 1, 1))
        q, ends = side * rng.uniform(-1, 1, (count, self.bodies, 2)), self._ends()
        for _ in range(30):
            q = q + self._correction(q, ends)
        return q


def _away(gap: Array, radius: float) -> Array:
    """What keeps bodies at q - p (B, n, 2) as far as the radius."""
    distance = np.linalg.norm(gap, axis=2, keepdims=True)
    unit = np.where(distance > 1e-9, gap / np.maximum(distance, 1e-9), np.array([1.0, 0.0]))
    result: Array = np.maximum(radius - distance, 0) * unit
    return result
