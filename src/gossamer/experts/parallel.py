"""Experts split over processes: tokens travel to the rank of their expert and back."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.experts.dispatch import grouped, run_sorted
from gossamer.experts.layer import Experts, MoE
from gossamer.experts.routing import RoutingPlan


def split(experts: int, ranks: int) -> list[int]:
    """Experts of each rank: equal up to one, the first ranks taking what is left over.

    >>> split(7, 3)
    [3, 2, 2]
    """
    return [experts // ranks + (rank < experts % ranks) for rank in range(ranks)]


class _Exchange(torch.autograd.Function):
    """All-to-all of rows with uneven splits; backward sends the gradients the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: Any) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        out = x.new_empty(sum(receive), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        out = grads[0].new_empty(sum(ctx.send), *grads[0].shape[1:])
        dist.all_to_all_single(out, grads[0].contiguous(), ctx.send, ctx.receive, group=ctx.group)
        return out, None, None, None


class ExpertParallel:
    """A dispatch for layers whose experts are split over the ranks of a process group (`shard`).

    Every rank routes its own tokens; all ranks must call the layer, also with no token at all. Gradients of a rank's
    experts are sums over the tokens of all ranks: exclude these parameters (`expert_parameters`) from the averaging of
    data parallelism and, where each rank's loss is a mean over its own tokens, divide them by the number of ranks.
    """

    def __init__(self, total: int, group: Any = None) -> None:
        self.group, self.rank = group, dist.get_rank(group)
        self.sizes = split(total, dist.get_world_size(group))

    def __call__(self, experts: Experts, x: Tensor, plan: RoutingPlan) -> Tensor:
        order = plan.expert.argsort(stable=True)
        token = plan.token[order]
        table = self._counts(plan.counts)  # (ranks, my experts)
        send = [int(part.sum()) for part in plan.counts.split(self.sizes)]
        receive = table.sum(1).tolist()
        arrived: Tensor = _Exchange.apply(x[token], send, receive, self.group)
        local = torch.arange(table.shape[1], device=x.device).repeat(len(table)).repeat_interleave(table.flatten())
        sorting = local.argsort(stable=True)
        y = run_sorted(experts, arrived[sorting], local[sorting], table.sum(0))
        back: Tensor = _Exchange.apply(y[sorting.argsort()], receive, send, self.group)
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        weighed = back.to(out.dtype) * plan.weight[order].to(out.dtype).unsqueeze(-1)
        return out.index_add(0, token, weighed).to(x.dtype)

    def _counts(self, counts: Tensor) -> Tensor:
        """(ranks, my experts) pairs that each rank sends here."""
        everyone = [torch.empty_like(counts) for _ in self.sizes]
        dist.all_gather(everyone, counts, group=self.group)
        return torch.stack([row.split(self.sizes)[self.rank] for row in everyone])


def shard(layer: MoE, group: Any = None) -> MoE:
    """Keep this rank's experts of a layer that is the same on all ranks; in place.

    A checkpoint is that of the whole layer: load it, then shard, on any number of ranks.

    Raises:
        ConfigError: no process group is running. Warns where a rank gets no expert.
    """
    if not dist.is_initialized():
        raise ConfigError("expert parallelism needs a process group: torchrun, or gossamer.training.distributed.launch")
    total = len(layer.experts.up)
    parallel = ExpertParallel(total, group)
    if 0 in parallel.sizes:
        warnings.warn(f"{total} experts on {len(parallel.sizes)} ranks: some ranks have none", stacklevel=2)
    start = sum(parallel.sizes[: parallel.rank])
    mine = slice(start, start + parallel.sizes[parallel.rank])
    for name, p in list(layer.experts.named_parameters()):
        setattr(layer.experts, name, nn.Parameter(p.detach()[mine].clone(), p.requires_grad))
    layer.dispatch = parallel
    return layer


def unshard(layer: MoE) -> MoE:
    """Gather the experts of all ranks again, in place: to save them, or to go on with another number of ranks."""
    if not isinstance(layer.dispatch, ExpertParallel):
        raise ConfigError("this layer is not sharded")
    sizes, group = layer.dispatch.sizes, layer.dispatch.group
    for name, p in list(layer.experts.named_parameters()):
        parts = [p.new_empty(size, *p.shape[1:]) for size in sizes]
        _gather(parts, p.detach(), group)
        setattr(layer.experts, name, nn.Parameter(torch.cat(parts), p.requires_grad))
    layer.dispatch = grouped
    return layer


def _gather(parts: Sequence[Tensor], mine: Tensor, group: Any) -> None:
    """Every rank's part to all; one broadcast each, as the parts differ in size."""
    for rank, part in enumerate(parts):
        source = rank if group is None else dist.get_global_rank(group, rank)
        if dist.get_rank() == source:
            part.copy_(mine)
        if part.numel():
            dist.broadcast(part, source, group=group)


def expert_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that differ between ranks and must not be averaged over them."""
    layers = [m for m in model.modules() if isinstance(m, MoE) and isinstance(m.dispatch, ExpertParallel)]
    return [p for layer in layers for p in layer.experts.parameters()]
