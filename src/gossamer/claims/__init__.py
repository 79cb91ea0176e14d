"""Claims: what every published system must show here, their runner, and the record of the last run."""

from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.claims.run import exit_code, listing, reproduce
from gossamer.claims.store import fingerprint, is_stale, read_result, results_folder, write_result

__all__ = [
    "Claim",
    "Context",
    "Measured",
    "Paper",
    "exit_code",
    "fingerprint",
    "is_stale",
    "listing",
    "read_result",
    "reproduce",
    "results_folder",
    "write_result",
]
