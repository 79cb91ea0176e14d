"""The application: commands by module, one place where errors become messages and exit codes.

0 done, 1 something asserted does not hold, 2 bad usage, 3 could not run, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from gossamer.cli import demo
from gossamer.errors import GossamerError
from gossamer.runs.signals import Interrupted

app = typer.Typer(
    name="gossamer",
    help="Sparsity for PyTorch: decide what may be zero, train it that way, and make the zeros pay.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("gossamer"))
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of all commands."""


def main() -> None:
    """Run the command line. Errors that users can mend are one message on stderr and exit code 2."""
    try:
        app()
    except GossamerError as error:
        typer.echo(f"gossamer: {error}", err=True)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as stop:
        typer.echo(f"gossamer: interrupted{f': {stop}' if str(stop) else ''}; run again with --resume", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
