"""Multi-layer perceptrons whose neurons are ReLU, identity or removed, chosen while they train."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, NumericsError

RELU, IDENTITY, REMOVED = 0, 1, 2
STATES = ("relu", "identity", "removed")


def choose(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One-hot sample over the last dimension, with the gradient of the soft sample (straight-through Gumbel softmax).

    Args:
        logits: (..., choices). temperature: above 0; small is nearly one-hot.
    Source: Jang et al. 2017, section 2.2.
    """
    if not temperature > 0:
        raise ConfigError(f"the temperature of a Gumbel softmax must be positive, got {temperature}")
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype).clamp(1e-10, 1 - 1e-7)
    soft = ((logits - (-uniform.log()).log()) / temperature).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), logits.shape[-1]).to(soft.dtype)
    return hard + soft - soft.detach()


class Gated(nn.Module):
    """A model with gated neurons in one or several perceptrons, its `parts()`; what training and sparsifying need.

    Attributes:
        widths: (inputs, ..., outputs). out_scale: (outputs,) unit of the errors that are trained on.
    """

    widths: tuple[int, ...]
    out_scale: Tensor

    def parts(self) -> list[GatedReLUMLP]:
        """The perceptrons that hold the neurons, in order."""
        raise NotImplementedError

    def standardise(self, x: Tensor, y: Tensor) -> None:
        """Take the scales of the data, inside the model. Raises NumericsError: NaN or infinity in the data."""
        raise NotImplementedError

    def joined(self, name: str) -> Tensor:
        """An attribute of the neurons of all parts, one after another: logits, states or decided."""
        return torch.cat([getattr(part, name) for part in self.parts()])

    @property
    def relus(self) -> int:
        """Hidden neurons that are ReLU."""
        return int((self.joined("states") == RELU).sum())

    def counts(self) -> dict[str, int]:
        """Neurons by state."""
        states = self.joined("states")
        return {name: int((states == index).sum()) for index, name in enumerate(STATES)}

    def penalty(self, identity: float) -> Tensor:
        """sum over undecided neurons of p_ReLU + identity * p_identity, p the softmax of the logits."""
        p = self.joined("logits")[~self.joined("decided")].softmax(-1)
        return (p[:, RELU] + identity * p[:, IDENTITY]).sum()

    @torch.no_grad()
    def surplus(self, keep: int) -> float:
        """How many undecided neurons more than `keep` are ReLUs by their logits, as a share of all undecided."""
        p = self.joined("logits")[~self.joined("decided")].softmax(-1)[:, RELU]
        return (p.sum().item() - keep) / max(1, len(p))

    @torch.no_grad()
    def decide(self, keep: int) -> None:
        """Settle undecided neurons of the lowest p_ReLU as identity or removed until `keep` ReLUs are left."""
        if not 0 <= keep <= self.relus:
            raise ConfigError(f"keep {keep} ReLUs: the model has {self.relus}; give 0 to {self.relus}")
        p = self.joined("logits").softmax(-1)
        self.settle(p[:, RELU], torch.where(p[:, IDENTITY] > p[:, REMOVED], IDENTITY, REMOVED), keep)

    @torch.no_grad()
    def settle(self, scores: Tensor, states: Tensor, keep: int) -> None:
        """Give undecided neurons of the lowest score their state for good until `keep` ReLUs are left.

        Args:
            scores, states: (hidden,), over all parts.
        """
        order = scores.masked_fill(self.joined("decided"), torch.inf).argsort(stable=True)[: self.relus - keep]
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[order] = True
        sizes = [len(part.states) for part in self.parts()]
        for part, mask, state in zip(self.parts(), chosen.split(sizes), states.split(sizes), strict=True):
            part.states[mask] = state[mask]
            part.decided[mask] = True


class GatedReLUMLP(Gated):
    """A perceptron (B, widths[0]) -> (B, widths[-1]) with one gate per hidden neuron: g_R max(a, 0) + g_I a + g_Z 0.

    Decided neurons have their state for good; undecided ones behave as ReLU, or as a sample of their logits where a
    temperature is given. Inputs and outputs are standardised by buffers that `fit` sets.

    Args:
        widths: inputs, hidden layers, outputs; all >= 1.
        favour: initial logit of ReLU over the others' 0 (1, the specification's).
    Raises:
        ConfigError: fewer than two widths, or one below 1.
    """

    shift: Tensor
    scale: Tensor
    out_shift: Tensor
    out_scale: Tensor
    states: Tensor
    decided: Tensor

    def __init__(self, widths: Sequence[int], favour: float = 1.0) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(f"widths must be at least (inputs, outputs), all >= 1, got {list(widths)}")
        self.widths = tuple(int(width) for width in widths)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(self.widths))
        hidden = sum(self.widths[1:-1])
        self.logits = nn.Parameter(torch.tensor([favour, 0.0, 0.0]).repeat(hidden, 1))
        self.register_buffer("states", torch.full((hidden,), RELU))
        self.register_buffer("decided", torch.zeros(hidden, dtype=torch.bool))
        for name, size in (("", self.widths[0]), ("out_", self.widths[-1])):
            self.register_buffer(f"{name}shift", torch.zeros(size))
            self.register_buffer(f"{name}scale", torch.ones(size))

    def parts(self) -> list[GatedReLUMLP]:
        """Itself."""
        return [self]

    def gates(
        self, rows: int = 1, temperature: float | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(hidden, 3) factors of max(a, 0), a and 0; a decided neuron's are constant, without a gradient.

        With a temperature (rows, hidden, 3): every row of a batch has a sample of its own, so that one step sees what
        each neuron is worth on average, and not one random network.
        """
        fixed = F.one_hot(self.states, 3).to(self.logits.dtype)
        if temperature is None:
            return fixed
        drawn = choose(self.logits.expand(rows, -1, -1), temperature, generator)
        return torch.where(self.decided[:, None], fixed, drawn)

    def forward(self, x: Tensor, temperature: float | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Outputs of inputs (B, widths[0]); with a temperature undecided neurons are sampled."""
        return self.given(x, self.gates(len(x), temperature, generator))

    def given(self, x: Tensor, gates: Tensor) -> Tensor:
        """Outputs under gates (hidden, 3), or (B, hidden, 3) of a batch."""
        gates = gates.to(x.dtype)
        h = (x - self.shift.to(x.dtype)) / self.scale.to(x.dtype)
        for layer, gate in zip(self.layers[:-1], gates.split(self.widths[1:-1], -2), strict=True):
            a = F.linear(h, *_cast(layer, x))
            h = gate[..., RELU] * a.relu() + gate[..., IDENTITY] * a
        last = self.layers[-1]
        out = F.linear(h, *_cast(last, x))
        return out * self.out_scale.to(x.dtype) + self.out_shift.to(x.dtype)

    @torch.no_grad()
    def standardise(self, x: Tensor, y: Tensor) -> None:
        """Take mean and deviation of the data, inside the model; constant columns keep the factor 1.

        Raises:
            NumericsError: NaN or infinity in the data.
        """
        finite(x, y)
        self.shift.copy_(x.mean(0))
        self.scale.copy_(deviation(x))
        self.out_shift.copy_(y.mean(0))
        self.out_scale.copy_(deviation(y))


def _cast(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear)
    return layer.weight.to(x.dtype), layer.bias.to(x.dtype)


def finite(x: Tensor, y: Tensor) -> None:
    """NumericsError where the data hold NaN or infinity."""
    for name, values in (("inputs", x), ("targets", y)):
        if not bool(values.isfinite().all()):
            raise NumericsError(f"{name} of the dynamics model hold NaN or infinity; drop those rows")


def deviation(values: Tensor) -> Tensor:
    """Standard deviation of each column, 1 where it is constant."""
    spread = values.std(0, correction=0)
    return torch.where(spread > 0, spread, torch.ones_like(spread))
