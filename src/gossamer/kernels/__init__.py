"""Operators with a native fast path, each beside its plain-torch reference."""

from gossamer.kernels.native import info, set_threads, threads

__all__ = ["info", "set_threads", "threads"]
