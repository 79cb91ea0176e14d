"""`gossamer molecules`: label molecules, train sparse Hamiltonian networks, predict and draw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json
from gossamer.errors import ConfigError

if TYPE_CHECKING:
    from gossamer.domains.molecules import Labelled

molecules = typer.Typer(help="Hamiltonians of molecules with sparse networks.", no_args_is_help=True)

Model = Annotated[Path, typer.Option("--model", "-m", help="Network that `molecules train` wrote.")]
Basis = Annotated[str, typer.Option(help="sto-3g, 6-31g, def2-svp or def2-tzvp.")]
Limit = Annotated[int | None, typer.Option(min=2, help="Read only the first so many molecules of a .db.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@molecules.command()
def make(
    source: Annotated[str, typer.Argument(help="water, ammonia, ..., an .xyz or .sdf file, or gdb1k.")],
    output: Output = Path("molecules.npz"),
    basis: Basis = "sto-3g",
    count: Annotated[int, typer.Option(min=1, help="Copies of a known molecule, or molecules of a file.")] = 100,
    noise: Annotated[float, typer.Option(min=0, help="Standard deviation of every coordinate, angstrom.")] = 0.06,
    seed: Annotated[int, typer.Option(help="Of rotations and noise.")] = 0,
    max_cycle: Annotated[int, typer.Option(min=1, help="Iterations after which a field is given up.")] = 50,
    as_json: Json = False,
) -> None:
    """Label molecules by Hartree-Fock; what cannot be labelled is left out and named, with the reason.

    Left out are open shells, elements outside the basis, atoms that coincide, and fields that do not converge.

    Example: gossamer molecules make water --count 300 --basis def2-svp --output water.npz
    """
    from gossamer.data import find
    from gossamer.domains import molecules as room

    path = find("molecules", "gdb1k.sdf") / "gdb1k.sdf" if source == "gdb1k" else Path(source)
    if path.suffix.lower() == ".sdf":
        found = room.read_sdf(path, count, skip=say)
    elif path.suffix.lower() == ".xyz":
        found = room.read_xyz(path, skip=say)[:count]
    elif path.suffix:
        raise ConfigError(f"{source}: a file must end in .xyz or .sdf")
    else:
        found = room.geometries(source, count, noise, seed)
    data = room.make(found, basis, max_cycle=max_cycle, skip=True, say=say)
    room.save(output, data)
    facts = {"output": str(output), "molecules": len(data.samples), "asked": len(found), "basis": basis}
    print_json(facts) if as_json else print_table(("", "value"), facts.items())


@molecules.command()
def train(
    data: Annotated[Path, typer.Argument(help="Set that `molecules make` wrote, or QH9's .db.")],
    output: Output = Path("network.safetensors"),
    training: Annotated[float, typer.Option(min=0, max=1, help="Share of molecules to train on.")] = 0.75,
    sparsity: Annotated[float, typer.Option(help="Share of tensor-product paths left out.")] = 0.7,
    pair_sparsity: Annotated[float, typer.Option(help="Share of atom pairs left out.")] = 0.0,
    choice: Annotated[str, typer.Option(help="Of paths: adaptive, saliency, random or low_order.")] = "adaptive",
    lmax: Annotated[int, typer.Option(help="Degrees of the features; 4 for def2-svp, 6 for def2-tzvp.")] = 4,
    channels: Annotated[int, typer.Option(help="Of every degree; the paper takes 128.")] = 8,
    layers: Annotated[int, typer.Option(help="Of pair construction; the paper takes 2.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimiser steps; the paper takes 200000.")] = 300,
    batch: Annotated[int, typer.Option(help="Molecules in a batch.")] = 16,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 5e-3,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Of weights, paths and batches.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps between saves of the training's state.")] = 200,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network through the three phases of its gates, and measure the frozen one on the rest.

    An interrupted training goes on to the same bits with --resume and the same options.

    Example: gossamer molecules train water.npz --steps 700 --output water.safetensors
    """
    import torch

    from gossamer.domains import molecules as room

    state = output.with_name(f"{output.stem}.state.json")
    if state.exists() and not resume:
        raise ConfigError(f"{state} is of an interrupted training: go on with --resume, or remove it")
    held = _read(data, limit)
    learn, test = held.split(round(training * len(held.samples)))
    torch.manual_seed(seed)
    shape = room.Shape(lmax, channels, layers, sparsity, pair_sparsity, choice, seed=seed)
    model = room.SPHNet(held.layout, shape)
    say(f"{len(learn.samples)} molecules to train on, {len(test.samples)} to test on, {steps} steps")
    room.train(model, learn, room.Settings(steps, batch, lr, seed), say, state, every)
    room.save_model(output, model)
    small = model.freeze()
    figures = {"network": room.evaluate(small, test), "minao": room.evaluate(None, test)}
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in (("gated", model), ("frozen", small))}
    if as_json:
        print_json({"output": str(output), **figures, "parameters": sizes})
    else:
        _table(figures)
        print(f"network: {output}   parameters: {sizes['gated']}, frozen {sizes['frozen']}")


def _read(data: Path, limit: int | None) -> Labelled:
    """Labelled molecules of an .npz, or of a database, to whose matrices the guess is added."""
    from gossamer.domains import molecules as room
    from gossamer.domains.molecules.data import with_guess

    return with_guess(room.read_qh9(data, limit)) if data.suffix.lower() == ".db" else room.load(data)


def _table(figures: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(figures.values())))
    print_table(("", *names), [(who, *(f"{row[n]:.6g}" for n in names)) for who, row in figures.items()])


@molecules.command()
def predict(
    geometry: Annotated[Path, typer.Argument(help="An .xyz file.")],
    model: Model,
    unit: Annotated[str, typer.Option(help="angstrom or bohr.")] = "angstrom",
    output: Annotated[Path | None, typer.Option("--output", "-o", help=".npz of Fock matrix and density.")] = None,
    as_json: Json = False,
) -> None:
    """Orbital energies of a molecule from the frozen network, without running a field.

    Example: gossamer molecules predict water.xyz --model water.safetensors --output guess.npz
    """
    import numpy as np

    from gossamer.domains import molecules as room
    from gossamer.runs.files import atomic

    network = room.load_model(model).freeze()
    molecule = room.read_xyz(geometry, unit)[0]
    guess, overlap = room.initial(molecule, network.layout.basis)
    fock = guess + network.predict([molecule])[0]
    energies, occupied = room.solve(fock, overlap)[0], molecule.occupied()
    if output is not None:
        with atomic(output) as temporary, temporary.open("wb") as stream:
            np.savez(stream, fock=fock, density=room.density(fock, overlap, occupied), overlap=overlap)
    if as_json:
        print_json({"energies": energies.tolist(), "occupied": occupied, "output": str(output) if output else None})
    else:
        rows = [(n, f"{e:.6f}", "yes" if n < occupied else "") for n, e in enumerate(energies)]
        print_table(("orbital", "energy, hartree", "occupied"), rows)


@molecules.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Set that `molecules make` wrote, or QH9's .db.")],
    model: Model,
    limit: Limit = None,
    fields: Annotated[int, typer.Option(min=0, help="Count the field's iterations for so many molecules.")] = 0,
    picture: Annotated[Path | None, typer.Option(help=".png of the matrices and energies of the first one.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the frozen network against Hartree-Fock and against the initial guess.

    Errors are in microhartree. With --fields, `iterations` are those of the field when it starts from a row's matrix,
    `iterations_minao` those from PySCF's own start.

    Example: gossamer molecules evaluate test.npz --model water.safetensors --fields 10 --picture water.png
    """
    from gossamer.domains import molecules as room
    from gossamer.domains.molecules.pictures import draw

    held, network = _read(data, limit), room.load_model(model).freeze()
    figures = {"network": room.evaluate(network, held, fields), "minao": room.evaluate(None, held, fields)}
    if picture is not None:
        draw(network, held, picture)
    if as_json:
        print_json({**figures, "picture": str(picture) if picture else None})
    else:
        _table(figures)
