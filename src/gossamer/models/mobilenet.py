"""MobileNets: depthwise separable networks from digits size to ImageNet size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import conv_bn, he_init, pooled_head


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch normalisation and ReLU."""
    return nn.Sequential(
        OrderedDict(
            depthwise=conv_bn(inputs, inputs, 3, stride, groups=inputs, activation=nn.ReLU()),
            pointwise=conv_bn(inputs, outputs, 1, activation=nn.ReLU()),
        )
    )


def _network(stem: nn.Module, blocks: Sequence[nn.Module], head: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))


def digits_mobilenet(*, shape: Sequence[int] = (1, 16, 16), classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """A MobileNet for 8 to 16 pixels a side: 3x3 stride-2 stem (16), five separable blocks, average pool.

    Args:
        shape: (channels, height, width) of one input.
        classes: outputs.
        width: multiplies the blocks' channels (32, 64, 64, 128, 128), not the stem's; width 1 has 31,232
            pointwise weights.
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
    blocks = [separable(*sizes, stride) for sizes, stride in zip(pairwise(channels), strides, strict=True)]
    stem = conv_bn(shape[0], channels[0], 3, 2, activation=nn.ReLU())
    return _network(stem, blocks, pooled_head(channels[-1], classes))


# (channels, stride) of the 13 separable blocks: Howard et al. 2017, table 1.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def mobilenet_v1(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """MobileNetV1; 4,231,976 parameters at width 1.

    Args:
        shape: (channels, height, width) of one input; sides of 32 or more.
        classes: outputs.
        width: multiplies all channels; at least 8 remain.
    Source: Howard et al. 2017.
    """
    stem_width = max(8, round(32 * width))
    channels = [stem_width, *(max(8, round(base * width)) for base, _ in _V1)]
    blocks = [separable(*sizes, stride) for sizes, (_, stride) in zip(pairwise(channels), _V1, strict=True)]
    stem = conv_bn(shape[0], stem_width, 3, 2, activation=nn.ReLU())
    model = _network(stem, blocks, pooled_head(channels[-1], classes))
    he_init(model)
    return model


def divisible(channels: float, by: int = 8) -> int:
    """`channels` rounded to a multiple of `by`, never below `by` nor by more than a tenth down.

    >>> divisible(24 * 0.75), divisible(3)
    (24, 8)
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """Pointwise expansion, depthwise 3x3, linear pointwise projection; adds the input where shapes agree.

    Source: Sandler et al. 2018, section 3.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            parts["expand"] = conv_bn(inputs, hidden, 1, activation=nn.ReLU6())
        parts["depthwise"] = conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6())
        parts["project"] = conv_bn(hidden, outputs, 1)
        self.body = nn.Sequential(parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


# (expansion, channels, repeats, first stride): Sandler et al. 2018, table 2.
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000, width: float = 1.0) -> nn.Sequential:
    """MobileNetV2; 3,504,872 parameters at width 1.

    Args:
        shape: (channels, height, width) of one input; sides of 32 or more.
        classes: outputs.
        width: multiplies all channels, rounded to multiples of 8; the last layer never shrinks below 1280.
    Source: Sandler et al. 2018.
    """
    inputs = divisible(32 * width)
    stem = conv_bn(shape[0], inputs, 3, 2, activation=nn.ReLU6())
    blocks: list[nn.Module] = []
    for expansion, base, repeats, first in _V2:
        outputs = divisible(base * width)
        for index in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, first if index == 0 else 1, expansion))
            inputs = outputs
    last = divisible(1280 * max(1.0, width))
    blocks.append(conv_bn(inputs, last, 1, activation=nn.ReLU6()))
    model = _network(stem, blocks, pooled_head(last, classes, dropout=0.2))
    he_init(model)
    return model
