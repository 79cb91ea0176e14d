"""Scores: how much a unit is worth (larger = keep). A score declares what must be collected for it in `needs`.

To add one: write a frozen dataclass with `needs` and `__call__`, and a line in SCORES.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, DataError, NumericsError
from .context import Context, undisturbed

Scores = dict[str, Tensor]


@runtime_checkable
class Score(Protocol):
    """A callable Context -> group name -> unit scores of the group's shape."""

    needs: ClassVar[frozenset[str]]

    def __call__(self, ctx: Context) -> Scores: ...


@dataclass(frozen=True)
class Magnitude:
    """|w|."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, ctx: Context) -> Scores:
        return ctx.units(lambda name: ctx.weights[name].abs())


@dataclass(frozen=True)
class Random:
    """Uniform in [0, 1), a function of (seed, step, group name)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, ctx: Context) -> Scores:
        return {g.name: torch.rand(g.shape, generator=ctx.rng(g.name)).to(ctx.masks[g.name].device) for g in ctx.groups}


@dataclass(frozen=True)
class Gradient:
    """|dL/dw| of the present step, zeros included (RigL)."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def __call__(self, ctx: Context) -> Scores:
        return ctx.units(lambda name: ctx.statistic("grad", name).abs())


@dataclass(frozen=True)
class GradientEMA:
    """|exponential mean of dense gradients|. The optimiser's own momentum is 0 off the mask and cannot rank there."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad_ema"})

    def __call__(self, ctx: Context) -> Scores:
        return ctx.units(lambda name: ctx.statistic("grad_ema", name).abs())


@dataclass(frozen=True)
class Taylor:
    """|w dL/dw| with the present step's gradient (Molchanov et al. 2019, eq. 8)."""

    needs: ClassVar[frozenset[str]] = frozenset({"grad"})

    def __call__(self, ctx: Context) -> Scores:
        return ctx.units(lambda name: (ctx.weights[name] * ctx.statistic("grad", name)).abs())


@dataclass(frozen=True)
class Fisher:
    """w^2 E[g^2] / 2: loss increase under a diagonal Fisher (Theis et al. 2018, eq. 7)."""

    needs: ClassVar[frozenset[str]] = frozenset({"fisher"})

    def __call__(self, ctx: Context) -> Scores:
        return ctx.units(lambda name: 0.5 * ctx.weights[name].square() * ctx.statistic("fisher", name))


@dataclass(frozen=True)
class ActivationMagnitude:
    """|w| times the 2-norm of its input feature (Sun et al. 2023, Wanda, eq. 1)."""

    needs: ClassVar[frozenset[str]] = frozenset({"activations"})

    def __call__(self, ctx: Context) -> Scores:
        def score(name: str) -> Tensor:
            w = ctx.weights[name]
            norm = ctx.statistic("activations", name).sqrt()  # (in,)
            return w.abs() * norm.view(1, -1, *[1] * (w.ndim - 2))

        return ctx.units(score)


@dataclass(frozen=True)
class Hebbian:
    """|corr| of a unit with each of its inputs over the batch of the update: what fires together is worth a wire.

    Of a convolution, channels are correlated by their means over positions. Constant units score 0.

    Args:
        signed: rank by the correlation itself, so that only units that rise together connect.
    Source: Konstantaropoulos et al. 2025 (G2GNet), regrowth.
    """

    signed: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"act_corr"})

    def __call__(self, ctx: Context) -> Scores:
        def score(name: str) -> Tensor:
            found = ctx.statistic("act_corr", name)  # (out, in)
            w = ctx.weights[name]
            if found.shape != w.shape[:2]:
                raise ConfigError(f"{name}: a grouped convolution has no correlation of all channels; exclude it")
            values = found if self.signed else found.abs()
            return values.reshape(*found.shape, *[1] * (w.ndim - 2)).expand(w.shape)

        return ctx.units(score)


@dataclass(frozen=True)
class BNScale:
    """|gamma| of the normalisation that follows a channel group (network slimming, Liu et al. 2017)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, ctx: Context) -> Scores:
        scores = {}
        for group in ctx.groups:
            scales = [m for m in group.members if m.name.endswith(".weight")]  # never the shifts
            gammas = [m for m in scales if isinstance(_owner(ctx.model, m.name), _NORMS)]
            if not gammas:
                raise ConfigError(f"group {group.name} has no normalisation layer, so bn_scale cannot rank it")
            parts = [m.reduce(ctx.weights[m.name].abs()) for m in gammas]
            scores[group.name] = torch.stack(parts).mean(0)
        return scores


_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


def _owner(model: nn.Module, parameter: str) -> nn.Module:
    return model.get_submodule(parameter.rpartition(".")[0])


@dataclass(frozen=True)
class L1Group:
    """Mean |w| over a group's members with more than one dimension (filter norm, Li et al. 2017)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, ctx: Context) -> Scores:
        scores = {}
        for group in ctx.groups:
            weights = [m for m in group.members if ctx.weights[m.name].ndim > 1]
            scores[group.name] = torch.stack([m.reduce(ctx.weights[m.name].abs()) for m in weights]).mean(0)
        return scores


@dataclass(frozen=True)
class Snip:
    """|w dL/dw| on `batches` batches at the present weights (Lee et al. 2019, eq. 5): the effect of a gate c on w."""

    batches: int = 1
    needs: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, ctx: Context) -> Scores:
        gradients = _loss_gradients(ctx, self.batches)
        return ctx.units(lambda name: (ctx.weights[name] * gradients[name]).abs())


def _live(ctx: Context) -> dict[str, nn.Parameter]:
    return {name: p for name, p in ctx.model.named_parameters() if name in ctx.weights}


def _loss_gradients(ctx: Context, count: int) -> dict[str, Tensor]:
    """Sum over `count` batches of the loss gradient of each weight."""
    parameters = _live(ctx)
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    used = 0
    with undisturbed(ctx.model):
        for _, batch in zip(range(count), ctx.batches(), strict=False):
            grads = torch.autograd.grad(ctx.loss(ctx.model, batch), list(parameters.values()))
            for name, g in zip(parameters, grads, strict=True):
                total[name] += g
            used += 1
    if used < count:
        raise DataError(f"the data gave {used} batches, {count} are needed")
    return total


@dataclass(frozen=True)
class Grasp:
    """w (H g): keep what preserves gradient flow (Wang, Zhang & Grosse 2020, eq. 8, sign so that larger = keep).

    The authors remove the largest -w (H g), that is the smallest w (H g).

    Args:
        temperature: logits are divided by it (authors' default 200).
        samples: per class (authors' default 25).
    """

    temperature: float = 200.0
    samples: int = 25
    needs: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, ctx: Context) -> Scores:
        inputs, labels = balanced(ctx, self.samples)
        parameters = _live(ctx)
        weights = list(parameters.values())
        with undisturbed(ctx.model):
            halves = [slice(0, None, 2), slice(1, None, 2)]
            first: list[Tensor] = [torch.zeros_like(w) for w in weights]
            for half in halves:  # g over all samples, without a graph
                grads = torch.autograd.grad(self._loss(ctx, inputs[half], labels[half]), weights)
                first = [a + g for a, g in zip(first, grads, strict=True)]
            hg = [torch.zeros_like(w) for w in weights]
            for half in halves:
                grads = torch.autograd.grad(self._loss(ctx, inputs[half], labels[half]), weights, create_graph=True)
                product = sum((f * g).sum() for f, g in zip(first, grads, strict=True))
                assert isinstance(product, Tensor)
                hg = [a + h for a, h in zip(hg, torch.autograd.grad(product, weights), strict=True)]
        by_name = dict(zip(parameters, hg, strict=True))
        return ctx.units(lambda name: ctx.weights[name] * by_name[name])

    def _loss(self, ctx: Context, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(ctx.model(x) / self.temperature, y)


def balanced(ctx: Context, per_class: int) -> tuple[Tensor, Tensor]:
    """The first `per_class` samples of every class of the data, classes interleaved: (inputs, labels).

    Raises:
        DataError: a class has too few samples (the class and its count are named).
    """
    kept_x: dict[int, list[Tensor]] = {}
    for batch in ctx.batches():
        for x, y in zip(batch[0], batch[1], strict=True):
            kept_x.setdefault(int(y), []).append(x)
        if len(kept_x) > 1 and _enough(ctx, kept_x, batch, per_class):
            break
    for label, xs in sorted(kept_x.items()):
        if len(xs) < per_class:
            raise DataError(f"class {label} has {len(xs)} samples in the data, GraSP needs {per_class}")
    classes = range(max(kept_x) + 1)
    for label in classes:
        if label not in kept_x:
            raise DataError(f"class {label} has no sample in the data, GraSP needs {per_class}")
    order = [(kept_x[c][i], c) for i in range(per_class) for c in classes]
    return torch.stack([x for x, _ in order]), torch.tensor([c for _, c in order], device=order[0][0].device)


def _enough(ctx: Context, found: dict[int, list[Tensor]], batch: tuple[Tensor, ...], per_class: int) -> bool:
    """Whether every class the model has an output for is covered."""
    with undisturbed(ctx.model), torch.no_grad():
        classes = ctx.model(batch[0][:2]).shape[-1]
    return all(len(found.get(c, [])) >= per_class for c in range(classes))


@dataclass(frozen=True)
class Synflow:
    """|w dR/dw| with R = sum of outputs of the |weights| network on an input of ones (Tanaka et al. 2020, eq. 3).

    Data-free: the first batch of `data` gives only the input's shape. Computed in float64 on a copy in eval mode,
    with all parameters and running statistics replaced by their absolute values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"batch"})

    def __call__(self, ctx: Context) -> Scores:
        example = next(ctx.batches())[0]
        net = copy.deepcopy(ctx.model).double().eval()
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                tensor.abs_()
            for group in ctx.groups:
                for member in group.members:
                    mask = torch.ones_like(parameters[member.name], dtype=torch.bool)
                    member.write(ctx.masks[group.name], mask)
                    parameters[member.name].mul_(mask)
        ones = torch.ones_like(example[:1], dtype=torch.float64)
        flow = net(ones).sum()
        if not bool(torch.isfinite(flow)):
            raise NumericsError(f"SynFlow's flow is {float(flow.detach())}: the network overflows float64")
        wanted = [parameters[name] for name in ctx.weights]
        grads = dict(zip(ctx.weights, torch.autograd.grad(flow, wanted), strict=True))
        return ctx.units(lambda name: (parameters[name] * grads[name]).detach().abs())


@dataclass(frozen=True)
class Combined:
    """a times one score plus b times another."""

    first: Score
    second: Score
    a: float = 1.0
    b: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        return self.first.needs | self.second.needs

    def __call__(self, ctx: Context) -> Scores:
        one, two = self.first(ctx), self.second(ctx)
        return {name: self.a * one[name] + self.b * two[name] for name in one}


@dataclass(frozen=True)
class Normalised:
    """A score divided by its p-norm in each layer, so that layers compare under a global ranking."""

    score: Score
    p: float = 1.0

    @property
    def needs(self) -> frozenset[str]:
        return self.score.needs

    def __call__(self, ctx: Context) -> Scores:
        scores = self.score(ctx)
        return {name: s / s.norm(self.p).clamp_min(torch.finfo(s.dtype).tiny) for name, s in scores.items()}


SCORES: dict[str, type] = {
    "magnitude": Magnitude,
    "random": Random,
    "gradient": Gradient,
    "gradient_ema": GradientEMA,
    "taylor": Taylor,
    "fisher": Fisher,
    "activation_magnitude": ActivationMagnitude,
    "hebbian": Hebbian,
    "bn_scale": BNScale,
    "l1_group": L1Group,
    "snip": Snip,
    "grasp": Grasp,
    "synflow": Synflow,
    "combined": Combined,
    "normalised": Normalised,
}
