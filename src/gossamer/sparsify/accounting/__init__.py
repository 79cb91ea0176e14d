"""The one place that counts: parameters and zeros, FLOPs of inference and training, bytes, churn of masks."""

from .churn import Churn, churn, gradient_statistics, sad
from .flops import Flops, LayerFlops, flops
from .memory import FORMATS, Memory, memory, optimizer_bytes
from .parameters import SCOPES, Count, Disagreement, LayerCount, disagreements, layer_table, sparsity, sparsity_triple
from .training import TrainingCost, rigl_step_flops, training_flops

__all__ = [
    "FORMATS",
    "SCOPES",
    "Churn",
    "Count",
    "Disagreement",
    "Flops",
    "LayerCount",
    "LayerFlops",
    "Memory",
    "TrainingCost",
    "churn",
    "disagreements",
    "flops",
    "gradient_statistics",
    "layer_table",
    "memory",
    "optimizer_bytes",
    "rigl_step_flops",
    "sad",
    "sparsity",
    "sparsity_triple",
    "training_flops",
]
