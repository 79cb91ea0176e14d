"""MobileNetV2 shaped for a first-level cache: narrower expansions, more blocks, about as many multiplications.

A sparse 1x1 convolution reads a tile of pixels of all its input channels again and again; it is fast while that
tile stays in the first-level cache. Wide expansions do not fit. Here an expansion is capped where its tile would
outgrow the cache, and its stage gets more blocks in exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import conv_bn, he_init, pooled_head
from gossamer.models.mobilenet import _V2, InvertedResidual, _network, divisible

TILE = 32  # pixels that a kernel works on at a time
LEAST = 2  # expansion; below it a block has no hidden layer to speak of


def cache_aware_stages(width: float, cache_bytes: int) -> list[tuple[int, int, int, int]]:
    """(expansion, channels, repeats, first stride) of each stage.

    The expansion is the largest, up to the original's, whose hidden channels times a tile of 32 float32 pixels fit
    into the cache, but at least 2; repeats grow while the 1x1 weights of the stage exceed the original by at most 5 %.

    >>> cache_aware_stages(1.0, 65536)[5]
    (3, 160, 5, 2)
    """
    stages, inputs = [], divisible(32 * width)
    for expansion, base, repeats, first in _V2:
        outputs = divisible(base * width)
        widest = max(inputs, outputs) if repeats > 1 else inputs
        fitting = min(expansion, max(LEAST, cache_bytes // (4 * TILE * widest)))
        wanted = _weights(inputs, outputs, expansion, repeats)
        more = repeats
        while fitting < expansion and _weights(inputs, outputs, fitting, more + 1) <= 1.05 * wanted:
            more += 1
        stages.append((fitting, outputs, more, first))
        inputs = outputs
    return stages


def _weights(inputs: int, outputs: int, expansion: int, repeats: int) -> int:
    """1x1 weights of a stage."""
    first = inputs * expansion * (inputs * (expansion > 1) + outputs)
    return first + (repeats - 1) * outputs * expansion * (outputs * (expansion > 1) + outputs)


def mobilenet_v2_cache_aware(
    *, shape: Sequence[int] = (3, 224, 224), classes: int = 1000, width: float = 1.0, cache_bytes: int = 65536
) -> nn.Sequential:
    """MobileNetV2 whose expansions fit a first-level cache.

    Args:
        shape: (channels, height, width) of one input; sides of 32 or more.
        classes: outputs.
        width: multiplies all channels, rounded to multiples of 8.
        cache_bytes: of the first-level data cache; default: the 64 KiB of a Snapdragon 835's big core, the paper's
            device.
    Raises:
        ConfigError: a cache that holds no tile of the narrowest layer.
    Source: after Elsen et al. 2020 (Fast Sparse ConvNets), the cache-aware MobileNetV2; its exact sizes are not
        published in text that we could read, so the rule above is ours.
    """
    if cache_bytes < 4 * TILE * divisible(32 * width):
        raise ConfigError(f"a cache of {cache_bytes} bytes holds no tile of {TILE} pixels; give its size in bytes")
    inputs = divisible(32 * width)
    stem = conv_bn(shape[0], inputs, 3, 2, activation=nn.ReLU6())
    blocks: list[nn.Module] = []
    for expansion, outputs, repeats, first in cache_aware_stages(width, cache_bytes):
        for index in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, first if index == 0 else 1, expansion))
            inputs = outputs
    last = divisible(1280 * max(1.0, width))
    blocks.append(conv_bn(inputs, last, 1, activation=nn.ReLU6()))
    model = _network(stem, blocks, pooled_head(last, classes, dropout=0.2))
    he_init(model)
    return model
