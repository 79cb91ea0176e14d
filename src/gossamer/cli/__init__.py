"""The command line: thin commands over the library. `main` is the entry point."""

from gossamer.cli.app import main

__all__ = ["main"]
