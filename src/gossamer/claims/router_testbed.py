"""Routers of a mixture of experts on the digits: 16 patch tokens, one attention and one expert layer, five routers.

Protocol of the sparsity-constrained transport's small reproduction: patches of 2 x 2 pixels, width 32, 8 experts of
hidden width 32, batches of 32 images that are one group of 512 tokens, AdamW 3e-3, 200 steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.data.digits import digits
from gossamer.transport import Entropic, assign, capacity_of, solve_ot

WIDTH, EXPERTS, BATCH, STEPS, LR, TOKENS = 32, 8, 32, 200, 3e-3, 16

# gate (N, E) after the softmax, capacity -> chosen (N, E) bool
Route = Callable[[Tensor, int], Tensor]


def tokens_choose(gate: Tensor, capacity: int) -> Tensor:
    """Each token takes its best expert; beyond the capacity later tokens are dropped."""
    return _keep(F.one_hot(gate.argmax(-1), gate.shape[-1]).bool(), capacity)


def experts_choose(gate: Tensor, capacity: int) -> Tensor:
    """Each expert takes its best tokens."""
    return torch.zeros_like(gate, dtype=torch.bool).scatter(0, gate.topk(capacity, dim=0).indices, True)


def sinkhorn_choose(gate: Tensor, capacity: int) -> Tensor:
    """Each token takes the expert that an entropic plan gives most of it (as S-BASE does)."""
    n, e = gate.shape
    plan = solve_ot(-gate.detach().double(), torch.ones(n), torch.full((e,), n / e), Entropic(0.05)).plan
    return _keep(F.one_hot(plan.argmax(-1), e).bool(), capacity)


def transport_choose(gate: Tensor, capacity: int) -> Tensor:
    """The sparsity-constrained plan."""
    return assign(gate, capacity).chosen


def random_choose(gate: Tensor, capacity: int) -> Tensor:
    """A fault for the mutant: experts take random tokens."""
    return experts_choose(torch.rand_like(gate), capacity)


def worst_choose(gate: Tensor, capacity: int) -> Tensor:
    """A fault for the mutant: experts take the tokens that suit them least."""
    return experts_choose(-gate, capacity)


def nobody_chooses(gate: Tensor, capacity: int) -> Tensor:
    """A fault for the mutant: no token reaches an expert."""
    return torch.zeros_like(gate, dtype=torch.bool)


def _keep(wanted: Tensor, capacity: int) -> Tensor:
    return wanted & (wanted.cumsum(0) <= capacity)


ROUTES: dict[str, Route] = {
    "tokens choose": tokens_choose,
    "tokens choose + balance": tokens_choose,
    "sinkhorn": sinkhorn_choose,
    "experts choose": experts_choose,
    "k-sparse transport": transport_choose,
}
FAULTS: dict[str, Route] = {
    "plain_top_k": experts_choose,
    "random_tokens": random_choose,
    "worst_tokens": worst_choose,
    "no_experts": nobody_chooses,
}


class _Net(nn.Module):
    """Digits (B, 1, 8, 8) -> logits (B, 10), and what the router did."""

    def __init__(self, route: Route, capacity: int, balance: float) -> None:
        super().__init__()
        self.route, self.capacity, self.balance = route, capacity, balance
        self.embed = nn.Linear(4, WIDTH)
        self.place = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.02)
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.first = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5)
        self.second = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, auxiliary loss, chosen (N, E)."""
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(len(x), TOKENS, 4)
        h = self.embed(patches) + self.place
        normed = self.before(h)
        h = h + self.attention(normed, normed, normed, need_weights=False)[0]
        flat = self.between(h).flatten(0, 1)
        gate = self.gate(flat).softmax(-1)
        capacity = max(1, self.capacity * len(x) // BATCH)
        chosen = self.route(gate, capacity)
        experts = torch.einsum("neh,eho->neo", torch.einsum("nd,edh->neh", flat, self.first).relu(), self.second)
        h = h + torch.einsum("neo,ne->no", experts, gate * chosen).view_as(h)
        share = F.one_hot(gate.argmax(-1), EXPERTS).float().mean(0)
        return self.head(h.mean(1)), self.balance * EXPERTS * (share * gate.mean(0)).sum(), chosen


def train_router(name: str, seed: int, factor: float = 1.0, mutant: str | None = None) -> dict[str, Any]:
    """Train and test once; cached on disk.

    Args:
        name: of `ROUTES`. factor: capacity factor. mutant: of `FAULTS`, in the place of the transport router.
    Returns:
        accuracy; load (largest over mean load in training batches), unrouted (share of test tokens without an expert),
        over (batches where an expert exceeded the capacity).
    """

    def compute() -> dict[str, Any]:
        with one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(name, seed, factor, mutant)

    settings = {"what": "router", "name": name, "seed": seed, "factor": factor, "mutant": mutant}
    return cell(__name__, settings, compute)


def _train(name: str, seed: int, factor: float, mutant: str | None) -> dict[str, Any]:
    data = digits(batch_size=BATCH, seed=seed)
    capacity = capacity_of(BATCH * TOKENS, EXPERTS, factor)
    route = FAULTS[mutant] if mutant and name == "k-sparse transport" else ROUTES[name]
    net = _Net(route, capacity, 0.01 if name == "tokens choose + balance" else 0.0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    over = 0
    for step in range(STEPS):
        x, y = data.train.batch(step)
        logits, auxiliary, chosen = net(x)
        over += int(chosen.sum(0).max()) > capacity
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + auxiliary).backward()
        optimizer.step()
    return {"over": over, **_test(net, data.test.tensors(), capacity)}


def _test(net: _Net, test: tuple[Tensor, ...], capacity: int) -> dict[str, float]:
    """On whole batches, so that the groups are those of training."""
    right, left, tokens, loads = 0, 0, 0, []
    with torch.no_grad():
        for x, y in zip(test[0].split(BATCH), test[1].split(BATCH), strict=True):
            if len(x) < BATCH:
                continue
            logits, _, chosen = net(x)
            right += int((logits.argmax(-1) == y).sum())
            left += int((~chosen.any(-1)).sum())
            tokens += len(chosen)
            loads.append(float(chosen.sum(0).max() * EXPERTS / len(chosen)))
    images = tokens // TOKENS
    return {"accuracy": right / images, "unrouted": left / tokens, "load": max(loads)}
