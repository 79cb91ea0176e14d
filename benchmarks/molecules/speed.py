"""Frozen sparse networks against the dense one: CPU time and memory ratios, side by side in one process.

python benchmarks/molecules/speed.py [--rounds 5]

The dense network (sparsity 0) computes every path and every pair, as QHNet does. The third column is e3nn's own
product with all paths over ours with the kept ones. Nothing here is an absolute time.
"""

from __future__ import annotations

import argparse
import time
import warnings
from statistics import median

import torch

from gossamer.claims.molecules_testbed import times
from gossamer.domains.molecules import SparseTensorProduct
from gossamer.domains.molecules.irreps import block, o3, triples


def saved_bytes(sparsity: float, lmax: int = 4, channels: int = 16, n: int = 384) -> int:
    """Bytes that one product keeps for its backward pass."""
    product = SparseTensorProduct(lmax, sparsity=sparsity)
    product.gate.advance("adaptive")
    small, total = product.freeze(), 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    x = torch.randn(n, channels, (lmax + 1) ** 2, requires_grad=True)
    weights = torch.randn(n, len(small.paths), channels, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        small(x, x, weights)
    return total


def against_e3nn(sparsity: float, rounds: int, lmax: int = 4, channels: int = 16, n: int = 384) -> float:
    """CPU time of ours, frozen, over that of e3nn's product of all paths."""
    paths = triples(lmax)
    irreps = "+".join(f"{channels}x{l}e" for l in range(lmax + 1))  # noqa: E741
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = o3().TensorProduct(
            irreps, irreps, irreps, [(*p, "uuu", True) for p in paths], shared_weights=False, internal_weights=False
        )
    product = SparseTensorProduct(lmax, sparsity=sparsity)
    product.gate.advance("adaptive")
    ours = product.freeze()
    x = torch.randn(n, channels, (lmax + 1) ** 2)
    flat = torch.cat([x[..., block(l)].flatten(1) for l in range(lmax + 1)], 1)  # noqa: E741
    w, few = torch.randn(n, theirs.weight_numel), torch.randn(n, len(ours.paths), channels)
    spent: dict[str, list[float]] = {"ours": [], "e3nn": []}
    with torch.no_grad():
        for turn in range(rounds + 3):
            for name, work in (("ours", lambda: ours(x, x, few)), ("e3nn", lambda: theirs(flat, flat, w))):
                began = time.process_time()
                work()
                if turn > 2:
                    spent[name].append(time.process_time() - began)
    return median(spent["ours"]) / median(spent["e3nn"])


def main() -> None:
    """Print one line for each sparsity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    whole = saved_bytes(0.0)
    print("sparsity  inference  training  product  product over e3nn  saved bytes")
    for sparsity in (0.0, 0.5, 0.7):
        found = times(rounds, sparsity)
        foreign, memory = against_e3nn(sparsity, rounds), saved_bytes(sparsity) / whole
        print(
            f"{sparsity:8.1f}  {found['inference']:9.2f}  {found['training']:8.2f}  {found['product']:7.2f}"
            f"  {foreign:17.2f}  {memory:11.2f}"
        )


if __name__ == "__main__":
    main()
