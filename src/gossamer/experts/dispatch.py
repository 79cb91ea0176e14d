"""Ways to send tokens to their experts and add up what comes back; all give the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import unknown
from gossamer.experts.routing import RoutingPlan

if TYPE_CHECKING:
    from gossamer.experts.layer import Experts

# experts, tokens (N, d), plan -> (N, d)
Dispatch = Callable[["Experts", Tensor, RoutingPlan], Tensor]
_ALIGNMENT = 16  # bytes, of the rows that grouped_mm takes


def loop(experts: Experts, x: Tensor, plan: RoutingPlan) -> Tensor:
    """The reference: one expert after the other."""
    out = _zeros(x)
    for e in range(len(experts.up)):
        pair = (plan.expert == e).nonzero().squeeze(-1)
        y = experts.run(x[plan.token[pair]], lambda h, weight, bias, e=e: F.linear(h, weight[e], _at(bias, e)))  # type: ignore[misc]
        out = out.index_add(0, plan.token[pair], _weighed(y, plan.weight[pair], out))
    return out.to(x.dtype)


def grouped(experts: Experts, x: Tensor, plan: RoutingPlan) -> Tensor:
    """Sort the pairs by expert and multiply all groups in one call; nothing is dropped and nothing padded."""
    order = plan.expert.argsort(stable=True)
    token, expert = plan.token[order], plan.expert[order]
    y = run_sorted(experts, x.index_select(0, token), expert, plan.counts)  # its gradient is an index_add, too
    out = _zeros(x)
    return out.index_add(0, token, _weighed(y, plan.weight.index_select(0, order), out)).to(x.dtype)


def padded(experts: Experts, x: Tensor, plan: RoutingPlan) -> Tensor:
    """Buffers (E, C, d) with C the largest load, and batched products: for loads that a capacity bounds."""
    order = plan.expert.argsort(stable=True)
    token, expert = plan.token[order], plan.expert[order]
    start = plan.counts.cumsum(0) - plan.counts
    place = torch.arange(len(order), device=x.device) - start[expert]
    buffer = x.new_zeros(len(experts.up), int(plan.counts.max()), x.shape[-1])
    buffer = buffer.index_put((expert, place), x[token])
    y = experts.run(buffer, _batched)[expert, place]
    out = _zeros(x)
    return out.index_add(0, token, _weighed(y, plan.weight[order], out)).to(x.dtype)


def einsum(experts: Experts, x: Tensor, plan: RoutingPlan) -> Tensor:
    """Every expert sees every token, and the weights choose: for few experts and for checking."""
    y = experts.run(x.expand(len(experts.up), -1, -1), _batched)
    wide = _zeros(x).dtype
    return torch.einsum("end,ne->nd", y.to(wide), plan.dense().to(wide)).to(x.dtype)


DISPATCH: dict[str, Dispatch] = {"loop": loop, "grouped": grouped, "padded": padded, "einsum": einsum}


def dispatcher(name: str) -> Dispatch:
    """The way of that name. Raises ConfigError with the known ones."""
    if name not in DISPATCH:
        raise unknown("dispatch", name, DISPATCH)
    return DISPATCH[name]


def run_sorted(experts: Experts, x: Tensor, expert: Tensor, counts: Tensor) -> Tensor:
    """Outputs (P, d) of tokens that are sorted by expert. expert: (P,) ascending. counts: (E,)."""
    if len(x) == 0:
        return x + 0 * sum(p.sum() for p in experts.parameters())  # every parameter gets a gradient of zeros
    if all(_aligned(x, width) for width in (*experts.up.shape[1:], *experts.down.shape[1:])):
        offsets = counts.cumsum(0).to(torch.int32)

        def product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = F.grouped_mm(h, weight.to(h.dtype).mT, offs=offsets)
            return y if bias is None else y + bias[expert]
    else:
        sizes = counts.tolist()

        def product(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            parts = enumerate(h.split(sizes))
            return torch.cat([F.linear(part, weight[e], _at(bias, e)) for e, part in parts])

    return experts.run(x, product)


def _aligned(x: Tensor, width: int) -> bool:
    """Whether `grouped_mm` takes rows of this width and type."""
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    return x.dtype in kinds and width * x.element_size() % _ALIGNMENT == 0


def _batched(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = h @ weight.mT
    return y if bias is None else y + bias.unsqueeze(1)


def _at(bias: Tensor | None, e: int) -> Tensor | None:
    return None if bias is None else bias[e]


def _zeros(x: Tensor) -> Tensor:
    """Sums are kept in float32, or in float64 for float64 tokens."""
    return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))


def _weighed(y: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    return y.to(out.dtype) * weight.to(out.dtype).unsqueeze(-1)
