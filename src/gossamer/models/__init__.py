"""Material: networks by name, their blocks, and the exchange of modules inside a built model."""

from gossamer.models.importing import import_pickled_weights
from gossamer.models.language import Llama, LlamaConfig, load_llama, save_llama
from gossamer.models.replace import matching, replace
from gossamer.models.weights import load_weights, pretrained_resnet, read_weights
from gossamer.models.zoo import MODELS, build

__all__ = [
    "MODELS",
    "Llama",
    "LlamaConfig",
    "build",
    "import_pickled_weights",
    "load_llama",
    "load_weights",
    "matching",
    "pretrained_resnet",
    "read_weights",
    "replace",
    "save_llama",
]
