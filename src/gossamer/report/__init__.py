"""Reports: the card of a run, its taxonomy, lint of comparisons, tables, pages and the catalogue of papers."""

from gossamer.report.card import Comparison, Curve, Latency, Layer, ReportCard, comparison
from gossamer.report.compare import FORMATS, table
from gossamer.report.connectivity import Connectivity, connectivity
from gossamer.report.lint import RULES, Finding, lint
from gossamer.report.taxonomy import TAXONOMIES, Observed, Taxonomy, classify, dense_state, observe, verify

__all__ = [
    "FORMATS",
    "RULES",
    "TAXONOMIES",
    "Comparison",
    "Connectivity",
    "Curve",
    "Finding",
    "Latency",
    "Layer",
    "Observed",
    "ReportCard",
    "Taxonomy",
    "classify",
    "comparison",
    "connectivity",
    "dense_state",
    "lint",
    "observe",
    "table",
    "verify",
]
