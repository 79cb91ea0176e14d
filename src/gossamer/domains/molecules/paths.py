"""The sparse tensor-product gate: which (l1, l2, l3) paths a product computes (SPHNet, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gossamer.errors import CheckpointError, ConfigError, unknown
from gossamer.kernels.topk import topk_mask

from .irreps import Path

CHOICES = ("adaptive", "saliency", "random", "low_order")
PHASES = ("random", "adaptive", "fixed")


def check_sparsity(sparsity: float) -> float:
    """`sparsity` itself. Raises ConfigError outside [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity={sparsity}: must be in [0, 1), the share of paths or pairs that is left out")
    return float(sparsity)


def kept_count(sparsity: float, paths: int) -> int:
    """floor((1 - sparsity) paths), at least one."""
    return max(1, math.floor((1 - check_sparsity(sparsity)) * paths + 1e-9))


class PathGate(nn.Module):
    """A learned score for every path, and the set of paths that is computed now.

    Coefficient of a kept path p: alpha_p w_p / (sum over kept q of alpha_q |w_q|), the paper's rule, times a constant
    of the kept set: sqrt(sum of all alpha * sum of the kept alpha). So the untrained gate at sparsity 0 is e3nn's own
    product, and features keep their size where paths are left out; with the paper's rule alone they grow.

    Args:
        orders: degrees (l1, l2, l3) of the paths.
        alpha: (paths,) normalisation of each; None takes ones.
        sparsity: share left out, in [0, 1).
        choice: "adaptive" keeps the largest w (the paper); "saliency" the largest mean |w dL/dw|; "random" a fixed
            random set; "low_order" the paths with the smallest l1 + l2 + l3. Ties go to the lower index.
        seed: of the random sets.
    Raises:
        ConfigError: an unknown choice, a sparsity outside [0, 1), no path.
    """

    scores: Tensor
    alpha: Tensor
    kept: Tensor
    drawn: Tensor
    saliency: Tensor

    def __init__(
        self,
        orders: Sequence[Path],
        alpha: Tensor | None = None,
        sparsity: float = 0.7,
        choice: str = "adaptive",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if choice not in CHOICES:
            raise unknown("choice of paths", choice, CHOICES)
        if not orders:
            raise ConfigError("a gate needs at least one path (l1, l2, l3)")
        self.orders, self.choice, self.sparsity = tuple(orders), choice, check_sparsity(sparsity)
        self.keep = kept_count(sparsity, len(orders))
        self.phase = "random"
        self.generator = torch.Generator().manual_seed(seed)
        self.scores = nn.Parameter(torch.ones(len(orders)))
        self.register_buffer("alpha", torch.ones(len(orders)) if alpha is None else alpha.float())
        self.register_buffer("saliency", torch.zeros(len(orders)))
        self.register_buffer("drawn", torch.zeros(len(orders), dtype=torch.bool))
        self.register_buffer("kept", torch.zeros(len(orders), dtype=torch.bool))
        self._keep(self._first())

    def _first(self) -> Tensor:
        if self.choice == "low_order":
            return topk_mask(-torch.tensor([float(sum(order)) for order in self.orders]), self.keep)
        return self._drawn_at_random()

    def _drawn_at_random(self) -> Tensor:
        mask = torch.zeros(len(self.orders), dtype=torch.bool)
        mask[torch.randperm(len(self.orders), generator=self.generator)[: self.keep]] = True
        return mask

    def _keep(self, mask: Tensor) -> None:
        self.kept.copy_(mask)
        self.drawn |= self.kept

    def advance(self, phase: str) -> None:
        """Choose the paths of the next step. In the phase "fixed", and for the fixed choices, they stay."""
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        self.phase = phase
        self._observe()
        if self.choice in ("random", "low_order") or phase == "fixed":
            return
        if phase == "random":
            self._keep(self._drawn_at_random())
        else:
            self._keep(topk_mask(self.saliency if self.choice == "saliency" else self.scores, self.keep))

    def _observe(self) -> None:
        if self.scores.grad is not None:
            found = (self.scores.grad * self.scores).detach().abs()
            fresh = torch.where(self.saliency == 0, found, 0.9 * self.saliency + 0.1 * found)
            self.saliency.copy_(torch.where(self.kept, fresh, self.saliency))

    def indices(self) -> Tensor:
        """(keep,) the kept paths in order."""
        return self.kept.nonzero().squeeze(1)

    def coefficients(self) -> Tensor:
        """(keep,) the factors of the kept paths; gradients reach the scores of these alone."""
        kept = self.indices()
        alpha, scores = self.alpha[kept], self.scores[kept]
        total = (alpha * scores.abs()).sum().clamp(min=1e-6)
        return alpha * scores * (self.alpha.sum() * alpha.sum()).sqrt() / total

    def mean_order(self) -> float:
        """Mean l1 + l2 + l3 of the kept paths."""
        return sum(sum(self.orders[int(i)]) for i in self.indices()) / self.keep

    def check_frozen(self) -> None:
        """Raises ConfigError where the set has not been chosen yet: in the random phase of a learned choice."""
        if self.phase == "random" and self.choice in ("adaptive", "saliency") and self.keep < len(self.orders):
            raise ConfigError("freezing in the random phase would keep random paths; go through the adaptive phase")

    def get_extra_state(self) -> Tensor:
        """The paths as (paths, 3), so that weights of another list are not loaded."""
        return torch.tensor(self.orders)

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the list of paths. Raises CheckpointError where it is another one."""
        if state.shape != (len(self.orders), 3) or not torch.equal(state.cpu(), torch.tensor(self.orders)):
            raise CheckpointError(f"the checkpoint lists {len(state)} other paths; this gate has {len(self.orders)}")
