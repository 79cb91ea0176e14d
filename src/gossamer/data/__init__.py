"""Material: data sets by name, batches that are a function of (seed, step)."""

from gossamer.data.catalogue import DATASETS, load
from gossamer.data.dataset import Batches, Dataset, Source, Subset, Tensors, generator, hold_out
from gossamer.data.locate import find, roots, use_folder

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "Source",
    "Subset",
    "Tensors",
    "find",
    "generator",
    "hold_out",
    "load",
    "roots",
    "use_folder",
]
