"""MobileNets: depthwise separable networks from digits size to ImageNet size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gossamer.errors import ConfigError


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: nn.Module | None = None,
) -> nn.Sequential:
    """Convolution without bias ("same" padding for odd kernels), batch normalisation, optional activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs))
    if activation is not None:
        layers["act"] = activation
    return nn.Sequential(layers)


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch normalisation and ReLU."""
    return nn.Sequential(
        OrderedDict(
            depthwise=conv_bn(inputs, inputs, 3, stride, groups=inputs, activation=nn.ReLU()),
            pointwise=conv_bn(inputs, outputs, 1, activation=nn.ReLU()),
        )
    )


def _chain(stem: nn.Module, blocks: Sequence[nn.Module], channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            stem=stem,
            blocks=nn.Sequential(*blocks),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(channels, classes),
        )
    )


def digits_mobilenet(
    *, shape: Sequence[int] = (1, 16, 16), classes: int = 10, width: float = 1.0
) -> nn.Sequential:
    """A MobileNet for canvases of 8 to 16 pixels: 3x3 stride-2 stem (16), five separable blocks, average pool.

    Args:
        shape: (channels, height, width) of one input.
        classes: outputs.
        width: multiplies the blocks' channels (32, 64, 64, 128, 128), not the stem's; 31,232 pointwise weights at 1.
    Returns:
        a module (B, *shape) -> (B, classes).
    Raises:
        ConfigError: `width` leaves a block without channels.
    Source: the network of the Fast Sparse ConvNets reproduction (Elsen et al. 2020, scaled down).
    """
    channels = [16, *(round(base * width) for base in (32, 64, 64, 128, 128))]
    if min(channels) < 1:
        raise ConfigError(f"width={width} leaves a block of the digits MobileNet without channels")
    strides = (1, 2, 1, 2, 1)
    blocks = [separable(*sizes) for sizes in zip(channels, channels[1:], strides, strict=False)]
    stem = conv_bn(shape[0], channels[0], 3, 2, activation=nn.ReLU())
    return _chain(stem, blocks, channels[-1], classes)
