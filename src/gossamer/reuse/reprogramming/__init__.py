"""Reprogramming a frozen classifier: a border of learned pixels and a map of labels, or a new linear head."""

from .adapt import Reprogrammed, features_of, few_shot, freeze, linear_probe, reprogram
from .mapping import LabelMapping, greedy, hungarian
from .page import write_page
from .prompt import VisualPrompt
from .transfer import Row, Target, transfer_report

__all__ = [
    "LabelMapping",
    "Reprogrammed",
    "Row",
    "Target",
    "VisualPrompt",
    "features_of",
    "few_shot",
    "freeze",
    "greedy",
    "hungarian",
    "linear_probe",
    "reprogram",
    "transfer_report",
    "write_page",
]
