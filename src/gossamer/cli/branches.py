"""`gossamer branches`: record and read branch traces, run predictors, find sparse correlations."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from gossamer.cli.console import print_json, print_table, say
from gossamer.cli.options import Json
from gossamer.errors import ConfigError

if TYPE_CHECKING:
    from gossamer.domains.branch_prediction import Predictor, Result, Trace

branches = typer.Typer(help="Branch prediction, with sparse models of long correlations.", no_args_is_help=True)

Traces = Annotated[list[Path], typer.Argument(help="Traces: text, .npz, .cbp4, .bt9 or .champsim, also compressed.")]
Kind = Annotated[str | None, typer.Option(help="Kind of the traces, where the name does not tell.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="PREDICTOR.SETTING=VALUE", help="May be repeated.")
]
Split = Annotated[float | None, typer.Option(help="Count misses behind this share of the trace alone.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.")]


@branches.command()
def record(
    sources: Annotated[list[Path], typer.Argument(help="C files that make one program.")],
    output: Output = Path("trace.bz2"),
    argument: Annotated[list[str] | None, typer.Option("--arg", "-a", help="Argument of the program; repeat.")] = None,
    stdin: Annotated[Path | None, typer.Option(help="File that the program reads as its input.")] = None,
    flags: Annotated[str, typer.Option(help="For the compiler.")] = "-O1",
    compiler: Annotated[str, typer.Option(help="gcc, or another with -fsanitize-coverage=trace-pc.")] = "gcc",
    limit: Annotated[int, typer.Option(min=1, help="Basic blocks to record at most.")] = 50_000_000,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which the program is stopped.")] = 300.0,
    as_json: Json = False,
) -> None:
    """Compile a C program, run it, and keep the branches that it executes.

    Example: gossamer branches record queens.c --arg 8 --flags "-O2 -lm" --output queens.bz2
    """
    from gossamer.domains.branch_prediction import write
    from gossamer.domains.branch_prediction.record import record as run_program

    data = b"" if stdin is None else stdin.read_bytes()
    options: dict[str, Any] = {"flags": shlex.split(flags), "compiler": compiler, "limit": limit, "timeout": timeout}
    trace = run_program(sources, argument or [], stdin=data, **options)
    write(trace, output)
    found = {"output": str(output), "branches": len(trace), "static": len(trace.static_branches()[0])}
    if as_json:
        print_json(found)
    else:
        print(f"{found['branches']} branches of {found['static']} addresses: {output}")


@branches.command()
def run(
    traces: Traces,
    predictor: Annotated[
        list[str] | None, typer.Option("--predictor", "-p", help="Name; repeat. Default: all.")
    ] = None,
    settings: Settings = None,
    side: Annotated[
        Path | None, typer.Option(help="Side table, from `sparse`; put in front of each predictor.")
    ] = None,
    block: Annotated[bool, typer.Option(help="Branches of the side table allocate nothing in TAGE.")] = False,
    split: Split = None,
    top: Annotated[int, typer.Option(min=0, help="Show so many of the worst branches.")] = 0,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Run predictors over traces and compare their misses and storage.

    MPKI counts instructions and is shown where the trace knows them; text traces do not.

    Example: gossamer branches run int_1.bz2 -p gshare -p tage --set tage.tables=12 --split 0.5 --top 5
    """
    from gossamer.domains.branch_prediction import PREDICTORS, Hybrid, SideTable, simulate

    chosen = _predictors(predictor or list(PREDICTORS), settings)
    table = None if side is None else SideTable.load(side)
    rows = []
    for trace in _read(traces, kind):
        for name, base in chosen.items():
            result = simulate(trace, base, split)
            rows.append(_row(trace, name, result, top))
            if table is not None:
                rows.append(_row(trace, f"{name} + side", simulate(trace, Hybrid(base, table, block), split), top))
            say(f"{trace.name}, {name}: {result.misses} misses")
    if as_json:
        print_json(rows)
        return
    shown = ("trace", "predictor", "KB", "branches", "misses", "miss_rate", "per 1000 branches", "MPKI")
    print_table(shown, [[row[heading] for heading in shown] for row in rows])
    for row in rows if top else []:
        lines = [(b["pc"], b["executed"], b["taken"], b["misses"], b["accuracy"]) for b in row["worst"]]
        print_table(("branch", "executed", "taken", "misses", "accuracy"), lines, f"{row['trace']}, {row['predictor']}")


@branches.command()
def sparse(
    trace: Annotated[Path, typer.Argument(help="Trace.")],
    predictor: Annotated[str, typer.Option("--predictor", "-p", help="Whose misses are to be spared.")] = "tage",
    settings: Settings = None,
    output: Output = Path("side.json"),
    budget: Annotated[float, typer.Option(help="Bytes of the side table.")] = 2048,
    history: Annotated[int, typer.Option(help="Last branches that a model may see.")] = 512,
    local: Annotated[int, typer.Option(help="Last own outcomes that a model may see.")] = 32,
    max_nonzero: Annotated[int, typer.Option(help="Weights of a model at most.")] = 50,
    terms: Annotated[int, typer.Option(help="Weights of an entry of the table at most.")] = 24,
    weight_bits: Annotated[int, typer.Option(help="Bits of a weight.")] = 5,
    method: Annotated[str, typer.Option(help="l1 or greedy.")] = "l1",
    candidates: Annotated[int, typer.Option(help="Branches to try, those with most misses first.")] = 24,
    split: Annotated[float, typer.Option(help="Share of the trace that is profiled; the rest measures.")] = 0.5,
    block: Annotated[bool, typer.Option(help="Branches of the side table allocate nothing in TAGE.")] = False,
    report: Annotated[Path | None, typer.Option(help="Page (.html) with the models.")] = None,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Find branches that depend on few positions of a long history, and encode them in a side table.

    Example: gossamer branches sparse int_1.bz2 --predictor tage --output side.json --report sparse.html
    """
    from gossamer.domains.branch_prediction import (
        Hybrid,
        Layout,
        Search,
        Window,
        encode,
        find_sparse,
        play_float,
        simulate,
    )
    from gossamer.domains.branch_prediction.pictures import write_page

    window = Window(history, local)
    search = Search(window, max_nonzero, method, split, candidates)
    layout = Layout(window, weight_bits=weight_bits, max_terms=terms)
    (base,) = _predictors([predictor], settings).values()
    (data,) = _read([trace], kind)
    found = find_sparse(data, base, search, say=say)
    table = encode(found, budget, layout)
    table.side.save(output)
    plain = simulate(data, base, split)
    results = [plain, simulate(data, Hybrid(base, table.side, block), split), play_float(found, plain)]
    if report is not None:
        command = f"gossamer branches sparse {trace} --predictor {predictor} --budget {budget:g} --output {output}"
        write_page(report, found, table, results, command)
    if as_json:
        models = [_finding(found, f) for f in found.findings]
        rows = [_row(data, result.predictor, result, 0) for result in results]
        print_json({"output": str(output), "bits": table.side.bits, "results": rows, "branches": models})
        return
    headings = ("predictor", "KB", "misses", "miss_rate", "change (%)")
    changes = [100 * (r.misses / max(plain.misses, 1) - 1) for r in results]
    rates = [(r.predictor, r.bits / 8192, r.misses, r.miss_rate, c) for r, c in zip(results, changes, strict=True)]
    print_table(headings, rates, f"unseen part of {data.name}")
    print(f"table: {output}, {len(table.side.entries)} entries, {table.side.bits} bits")


@branches.command()
def sweep(
    traces: Traces,
    predictor: Annotated[
        list[str] | None, typer.Option("--predictor", "-p", help="Kind; repeat. tage+sparse: with a side table.")
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Storage in KB; up to 64 bits of registers may go beyond.")
    ] = "1,2,4,8,16,32,64",
    split: Annotated[float, typer.Option(help="Count misses behind this share of the trace alone.")] = 0.5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Picture (.png).")] = None,
    kind: Kind = None,
    as_json: Json = False,
) -> None:
    """Compare kinds of predictors at equal storage.

    Example: gossamer branches sweep int_1.bz2 mm_1.bz2 -p gshare -p tage --budgets 2,8,32 --output sweep.png
    """
    from gossamer.domains.branch_prediction.budgets import FAMILIES
    from gossamer.domains.branch_prediction.budgets import sweep as run_sweep
    from gossamer.domains.branch_prediction.pictures import sweep_picture

    if output is not None and output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: the picture is a .png")
    kinds = predictor or [name for name in FAMILIES if name != "bimodal"]
    points = run_sweep(_read(traces, kind), kinds, _budgets(budgets), split, say)
    if output is not None:
        sweep_picture(points, output)
    if as_json:
        print_json([point.as_json() for point in points])
        return
    rows = [(p.trace, p.kind, p.budget / 8192, p.bits / 8192, p.misses, p.miss_rate, p.mpki) for p in points]
    print_table(("trace", "predictor", "budget (KB)", "used (KB)", "misses", "miss_rate", "MPKI"), rows)


def _read(paths: Sequence[Path], kind: str | None) -> list[Trace]:
    from gossamer.domains.branch_prediction import read

    return [read(path, kind) for path in paths]


def _predictors(names: Sequence[str], settings: Sequence[str] | None) -> dict[str, Predictor]:
    """The named predictors with their settings changed; a setting of another one is an error."""
    from gossamer.domains.branch_prediction import build

    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings or ():
        place, equals, value = setting.partition("=")
        name, dot, field = place.rpartition(".")
        if not (equals and dot and field):
            raise ConfigError(f"--set needs PREDICTOR.SETTING=VALUE, got {setting!r}")
        if name not in options:
            raise ConfigError(f"--set {setting}: {name!r} is not among the predictors {', '.join(options)}")
        options[name][field] = _value(value)
    return {name: build(name, **chosen) for name, chosen in options.items()}


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set: cannot read the value {text!r}") from error
    return tuple(value) if isinstance(value, list) else value


def _budgets(text: str) -> list[int]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or not all(0 < size < 1 << 20 for size in sizes):
        raise ConfigError(f"--budgets needs sizes in KB, joined by commas, got {text!r}")
    return [round(8192 * size) for size in sizes]


def _row(trace: Trace, name: str, result: Result, top: int) -> dict[str, Any]:
    worst = [
        {"pc": f"{b.pc:#x}", "executed": b.executed, "taken": b.taken, "misses": b.misses, "accuracy": b.accuracy}
        for b in (result.by_branch()[:top] if top else [])
    ]
    return {
        "trace": trace.name,
        "predictor": name,
        "bits": result.bits,
        "KB": result.bits / 8192,
        "branches": result.branches,
        "misses": result.misses,
        "miss_rate": result.miss_rate,
        "per 1000 branches": result.misses_per_kilo,
        "MPKI": result.mpki,
        "worst": worst,
    }


def _finding(report: Any, finding: Any) -> dict[str, Any]:
    terms = [{"position": word, "weight": weight, "branch": who} for word, weight, who in report.terms(finding)]
    return {
        "pc": f"{finding.pc:#x}",
        "executed": finding.executed,
        "misses": finding.misses,
        "baseline": finding.baseline,
        "accuracy": finding.accuracy,
        "sparse": finding.sparse,
        "reason": finding.reason,
        "terms": terms,
    }
