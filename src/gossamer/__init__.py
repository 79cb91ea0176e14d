"""Gossamer: decide what may be zero, train it that way, and make the zeros pay."""

__version__ = "0.1.0"
