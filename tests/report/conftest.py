"""Cards to report on: a small complete one to vary, and a realistic comparison."""

import math

import pytest

from gossamer.report.card import Curve, Latency, Layer, ReportCard, comparison
from gossamer.report.taxonomy import TAXONOMIES

LAYERS = [("stem.weight", [16, 1, 3, 3], 20736), ("block1.weight", [32, 16], 73728), ("head.weight", [10, 64], 1280)]
DENSE_FLOPS = float(sum(flops for *_, flops in LAYERS))


def layers(densities):
    made = []
    for (name, shape, flops), density in zip(LAYERS, densities, strict=True):
        numel = math.prod(shape)
        made.append(Layer(name=name, shape=shape, numel=numel, kept=round(density * numel), flops=flops))
    return made


def make(method="granet", densities=(0.7, 0.04, 0.2), values=(0.951, 0.948, 0.955), **changes):
    """A card without a breach of any rule that looks at one card alone."""
    tensors = layers(densities)
    kept, total = sum(t.kept for t in tensors), sum(t.numel for t in tensors)
    flops = sum(t.flops * t.density for t in tensors)
    sparse = kept < total
    fields = {
        "method": method,
        "role": "method" if sparse else "dense",
        "taxonomy": TAXONOMIES["granet" if sparse else "dense"],
        "model": "digits-mobilenet",
        "data": "digits-shifted",
        "data_licence": "BSD-3-Clause, shipped with scikit-learn",
        "command": f"gossamer train --recipe {method} --seeds 3",
        "versions": {"gossamer": "0.1.0", "torch": "2.13.0"},
        "hardware": "x86_64, 2 cores, AVX-512",
        "steps": 1000,
        "batch_size": 128,
        "optimizer": "SGD(lr=0.1, momentum=0.9, nesterov)",
        "augmentation": "shift, noise",
        "selection": "last",
        "sparsity_target": 0.9 if sparse else None,
        "sparsity_scope": "prunable" if sparse else "",
        "sparsity_prunable": 1 - kept / total,
        "sparsity_weights": 1 - (kept + 32) / (total + 32),
        "sparsity_all": 1 - (kept + 100) / (total + 100),
        "layers": tensors,
        "nnz_by_mask": kept,
        "nnz_by_value": kept,
        "peak_density": 1.0,
        "dense_gradient_steps": 10 if sparse else 0,
        "itop_rate": 1.0,
        "mask_flips": 400 if sparse else 0,
        "t_mask_fixed": 0.9 if sparse else 0.0,
        "has_batchnorm": True,
        "inference_flops": flops,
        "inference_flops_dense": DENSE_FLOPS,
        "training_flops": 3000 * (0.5 * (flops + DENSE_FLOPS) if sparse else DENSE_FLOPS),
        "training_flops_dense": 3000 * DENSE_FLOPS,
        "training_flops_executed": 3000 * DENSE_FLOPS,
        "bytes_by_format": {"dense": 4 * total, "bitmap": 4 * kept + total // 8, "csr": 8 * kept + 4 * 58},
        "latencies": [
            Latency(
                kernel="dense" if not sparse else "sparse rows", hardware="2 cores", milliseconds=0.61 - 0.3 * sparse
            )
        ],
        "seeds": [0, 1, 2],
        "values": list(values),
        "other_metrics": {"ece": [v / 40 for v in values], "nll": [1.1 - v for v in values]},
        "curves": [
            Curve(
                quantity=quantity,
                seed=seed,
                steps=list(range(0, 1001, 100)),
                values=[shape(value, step) for step in range(0, 1001, 100)],
            )
            for quantity, shape in (
                ("test accuracy", lambda v, s: v - (v - 0.1) * math.exp(-s / 180)),
                ("training loss", lambda v, s: (1 - v) * 2 + 2.3 * math.exp(-s / 150)),
            )
            for seed, value in enumerate(values)
        ],
    }
    return ReportCard(**(fields | changes))


def example():
    """Dense, GraNet and a random mask at about 81 %; the one finding is W10."""
    return comparison(
        [
            make("dense", (1.0, 1.0, 1.0), (0.974, 0.971, 0.976)),
            make("granet"),
            make(
                "random",
                (0.6, 0.06, 0.2),
                (0.902, 0.911, 0.907),
                role="random_mask",
                taxonomy=TAXONOMIES["random"],
                mask_flips=0,
                peak_density=0.1,
                itop_rate=0.1,
                dense_gradient_steps=0,
                recipe="name: random\nupdates:\n- set_to:\n    score: random\n    density: 0.1\n",
            ),
        ],
        title="Digits MobileNet: dense against GraNet at 90 % sparsity",
        command="gossamer compare --recipes dense,granet,random --seeds 3 --sparsity 0.9",
    )


@pytest.fixture
def card():
    return make


@pytest.fixture
def compared():
    return example()


@pytest.fixture(scope="module")
def html():
    """The page of `example`."""
    from gossamer.report.page import render

    return render(example())
