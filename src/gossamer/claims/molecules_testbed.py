"""Water with atoms moved at random, in def2-svp: data and trainings of the Hamiltonian claims, as specified."""

from __future__ import annotations

import dataclasses
import time
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch

from gossamer.claims.cells import cell
from gossamer.claims.testbeds import one_thread
from gossamer.domains.molecules.basis import rotation_of_orbitals
from gossamer.domains.molecules.data import Labelled, geometries, make
from gossamer.domains.molecules.evaluation import evaluate
from gossamer.domains.molecules.network import Shape, SPHNet
from gossamer.domains.molecules.paths import PathGate
from gossamer.domains.molecules.product import PathProduct
from gossamer.domains.molecules.scf import Molecule, Sample
from gossamer.domains.molecules.schedule import ThreePhase
from gossamer.domains.molecules.training import Settings, train

BASIS, TRAINING, TEST, STEPS = "def2-svp", 250, 50, 250  # the shorter of the specification's two trainings
SHAPE = Shape(lmax=4, channels=8, sparsity=0.7)  # 65 paths, of which 19 are kept

ARMS: dict[str, Shape] = {
    "dense": dataclasses.replace(SHAPE, sparsity=0.0),
    "adaptive": SHAPE,
    "adaptive, no random phase": SHAPE,
    "saliency": dataclasses.replace(SHAPE, choice="saliency"),
    "random": dataclasses.replace(SHAPE, choice="random"),
    "low order": dataclasses.replace(SHAPE, choice="low_order"),
}


@cache
def water() -> Labelled:
    """The 300 labelled molecules; made once, then read from the cache of cells."""
    molecules = geometries("water", TRAINING + TEST)
    names = ("fock", "guess", "overlap", "energies")

    def compute() -> dict[str, Any]:
        with one_thread():
            samples = make(molecules, BASIS).samples
        return {"samples": [{n: getattr(s, n).tolist() for n in names} | {"cycles": s.cycles} for s in samples]}

    made = cell("gossamer.domains.molecules.data", {"what": "water", "count": len(molecules)}, compute)["samples"]
    rows = zip(molecules, made, strict=True)
    return Labelled(
        BASIS, tuple(Sample(m, **{n: np.array(row[n]) for n in names}, cycles=row["cycles"]) for m, row in rows)
    )


def network(shape: Shape, seed: int) -> SPHNet:
    """A network of random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SPHNet(water().layout, dataclasses.replace(shape, seed=seed))


def trained(arm: str, seed: int, fault: str | None = None) -> dict[str, Any]:
    """Train one arm and measure it on the test molecules, frozen.

    Args:
        fault: "untrained", "shuffled_labels", "random_paths", "no_random_phase", or None.
    """
    settings = {"what": "trained", "arm": arm, "seed": seed, "fault": fault}
    return cell(__name__, settings, lambda: _trained(arm, seed, fault))


def _trained(arm: str, seed: int, fault: str | None) -> dict[str, Any]:
    shape, data = ARMS[arm], water()
    if fault == "random_paths":
        shape = dataclasses.replace(shape, choice="random")
    skip = arm.endswith("no random phase") or fault == "no_random_phase"
    schedule = ThreePhase(0.0, 1 / 3) if skip else ThreePhase()
    learn, test = data.split(TRAINING)
    if fault == "shuffled_labels":
        others = [*learn.samples[1:], learn.samples[0]]
        moved = zip(learn.samples, others, strict=True)
        learn = Labelled(BASIS, tuple(dataclasses.replace(s, molecule=o.molecule) for s, o in moved))
    model = network(shape, seed)
    with one_thread():
        began = time.process_time()
        if fault == "untrained":
            schedule.step(model, STEPS, STEPS)
        else:
            train(model, learn, Settings(steps=STEPS, seed=seed, schedule=schedule))
        spent = time.process_time() - began
        small = model.freeze() if shape.sparsity else model
        figures = evaluate(small, test, fields=6)
    gates = [m for m in model.modules() if isinstance(m, PathGate)]
    drawn = min(float((gate.drawn & (gate.scores != 1)).double().mean()) for gate in gates)
    order = sum(gate.mean_order() for gate in gates) / len(gates)
    return {**figures, "order": order, "tried": drawn, "kept": sum(g.keep for g in gates), "cpu_s": spent}


def guess_error() -> dict[str, float]:
    """Errors of the initial guess alone, on the test molecules."""
    return evaluate(None, water().split(TRAINING)[1])


def stages(seed: int, fault: str | None = None) -> dict[str, SPHNet]:
    """Networks in every state of the gates: dense, random, adaptive, frozen; not trained, scores spread.

    Args:
        fault: "coefficients_dropped" freezes the paths without what the gate multiplies them with, or None.
    """
    model = network(SHAPE, seed)
    found = {"dense": network(ARMS["dense"], seed)}
    for gate in (m for m in model.modules() if isinstance(m, PathGate)):
        gate.scores.data += 0.1 * torch.randn(len(gate.orders), generator=torch.Generator().manual_seed(seed))
    for phase in ("random", "adaptive"):
        for gate in (m for m in model.modules() if isinstance(m, PathGate)):
            gate.advance(phase)
        found[phase] = network(SHAPE, seed)
        found[phase].load_state_dict(model.state_dict())
    found["frozen"] = model.freeze()
    if fault == "coefficients_dropped":
        for product in (m for m in found["frozen"].layers.modules() if isinstance(m, PathProduct)):
            product.coefficients.fill_(1.0)
    return found


def law_error(model: SPHNet, seed: int, fault: str | None = None) -> float:
    """Largest |H(R x) - D H(x) D'| of one molecule and one rotation, in hartree; fault: "mirrored_axis", or None."""
    from scipy.spatial.transform import Rotation

    molecule = water().samples[seed].molecule
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    turned = Molecule(molecule.numbers, molecule.positions @ turn.T)
    shown = [molecule, turned]
    if fault == "mirrored_axis":  # the harmonics are evaluated in another frame than the orbitals'
        shown = [Molecule(m.numbers, m.positions * [-1.0, 1.0, 1.0]) for m in shown]
    first, second = model.predict(shown)
    orbitals = rotation_of_orbitals(BASIS, molecule.numbers, turn)
    return float(np.abs(orbitals @ first @ orbitals.T - second).max())


def times(rounds: int = 5, sparsity: float = 0.7) -> dict[str, float]:
    """CPU time of the frozen sparse network over that of the dense one, medians of interleaved rounds, one thread."""
    from gossamer.domains.molecules.graph import graph

    shape = Shape(lmax=4, channels=16)
    dense = network(dataclasses.replace(shape, sparsity=0.0), 0)
    sparse = network(dataclasses.replace(shape, sparsity=sparsity), 0)
    ThreePhase().step(sparse, 1, 4)
    small = {"dense": dense, "sparse": sparse.freeze() if sparsity else sparse}
    batch = graph([s.molecule for s in water().samples[:64]], water().layout)
    x = torch.randn(384, 16, 25)
    spent: dict[tuple[str, str], list[float]] = {}
    with one_thread():
        for turn in range(rounds + 1):  # the first one warms up
            for name, model in small.items():
                for what, work in _work(model, batch, x).items():
                    began = time.process_time()
                    work()
                    if turn:
                        spent.setdefault((what, name), []).append(time.process_time() - began)
    return {w: median(spent[w, "sparse"]) / median(spent[w, "dense"]) for w in ("inference", "training", "product")}


def _work(model: SPHNet, batch: Any, x: torch.Tensor) -> dict[str, Any]:
    layer: Any = model.layers[0]
    product = layer.between.product
    weights = torch.randn(len(x), len(product.paths), x.shape[1])

    def learn() -> None:
        found = model(batch)
        (found.diagonal.abs().sum() + found.pairs.abs().sum()).backward()

    return {
        "inference": torch.no_grad()(lambda: model(batch)),
        "training": learn,
        "product": torch.no_grad()(lambda: product(x, x, weights)),
    }
