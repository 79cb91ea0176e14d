"""Finding feed-forward networks in any model, and stacking several of them into experts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError, ShapeError
from gossamer.experts.layer import Experts
from gossamer.experts.loose import loose

# (up, down) of two-layer networks and (gate, up, down) of gated ones, by the names that libraries give them
_PLAIN = (
    ("fc1", "fc2"), ("c_fc", "c_proj"), ("linear1", "linear2"), ("lin1", "lin2"), ("up", "down"), ("wi", "wo"),
    ("fc_in", "fc_out"), ("up_proj", "down_proj"), ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate_dense", "output_dense"),
)  # fmt: skip
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
_FUSED = ("gate_up_proj", "down_proj")  # gate and up in one layer
_ACTIVATIONS = (
    "activation_fn", "act_fn", "act", "activation", "gelu", "hidden_act", "gelu_impl", "intermediate_act_fn"
)  # fmt: skip
_SILENT = (nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Ffn:
    """The parts of one network: down(act(up x)), or down(act(gate x) * up x)."""

    up: nn.Linear
    down: nn.Linear
    activation: Callable[[Tensor], Tensor]
    gate: nn.Linear | None = None

    def shapes(self) -> tuple[object, ...]:
        """What must agree between the experts of one layer."""
        biases = (self.up.bias is None, self.down.bias is None)
        return (*self.up.weight.shape, *self.down.weight.shape, self.gate is not None, *biases)


def parse(module: nn.Module) -> Ffn | None:
    """The parts of a feed-forward network, or None where the module is none that is known."""
    children = {name: child for name, child in module.named_children() if not isinstance(child, _SILENT)}
    if isinstance(module, nn.Sequential):
        parts = list(children.values())
        if len(parts) == 3 and isinstance(parts[0], nn.Linear) and isinstance(parts[2], nn.Linear):
            return _fitting(Ffn(parts[0], parts[2], parts[1])) if not isinstance(parts[1], nn.Linear) else None
        return None
    activation = next((getattr(module, name) for name in _ACTIVATIONS if callable(getattr(module, name, None))), None)
    for names in (*_GATED, _FUSED, *_PLAIN):
        linears = [part for part in (_linear(children.get(name)) for name in names) if part is not None]
        others = [child for name, child in children.items() if name not in names and child is not activation]
        if activation is not None and not others and len(linears) == len(names):
            return _fitting(_made(linears, activation, names == _FUSED))
    return None


def _made(linears: list[nn.Linear], activation: Callable[[Tensor], Tensor], fused: bool) -> Ffn:
    if fused:
        halves = [part.chunk(2) if part is not None else (None, None) for part in (linears[0].weight, linears[0].bias)]
        gate, up = (_of(weight, bias) for weight, bias in zip(*halves, strict=True))
        return Ffn(up, linears[1], activation, gate)
    return Ffn(linears[-2], linears[-1], activation, linears[0] if len(linears) == 3 else None)


def _linear(module: Any) -> nn.Linear | None:
    """The module where it is a `Linear`, or a view of transformers' `Conv1D` (GPT-2), whose weight is transposed."""
    if type(module).__name__ == "Conv1D":
        return _of(module.weight.T, module.bias)
    return module if isinstance(module, nn.Linear) else None


def _of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A `Linear` that shares this weight (out, in)."""
    made = nn.Linear(1, 1, bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def _fitting(ffn: Ffn) -> Ffn | None:
    (hidden, width), (out, inner) = ffn.up.weight.shape, ffn.down.weight.shape
    return ffn if (hidden, width) == (inner, out) else None


def find_ffn(model: nn.Module, pattern: str | None = None, last: int | None = None) -> list[str]:
    """Names of the feed-forward networks of a model, in order.

    A network whose layers lie loose in a block (BERT, OPT, BART, Whisper) goes by the name of its first layer.

    Args:
        model: of Hugging Face, open_clip, timm (read by duck typing), or own: two `Linear` with an activation between
            them, or a gated network of three.
        pattern: regular expression that the whole name must match; None takes every network that is recognised.
        last: keep only the last so many of each tower (names that differ in a number only), as CLIP-MoE's `moe_layers`.
    Raises:
        ConfigError: nothing matches (with near names), a matched module is no feed-forward network, or last < 1.

    >>> find_ffn(nn.Sequential(nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 2))))
    ['0']
    """
    named = {name: module for name, module in model.named_modules() if name}
    known = [name for name, module in named.items() if parse(module)]
    known = [name for name in named if name in {*known, *loose(model)}]
    if pattern is None:
        names = known
    else:
        names = [name for name in named if re.fullmatch(pattern, name)]
        odd = next((name for name in names if name not in known), None)
        if odd is not None:
            raise ConfigError(
                f"{odd} ({type(named[odd]).__name__}) matches {pattern!r} but is no feed-forward network of two or "
                "three Linear layers around an activation; narrow the pattern"
            )
    if not names:
        near = get_close_matches(pattern or "mlp", known or named, n=3, cutoff=0.1)
        what = "is a feed-forward network of a known form" if pattern is None else f"matches {pattern!r}"
        raise ConfigError(f"no module of {type(model).__name__} {what}; near: {', '.join(near) or 'none'}")
    return names if last is None else _last(names, last)


def _last(names: list[str], last: int) -> list[str]:
    if last < 1:
        raise ConfigError(f"last must be at least 1, got {last}; to convert nothing, do not upcycle")
    towers: dict[str, list[str]] = {}
    for name in names:
        towers.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    kept = {name for tower in towers.values() for name in tower[-last:]}
    return [name for name in names if name in kept]


def stack(modules: Sequence[nn.Module], dropout: float = 0.0) -> Experts:
    """Experts with the weights of these networks, copied.

    Raises:
        ConfigError: a module is no known network, or the stack does not compute what the module does.
        ShapeError: networks of unlike shape.
    """
    parsed = [parse(module) for module in modules]
    parts = [part for part in parsed if part is not None]
    if len(parts) < len(modules) or not parts:
        raise ConfigError(f"{[type(m).__name__ for m in modules]}: not all are feed-forward networks")
    first = parts[0].shapes()
    for number, part in enumerate(parts):
        if part.shapes() != first:
            raise ShapeError(f"expert {number} has shapes {part.shapes()}, expert 0 has {first}; they must agree")
    experts = skeleton(parts[0], len(parts), dropout=dropout)
    with torch.no_grad():
        for e, part in enumerate(parts):
            rows: list[Tensor] = [linear.weight for linear in (part.gate, part.up) if linear is not None]
            experts.up[e] = torch.cat(rows)
            experts.down[e] = part.down.weight
            if experts.up_bias is not None and experts.down_bias is not None:
                biases: list[Tensor] = [linear.bias for linear in (part.gate, part.up) if linear is not None]
                experts.up_bias[e] = torch.cat(biases)
                experts.down_bias[e] = part.down.bias
    _compare(experts, modules[0])
    return experts


def skeleton(ffn: Ffn, n: int, hidden: int | None = None, dropout: float = 0.0) -> Experts:
    """n experts like this network, of its device and type, whose weights mean nothing yet."""
    inner, width = ffn.up.weight.shape
    biases = {linear.bias is not None for linear in (ffn.gate, ffn.up, ffn.down) if linear is not None}
    if len(biases) > 1:
        raise ConfigError("a feed-forward network with a bias in some of its layers only cannot be stacked")
    made = Experts(
        n, width, hidden or inner, ffn.activation, gated=ffn.gate is not None, bias=biases == {True}, dropout=dropout
    )
    return made.to(ffn.up.weight.device, ffn.up.weight.dtype)


@torch.no_grad()
def _compare(experts: Experts, module: nn.Module) -> None:
    """Run both on a few tokens, so that an unusual forward is found now rather than in the results."""
    probe = torch.linspace(-1, 1, 3 * experts.up.shape[2], device=experts.up.device).view(3, -1).to(experts.up.dtype)
    modes = module.training, experts.training
    module.eval(), experts.eval()
    try:
        one, two = module(probe), experts.one(0, probe)
    except TypeError as error:
        raise ConfigError(
            f"{type(module).__name__} takes more than tokens, so experts cannot take its place: {error}"
        ) from None
    module.train(modes[0]), experts.train(modes[1])
    tolerance = 1e-4 if one.dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(one, two, atol=tolerance * float(one.abs().max().clamp(min=1)), rtol=tolerance):
        raise ConfigError(
            f"{type(module).__name__} computes more than its Linear layers and activation: as an expert it differs by "
            f"{float((one - two).abs().max()):.3g}; exclude it by a narrower pattern"
        )
