"""Super-resolution: networks, pictures, patches, the usual protocol, and pruning them while they train."""

from .data import Patches, read_pairs
from .networks import NETWORKS, build, load, save
from .pictures import Picture, read_picture, write_picture
from .resize import bicubic, cropped, degrade
from .run import Score, SuperResolution, bicubic_by, evaluate, train, upscale, upscale_picture

__all__ = [
    "NETWORKS",
    "Patches",
    "Picture",
    "Score",
    "SuperResolution",
    "bicubic",
    "bicubic_by",
    "build",
    "cropped",
    "degrade",
    "evaluate",
    "load",
    "read_pairs",
    "read_picture",
    "save",
    "train",
    "upscale",
    "upscale_picture",
    "write_picture",
]
