"""Statistics that scores ask for: one collector per need, armed only on steps whose update will read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError

NEEDS = ("grad", "grad_ema", "fisher", "activations", "act_corr", "gram", "batch")
RUNNING = frozenset({"grad_ema", "fisher"})  # these read every step's gradient, not only an update's
FORWARD = frozenset({"activations", "act_corr", "gram"})


def _features(x: Tensor, module: nn.Module) -> Tensor:
    """Activations as a matrix (samples, features): channels of a convolution, last dimension of anything else."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return x.movedim(1, -1).reshape(-1, x.shape[1])
    return x.reshape(-1, x.shape[-1])


def _samples(x: Tensor, module: nn.Module) -> Tensor:
    """As `_features`, but a convolution's channels by their means over positions: one row per image."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return x.flatten(2).mean(2)
    return x.reshape(-1, x.shape[-1])


@dataclass
class Statistics:
    """Running statistics of the weights in `names`.

    `values[need][parameter]` holds: grad, grad_ema: the parameter's shape; fisher: mean of squared gradients;
    activations: (in,) sum of squares of the layer's inputs; gram: (in, in) sum of x^T x; act_corr: (out, in)
    correlation of outputs with inputs.

    Args:
        beta: decay of grad_ema (0.9 as SGD momentum).
    """

    names: list[str]
    needs: frozenset[str]
    beta: float = 0.9
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    samples: int = 0
    _pending: dict[str, Tensor] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def wants_gradient(self, due: bool) -> bool:
        """Whether dense gradients are needed at a step (`due`: an update follows it)."""
        return bool(self.needs & RUNNING) or (due and "grad" in self.needs)

    def observe(self, gradients: dict[str, Tensor | None]) -> None:
        """Set this step's dense gradients aside; they count only once the step has really happened."""
        self._pending = {n: g.detach().clone() for n, g in gradients.items() if g is not None}

    def commit(self) -> None:
        """The step happened: take its gradients into the statistics."""
        if not self._pending:
            return
        if "grad" in self.needs:
            self.values["grad"] = self._pending
        if "grad_ema" in self.needs:
            mean = self.values.setdefault("grad_ema", {})
            for name, g in self._pending.items():
                mean[name] = g.clone() if name not in mean else mean[name].lerp_(g, 1 - self.beta)
        if "fisher" in self.needs:
            self.samples += 1
            square = self.values.setdefault("fisher", {})
            for name, g in self._pending.items():
                old = square.setdefault(name, torch.zeros_like(g))
                old.lerp_(g.square(), 1 / self.samples)
        self._pending = {}

    def release(self) -> None:
        """Drop what belongs to one step only."""
        self.values.pop("grad", None)
        for need in FORWARD:
            self.values.pop(need, None)

    def arm(self, model: nn.Module) -> None:
        """Install forward hooks for the coming step, if a score needs activations."""
        if not self.needs & FORWARD or self._handles:
            return
        for name in self.names:
            module = model.get_submodule(name.rpartition(".")[0])
            self._handles.append(module.register_forward_hook(self._reader(name)))

    def disarm(self) -> None:
        """Remove the forward hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _reader(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        @torch.no_grad()
        def read(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            x = _features(inputs[0].detach().float(), module)
            if "activations" in self.needs:
                self._add("activations", name, x.square().sum(0))
            if "gram" in self.needs:
                self._add("gram", name, x.T @ x)
            if "act_corr" in self.needs and isinstance(output, Tensor):
                pair = (_samples(t.detach().float(), module) for t in (output, inputs[0]))
                self.values.setdefault("act_corr", {})[name] = correlation(*pair)

        return read

    def _add(self, need: str, name: str, value: Tensor) -> None:
        store = self.values.setdefault(need, {})
        store[name] = value if name not in store else store[name] + value

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the running statistics."""
        running = {need: dict(self.values[need]) for need in sorted(RUNNING & set(self.values))}
        return {"samples": self.samples, "running": running}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.samples = int(state["samples"])
        self.values = {need: {n: t.clone() for n, t in tensors.items()} for need, tensors in state["running"].items()}


def correlation(y: Tensor, x: Tensor) -> Tensor:
    """Pearson correlation of the columns of y (samples, out) with those of x (samples, in): 0 for constants.

    Raises:
        ShapeError: fewer than two samples.
    """
    if len(x) < 2:
        raise ShapeError(f"a correlation of activations needs a batch of at least 2, got {len(x)}")
    y, x = y - y.mean(0), x - x.mean(0)
    scale = y.norm(dim=0)[:, None] * x.norm(dim=0)[None, :]
    return torch.where(scale > 0, (y.T @ x) / scale.clamp_min(1e-30), 0.0)
