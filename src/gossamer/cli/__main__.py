"""`python -m gossamer.cli`."""

from gossamer.cli.app import main

main()
