"""What the processes of test_parallel.py run."""

import warnings
from pathlib import Path

import torch

from gossamer.experts import Experts, MoE, TopK, expert_parameters, shard, unshard
from gossamer.experts.parallel import split

TOKENS = (9, 5)


def layer(experts):
    torch.manual_seed(0)
    return MoE(Experts(experts, 8, 12), TopK(min(2, experts), renormalise=experts > 1), std=1.0)


def tokens(rank, empty):
    torch.manual_seed(1)
    parts = torch.randn(sum(TOKENS), 8).split(TOKENS)
    return parts[rank] if not (empty and rank) else parts[rank][:0]


def compare(rank, folder, experts, empty):
    """One process on all tokens against two that hold half of tokens and experts each."""
    whole = layer(experts)
    x = torch.cat([tokens(0, empty), tokens(1, empty)]).requires_grad_()
    expected = whole(x)
    weight = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    (expected * weight).sum().backward()
    start = rank * TOKENS[0]
    mine = slice(start, start + len(tokens(rank, empty)))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if experts < 2 else "error")
        part = shard(layer(experts))
    own = tokens(rank, empty).clone().requires_grad_()
    y = part(own)
    (y * weight[mine]).sum().backward()
    assert torch.allclose(y, expected[mine], atol=1e-5)
    assert torch.allclose(own.grad, x.grad[mine], atol=1e-5)
    sizes = split(experts, 2)
    held = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for p, q in zip(part.experts.parameters(), whole.experts.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad[held], atol=1e-5)
    assert len(expert_parameters(part)) == 4
    gate = part.gate.weight.grad.clone()
    torch.distributed.all_reduce(gate)
    assert torch.allclose(gate, whole.gate.weight.grad, atol=1e-5)
    again = unshard(part)
    for p, q in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, q)
    (Path(folder) / f"{rank}").touch()
