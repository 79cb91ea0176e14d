"""The three-phase schedule of the gates: random, adaptive, fixed (SPHNet, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gossamer.errors import ConfigError

from .paths import PathGate


@dataclass(frozen=True)
class ThreePhase:
    """Ends of the random and of the adaptive phase, as fractions of training.

    Defaults: the sixth and the third of the small reproduction; the authors' code takes 2 and 3 epochs. Phases follow
    the optimiser's steps, never the number of forward passes.

    Raises:
        ConfigError: not 0 <= random <= adaptive <= 1.
    """

    random: float = 1 / 6
    adaptive: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.random <= self.adaptive <= 1:
            raise ConfigError(f"random={self.random}, adaptive={self.adaptive}: need 0 <= random <= adaptive <= 1")

    def phase(self, step: int, steps: int) -> str:
        """The phase of step 0 .. steps - 1.

        >>> [ThreePhase(0.2, 0.6).phase(step, 5) for step in range(5)]
        ['random', 'adaptive', 'adaptive', 'fixed', 'fixed']
        """
        if step < self.random * steps:
            return "random"
        return "adaptive" if step < self.adaptive * steps else "fixed"

    def step(self, model: nn.Module, step: int, steps: int) -> str:
        """Advance every gate of `model`; call before each optimiser step, and once after the last."""
        phase = self.phase(step, steps)
        for module in model.modules():
            if isinstance(module, PathGate):
                module.advance(phase)
        return phase
