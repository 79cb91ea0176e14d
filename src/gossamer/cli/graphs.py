"""`gossamer graphs`: cut the edges of graphs, and train graph networks on what is left."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gossamer.cli.console import print_json, print_table, remarks, say
from gossamer.cli.options import Json
from gossamer.errors import ConfigError, DataError

graphs = typer.Typer(help="Sparser graphs and sparser graph networks.", no_args_is_help=True)

Score = Annotated[str, typer.Option(help="teddy, random, reverse or degree.")]
Report = Annotated[Path | None, typer.Option(help="Page (.html) that shows what was cut, beside random edges.")]


@graphs.command()
def sparsify(
    edges: Annotated[Path, typer.Argument(help="Edge list: CSV, one edge a line, names of two nodes first.")],
    keep: Annotated[float, typer.Option(help="Share of the edges that stays, in (0, 1].")] = 0.36,
    output: Annotated[Path, typer.Option("--output", "-o", help="The rows that stay.")] = Path("sparse.csv"),
    score: Score = "teddy",
    directed: Annotated[bool, typer.Option("--directed", help="Cut rows (a, b) and (b, a) one by one.")] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="Names are 0 .. NODES-1; others are an error.")] = None,
    seed: Annotated[int, typer.Option(help="Of random edges.")] = 0,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Cut the edges of an edge list by degrees, and show what random edges would have done.

    Example: gossamer graphs sparsify edges.csv --keep 0.36 -o sparse.csv --report page.html
    """
    from gossamer.domains.graphs.edge_list import kept_rows, read_edges, write_edges
    from gossamer.domains.graphs.structure import structure

    if output.resolve() == edges.resolve():
        raise DataError(f"{output} is the edge list itself; name another --output")
    table = read_edges(edges, nodes)
    count = len(table.names)
    with remarks():
        kept = kept_rows(table, keep, score=score, directed=directed, seed=seed)
    with warnings.catch_warnings(action="ignore"):  # the table says how many nodes random edges leave alone
        control = kept_rows(table, keep, score="random", directed=directed, seed=seed)
    figures = {
        "whole graph": structure(table.ends, count),
        f"{score} edges": structure(table.ends[:, kept], count),
        "random edges": structure(table.ends[:, control], count),
    }
    write_edges(output, table, kept)
    if report is not None:
        from gossamer.domains.graphs.page import structure_page

        shown = {"whole graph": table.ends, f"{score} edges": table.ends[:, kept]}
        shown["random edges"] = table.ends[:, control]
        structure_page(report, edges.name, shown, figures, count)
    rows = {"read": len(table.rows), "kept": int(kept.sum())}
    if as_json:
        files = {"output": str(output), "report": str(report) if report else None}
        print_json({**files, "rows": rows, "figures": figures})
        return
    _print(figures)
    print(f"{rows['kept']} of {rows['read']} rows: {output}" + (f"   page: {report}" if report else ""))


@graphs.command()
def ticket(
    graph: Annotated[str, typer.Argument(help="cora, citeseer, arxiv, karate or blocks (generated).")] = "blocks",
    network: Annotated[str, typer.Option(help="gcn, gin, sage or gat.")] = "gcn",
    edges: Annotated[float, typer.Option(help="Share of edges that is cut, in [0, 1).")] = 0.64,
    weights: Annotated[float, typer.Option(help="Share of weights that is zero, in [0, 1).")] = 0.88,
    distill: Annotated[float, typer.Option(help="Weight of the distillation from the dense network.")] = 10.0,
    hidden: Annotated[int, typer.Option(min=1, help="Width; the authors take 512.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs; the authors take 200.")] = 100,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    data: Annotated[Path | None, typer.Option(help="Folder that holds planetoid/ or ogbn_arxiv/.")] = None,
    as_json: Json = False,
) -> None:
    """Train dense, then sparse with TEDDY's edges and with random ones, over several seeds.

    Example: gossamer graphs ticket cora --hidden 512 --epochs 200 --seeds 4
    """
    from gossamer.cli.options import use_data
    from gossamer.domains.graphs import Settings, backbone, fit, teddy
    from gossamer.domains.graphs.named import load
    from gossamer.maths.statistics import mean_sd

    for name, share in (("--edges", edges), ("--weights", weights)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} must lie in [0, 1), got {share:g}: the share that is cut")
    use_data(data)
    found: dict[str, list[float]] = {"dense": [], "teddy": [], "random edges": [], "without distillation": []}
    for seed in range(seeds):
        given = load(graph, seed).to(device)

        def make(given: Any = given) -> Any:
            return backbone(network, given.num_features, given.num_classes, hidden=hidden)

        settings = Settings(epochs=epochs)
        dense = fit(make, given, settings=settings, seed=seed)
        found["dense"].append(100 * dense.test)
        arms = {"teddy": ("teddy", distill), "random edges": ("random", distill), "without distillation": ("teddy", 0)}
        for name, (score, weight) in arms.items():
            made = teddy(
                make, given, edges, weights, distill=weight, score=score, settings=settings, dense=dense, seed=seed
            )
            found[name].append(100 * made.sparse.test)
        say(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.1f}" for name, values in found.items()))
    table = {name: mean_sd(values) for name, values in found.items()}
    spread = {name: sd if sd == sd else None for name, (_, sd) in table.items()}  # none of a single seed
    if as_json:
        print_json({name: {"mean": m, "sd": spread[name], "seeds": seeds} for name, (m, _) in table.items()})
    else:
        print_table(("test accuracy, %", "mean", "sd"), [(name, m, spread[name]) for name, (m, _) in table.items()])


def _print(figures: dict[str, dict[str, float]]) -> None:
    names = next(iter(figures.values()))
    print_table(("figure", *figures), [(name, *(row[name] for row in figures.values())) for name in names])
