"""Material: networks by name, their blocks, and the exchange of modules inside a built model."""

from gossamer.models.zoo import MODELS, build

__all__ = ["MODELS", "build"]
