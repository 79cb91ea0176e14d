"""Probing a transformer by cuts: which layers, neurons and heads of which component a task needs."""

from .calibration import Calibration, calibrate
from .components import PRESETS, Component, find_layers
from .cuts import Cut, cut_depth, cut_heads, cut_width, drop_layers
from .partition import PartitionedFFN, partition, to_moe, tune
from .sensitivity import Sensitivity, sensitivity

__all__ = [
    "PRESETS",
    "Calibration",
    "Component",
    "Cut",
    "PartitionedFFN",
    "Sensitivity",
    "calibrate",
    "cut_depth",
    "cut_heads",
    "cut_width",
    "drop_layers",
    "find_layers",
    "partition",
    "sensitivity",
    "to_moe",
    "tune",
]
