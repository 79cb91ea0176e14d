"""The speed testbed: sparse layers and networks against every dense fp32 peer installed, side by side.

One thread. All candidates run in turns in one process; a time is the median of the processor time of several slices,
so that other programs on the machine count little, and each result is compared with an independent one before it
counts. Ratios are all that is reported.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gossamer.claims import dense_peers as peers
from gossamer.claims.convnet_testbed import prune_by
from gossamer.claims.protocol import Context, Measured
from gossamer.claims.testbeds import one_thread
from gossamer.engine.compiler import compile as compile_network
from gossamer.errors import DataError
from gossamer.kernels import native
from gossamer.kernels.pack import pack_block, pack_csr_panel
from gossamer.maths.statistics import mean_sd
from gossamer.recipes.convnets import LayerChoice, pointwise
from gossamer.sparsify.patterns import Block, Unstructured

# (in, out, height = width) of 1x1 convolutions at 224 pixels with 128 and more inputs
V1 = (
    (128, 128, 56),
    (128, 256, 28),
    (256, 256, 28),
    (256, 512, 14),
    (512, 512, 14),
    (512, 1024, 7),
    (1024, 1024, 7),
)
V2 = (
    (144, 32, 28),
    (192, 64, 14),
    (384, 64, 14),
    (384, 96, 14),
    (576, 96, 14),
    (576, 160, 7),
    (160, 960, 7),
    (960, 160, 7),
    (960, 320, 7),
    (320, 1280, 7),
)
SLICES = 9
Layer = tuple[int, int, int]


def require_kernels() -> None:
    """Raise DataError, so that a claim counts as not run, where there are no compiled kernels."""
    if native.extension() is None:
        raise DataError("the compiled kernels are missing or switched off: build them with `make setup`")


def medians(runs: Mapping[str, peers.Run], count: int = SLICES) -> dict[str, float]:
    """Name -> median processor seconds of one call; all in turns."""
    return {name: statistics.median(found) for name, found in peers.slices(runs, count).items()}


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values."""
    return math.exp(sum(map(math.log, values)) / len(values))


# --------------------------------------------------------------------------- layers


def layer_speedup(shape: Layer, sparsity: float, rows: int, seed: int, mutant: str | None = None) -> float:
    """Speed of one sparse 1x1 convolution over the fastest dense peer.

    Args:
        shape: (in, out, side). rows: 1 for unstructured, else the height of the blocks.
        mutant: "masked_dense" multiplies by the zeros instead of leaving them out.
    """
    columns, outputs, side = shape
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, columns, generator=source)
    x = torch.randn(columns, side * side, generator=source)
    cells = torch.rand(outputs // rows, columns, generator=source)
    kept = cells.flatten().argsort(descending=True)[: round((1 - sparsity) * cells.numel())]
    mask = torch.zeros(cells.numel(), dtype=torch.bool).index_fill_(0, kept, True).view_as(cells)
    pruned = weight * mask.repeat_interleave(rows, 0)
    packed = pack_csr_panel(pruned, pixels=x.shape[1]) if rows == 1 else pack_block(pruned, rows)
    ours = partial(torch.mm, pruned, x) if mutant == "masked_dense" else peers.sparse_convolution(packed, x)
    peers.check(ours, pruned.double() @ x.double(), f"the kernel at {shape}, {sparsity}", 1e-5 * math.sqrt(columns))
    dense, _ = peers.convolution(weight, x, side)
    times = medians({"ours": ours, **dense})
    return min(times[name] for name in dense) / times["ours"]


def layers(
    ctx: Context, shapes: Sequence[Layer], sparsity: float, rows: int, threshold: float | None = None
) -> Measured:
    """Speed-ups of these layers: their geometric mean over all is what counts; each layer is reported."""
    require_kernels()
    with one_thread(), torch.inference_mode():
        table = [
            [layer_speedup(shape, sparsity, rows, seed, ctx.mutant) for shape in shapes] for seed in ctx.each_seed()
        ]
    means, spread = mean_sd([geometric_mean(row) for row in table])
    columns = [geometric_mean(column) for column in zip(*table, strict=True)]
    figures = {"geometric mean": means, "worst": min(columns), "best": max(columns)}
    figures |= {f"{k} to {n}, {side}x{side}": v for (k, n, side), v in zip(shapes, columns, strict=True)}
    holds = None if threshold is None else means >= threshold
    return Measured(figures, {"geometric mean": spread}, threshold, len(table), holds)


# --------------------------------------------------------------------------- networks


def alive(model: nn.Module, seed: int) -> nn.Module:
    """Batch statistics that keep the activations of random weights alive."""
    source = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_(0, 0.1, generator=source)
            module.running_mean.normal_(0, 0.1, generator=source)  # type: ignore[union-attr]
    return model.eval()


def network_speedups(
    model: nn.Module, x: Tensor, variants: Mapping[str, tuple[LayerChoice, float]], mutant: str | None = None
) -> dict[str, float]:
    """Speed of compiled sparse networks over the fastest dense peer running the dense network, one thread.

    Args:
        variants: name -> (patterns, sparsity).
    Returns:
        for each variant its speed-up; for each peer its speed over the fastest peer.
    Raises:
        AssertionError: a plan whose outputs differ from the model's.
    """
    require_kernels()
    runs: peers.Peers = {}
    for name, (plan, sparsity) in variants.items():
        pruned = prune_by(model, plan.patterns, sparsity)
        compiled = pruned if mutant == "masked_dense" else compile_network(pruned, x, threads=1)
        wanted = pruned(x)
        runs[name] = partial(compiled, x)
        peers.check(runs[name], wanted.double(), f"the plan of {name}")
        if not torch.equal(wanted.argmax(1), compiled(x).argmax(1)):
            raise AssertionError(f"the plan of {name} predicts something else")
    dense, _ = peers.network(model, x)
    times = medians(runs | dense)
    best = min(times[name] for name in dense)
    figures = {name: best / times[name] for name in runs}
    return figures | {f"peer {name}": best / times[name] for name in dense}


def networks(
    ctx: Context,
    make: Callable[[], nn.Module],
    plan: Callable[[nn.Module], LayerChoice],
    sparsities: Mapping[str, float],
    thresholds: Mapping[str, float] | None = None,
    side: int = 224,
) -> Measured:
    """`network_speedups` of a network with random weights over seeds; thresholds by name of variant."""
    tables: list[dict[str, float]] = []
    with one_thread(), torch.no_grad():
        for seed in ctx.each_seed():
            torch.manual_seed(seed)
            model = alive(make(), seed)
            x = torch.randn(1, 3, side, side)
            chosen = plan(model)
            variants = {name: (chosen, s) for name, s in sparsities.items()}
            tables.append(network_speedups(model, x, variants, ctx.mutant))
            ctx.say(f"  seed {seed}: {tables[-1]}")
    figures = {name: mean_sd([table[name] for table in tables])[0] for name in tables[0]}
    spread = {name: mean_sd([table[name] for table in tables])[1] for name in sparsities}
    holds = None if thresholds is None else all(figures[name] >= low for name, low in thresholds.items())
    return Measured(figures, spread, thresholds, len(tables), holds)


def low_precision(
    ctx: Context, make: Callable[[], nn.Module], plan: Callable[[nn.Module], LayerChoice], sparsity: float
) -> Measured:
    """Sparse plans in float32 and with rounding to bfloat16, over the fastest dense peer in bfloat16; one seed."""
    require_kernels()
    with one_thread(), torch.no_grad():
        torch.manual_seed(0)
        model, x = alive(make(), 0), torch.randn(1, 3, 224, 224)
        pruned = prune_by(model, plan(model).patterns, sparsity)
        wanted = pruned(x)
        exact = compile_network(pruned, x, threads=1)
        rounded = compile_network(pruned, x, threads=1, precision="bfloat16")
        peers.check(partial(exact, x), wanted.double(), "the plan")
        peers.check(partial(rounded, x), wanted.double(), "the plan in bfloat16", 5e-2)
        _, half = peers.network(model, x, low=True)
        times = medians({"float32": partial(exact, x), "bfloat16": partial(rounded, x), **half})
    best = min(times[name] for name in half)
    figures = {f"plan in {name}": best / times[name] for name in ("float32", "bfloat16")}
    figures |= {f"peer {name}": best / times[name] for name in half}
    figures["difference of outputs"] = float((rounded(x) - wanted).abs().max() / wanted.abs().max())
    return Measured(figures)


def all_blocks(model: nn.Module, rows: int) -> LayerChoice:
    """Blocks of `rows` output channels in every 1x1 convolution that they divide."""
    found = pointwise(model)
    return LayerChoice({n: Block(rows, 1) if m.out_channels % rows == 0 else Unstructured() for n, m in found.items()})
