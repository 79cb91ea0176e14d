"""The application: one table of commands, one place where errors become messages and exit codes.

0 done, 1 something asserted does not hold, 2 bad usage, 3 it could not run (data, an extra or a sound file is missing,
a training failed, a folder cannot be written), 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from gossamer.cli import (
    branches,
    claims,
    coding,
    demo,
    doctor,
    dynamics,
    engine,
    experts,
    graphs,
    inspect,
    isoflop,
    molecules,
    probe,
    prune,
    rearrange,
    recipes,
    reprogram,
    results,
    sae,
    search,
    superres,
    sweep,
    train,
    transport,
    unlearn,
)
from gossamer.cli.console import say
from gossamer.errors import ConfigError, GossamerError, MaskError, ShapeError
from gossamer.runs.signals import Interrupted

BAD_USAGE, COULD_NOT_RUN, INTERRUPTED = 2, 3, 130

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "train": train.train,
    "prune": prune.prune,
    "sweep": sweep.sweep,
    "compare": results.compare,
    "report": results.report,
    "lint": results.lint,
    "reproduce": claims.reproduce,
    "papers": claims.papers,
    "inspect": inspect.inspect,
    "doctor": doctor.doctor,
    "probe": probe.probe,
    "compile": engine.compile,
    "bench": engine.bench,
    "export": engine.export,
    "shrink": engine.shrink,
    "rearrange": rearrange.rearrange,
    "iso-flop": isoflop.iso_flop,
    "unlearn": unlearn.unlearn,
    "reprogram": reprogram.reprogram,
}
# Groups of commands. A room adds itself here: `gossamer <room> <verb>`.
GROUPS = {
    "recipes": recipes.recipes,
    "config": recipes.config,
    "sae": sae.sae,
    "search": search.search,
    "coding": coding.coding,
    "branches": branches.branches,
    "dynamics": dynamics.dynamics,
    "graphs": graphs.graphs,
    "superres": superres.superres,
    "transport": transport.transport,
    "molecules": molecules.molecules,
    "experts": experts.experts,
}

app = typer.Typer(
    name="gossamer",
    help="Sparsity for PyTorch: decide what may be zero, train it that way, and make the zeros pay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _show_version(wanted: bool) -> None:
    if wanted:
        from gossamer import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of all commands."""


def main() -> NoReturn:
    """Run the command line. What users can mend is one message on stderr and an exit code, never a traceback."""
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a reader that went away can still be handled
    except Interrupted as stop:
        say(f"gossamer: {stop}; what was finished or saved is kept")
        sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave_quietly()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer's own way to end after one
            _leave_quietly()
        raise
    except (ConfigError, ShapeError, MaskError) as error:
        _fail(error, BAD_USAGE)
    except (GossamerError, OSError) as error:
        _fail(error, COULD_NOT_RUN)
    sys.exit(0)


def _fail(error: Exception, code: int) -> NoReturn:
    say(f"gossamer: {error}")
    sys.exit(code)


def _leave_quietly() -> NoReturn:
    """The reader of our output went away (`| head`): nothing is wrong, and nobody is there to be told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)
