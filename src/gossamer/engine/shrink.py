"""Remove whole channels under a budget: the model gets smaller and faster in any runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.engine import tune
from gossamer.engine.checks import answer
from gossamer.errors import ConfigError, unknown
from gossamer.kernels import native
from gossamer.sparsify.accounting.flops import flops
from gossamer.sparsify.channels import Choice, Ratio, channel_graph, choose_channels
from gossamer.sparsify.surgery import Surgery, remove_channels

HALVINGS = 7  # of the interval in which the share of removed channels is sought
MOST = 0.98


@dataclass(frozen=True)
class Shrunk:
    """A smaller model.

    Attributes:
        model: a plain module; the original is unchanged.
        plan: for `gossamer.sparsify.surgery.apply_shrink_plan`, to load the weights elsewhere.
        removed: share of channels that the search asked for.
        cost, before: FLOPs or milliseconds for the example, after and before.
        budget: that was not to be exceeded.
        unit: "flops" or "ms".
    """

    model: nn.Module
    plan: dict[str, Any]
    removed: float
    cost: float
    before: float
    budget: float
    unit: str

    def __str__(self) -> str:
        return (
            f"{100 * self.removed:.0f} % of the channels removed: {self.before:.4g} -> {self.cost:.4g} {self.unit} "
            f"({self.before / self.cost:.2f} times less, the budget was {self.budget:.4g})"
        )


def shrink(
    model: nn.Module,
    example: Tensor,
    budget: float,
    *,
    by: Literal["flops", "latency"] = "flops",
    score: str = "l1",
    scope: Literal["layer", "global"] = "global",
) -> Shrunk:
    """Remove as few channels as bring the network under a share of its cost.

    Channels go in the order of their scores; the share that goes is found by bisection. Train or recalibrate the
    result: removed channels are missed.

    Args:
        model: measured in evaluation mode, whichever it is in; it stays as it is, and the result is in its mode.
        example: one input (batch, ...).
        budget: share of the present cost, in (0, 1].
        by: "flops" counts multiplications and additions, "latency" measures torch here, on the example.
        score: of channels: l1, bn_scale or fpgm.
        scope: "global" ranks all layers' channels together, "layer" takes the same share of each.
    Raises:
        ConfigError: a budget outside (0, 1], or one that no number of channels meets; an example that the model does
            not accept; a network of which no channels can be removed.
    """
    if by not in ("flops", "latency"):
        raise unknown("cost", by, ("flops", "latency"))
    if not 0 < budget <= 1:
        raise ConfigError(f"the budget is a share of the present cost in (0, 1], got {budget}")
    modes = {name: module.training for name, module in model.named_modules()}
    model = copy.deepcopy(model).eval()
    answer(model, example)
    cost: Callable[[nn.Module], float] = _flops(example) if by == "flops" else _latency(example)
    before = cost(model)
    limit = budget * before
    graph = channel_graph(model, example)
    if not graph.groups:
        why = "; ".join(f"{layer}: {reason}" for layer, reason in graph.refused.items())
        raise ConfigError(f"no channels of this {type(model).__name__} can be removed{f' ({why})' if why else ''}")

    def cut(share: float) -> Surgery:
        masks = choose_channels(model, graph, Choice(score, Ratio(share, scope)))
        return remove_channels(model, example, masks, graph=graph)

    low, high = 0.0, 0.0 if budget == 1 else MOST
    best = cut(high)
    found = before if budget == 1 else cost(best.model)
    if found > limit:
        raise ConfigError(f"even without {100 * MOST:.0f} % of its channels the model costs more than {budget:.3g}")
    for _ in range(HALVINGS if high else 0):
        middle = (low + high) / 2
        tried = cut(middle)
        now = cost(tried.model)
        if now <= limit:
            high, best, found = middle, tried, now
        else:
            low = middle
    for name, module in best.model.named_modules():
        module.training = modes[name]
    return Shrunk(best.model, best.plan, high, found, before, limit, "flops" if by == "flops" else "ms")


def _flops(example: Tensor) -> Callable[[nn.Module], float]:
    return lambda model: flops(model, example).dense


def _latency(example: Tensor) -> Callable[[nn.Module], float]:
    def measure(model: nn.Module) -> float:
        with torch.no_grad():
            return tune.race({"torch": lambda: model(example)}, native.threads())["torch"]

    return measure
