"""What 8-bit and bfloat16 values cost in accuracy, on the digits (8 x 8 pixels).

    python benchmarks/execution/precision.py [--seeds 3] [--out precision.md]

A multilayer perceptron is trained at 90 % zeros (one-shot magnitude masks after a dense start, then fine-tuned with the
masks held). Ranges of weights are searched by row. Reported: test accuracy, and how many answers change.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.data import load
from gossamer.engine.integers import Int8Linear
from gossamer.kernels.gemv import gemv
from gossamer.kernels.int8 import pack_int8
from gossamer.kernels.pack import pack_bitmap


class Bf16Linear(nn.Module):
    """A bitmap of bfloat16 values."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed, self.bias = pack_bitmap(layer.weight, torch.bfloat16), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return gemv(self.packed, x, bias=self.bias)


def tensors(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load(name, batch_size=100)
    parts = []
    for source in (data.train, data.test):
        batches = [source.batch(i) for i in range(len(source))]
        parts += [torch.cat([b[0] for b in batches]).flatten(1), torch.cat([b[1] for b in batches])]
    return parts[0], parts[1], parts[2], parts[3]


def train(model: nn.Sequential, x: Tensor, y: Tensor, steps: int, masks: dict[int, Tensor]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        for i, mask in masks.items():
            model[i].weight.data *= mask  # type: ignore[union-attr, operator]


def trained(x: Tensor, y: Tensor, sparsity: float) -> nn.Sequential:
    width = x.shape[1]
    model = nn.Sequential(nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(model, x, y, 300, {})
    masks = {}
    for i in (0, 2):
        weight = model[i].weight.data
        masks[i] = weight.abs() > weight.abs().flatten().kthvalue(int(sparsity * weight.numel())).values
        weight *= masks[i]
    train(model, x, y, 500, masks)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, y, x_test, y_test = tensors("digits")
    lines = [
        "| seed | float32 | bfloat16 | int8 | answers changed: bfloat16, int8 | bytes of dense: bfloat16, int8 |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        model = trained(x, y, 0.9)
        low = {}
        for name, make in (("bf16", Bf16Linear), ("int8", lambda m: Int8Linear(pack_int8(m.weight), m.bias))):
            low[name] = nn.Sequential(*(make(m) if isinstance(m, nn.Linear) else copy.deepcopy(m) for m in model))
        with torch.no_grad():
            answers = {name: m(x_test).argmax(1) for name, m in {"fp32": model, **low}.items()}
        accuracy = {name: float((a == y_test).float().mean()) for name, a in answers.items()}
        changed = {name: int((a != answers["fp32"]).sum()) for name, a in answers.items()}
        dense = sum(m.weight.nbytes for m in model if isinstance(m, nn.Linear))
        size = {n: sum(m.packed.nbytes for m in q if hasattr(m, "packed")) / dense for n, q in low.items()}
        lines.append(
            f"| {seed} | " + " | ".join(f"{accuracy[n]:.4f}" for n in ("fp32", "bf16", "int8"))
            + f" | {changed['bf16']}, {changed['int8']} of {len(y_test)} | {size['bf16']:.3f}, {size['int8']:.3f} |"
        )  # fmt: skip
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
