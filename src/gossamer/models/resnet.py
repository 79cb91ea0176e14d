"""Residual networks: CIFAR's ResNet-20 ... 110, Wide-ResNets, ImageNet's ResNet-18 and -50."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import he_init


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides; has no parameters.

    Source: He et al. 2016, section 3.3, option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Option B: a 1x1 convolution with batch normalisation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch normalisation, around a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, option: Literal["A", "B"] = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = (PadShortcut if option == "A" else projection)(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the width, around a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """6n + 2 layers for 32x32 images: three stages of n basic blocks with 16, 32, 64 channels.

    Args:
        depth: 6n + 2, such as 20, 32, 44, 56, 110.
        shape: (channels, height, width) of one input.
        classes: outputs.
        option: shortcut where the shape changes: "A" pads with zeros (269,722 parameters at depth 20), "B"
            projects.
        width: multiplies the channels.
    Raises:
        ConfigError: a depth that is not 6n + 2, an unknown option, or no channels left.
    Source: He et al. 2016, section 4.2.
    """

    def __init__(
        self,
        depth: int,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        option: Literal["A", "B"] = "A",
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2 or option not in ("A", "B"):
            raise ConfigError(f"depth={depth}, option={option!r}: need depth 6n + 2 and option 'A' or 'B'")
        channels = [round(base * width) for base in (16, 32, 64)]
        if min(channels) < 1:
            raise ConfigError(f"width={width} leaves a stage without channels")
        self.conv1 = nn.Conv2d(shape[0], channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        block = partial(BasicBlock, option=option)
        count = (depth - 2) // 6
        self.layer1 = _stage(block, channels[0], channels[0], count, 1)
        self.layer2 = _stage(block, channels[0], channels[1], count, 2)
        self.layer3 = _stage(block, channels[1], channels[2], count, 2)
        self.linear = nn.Linear(channels[2], classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(hidden.mean((2, 3)))


def _stage(
    block: Callable[[int, int, int], nn.Module], inputs: int, width: int, count: int, stride: int, expansion: int = 1
) -> nn.Sequential:
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(width * expansion, width, 1) for _ in range(count - 1)))


class ResNet(nn.Module):
    """ImageNet's form: 7x7 stride-2 stem and max pool, four stages of 64, 128, 256, 512 channels.

    Source: He et al. 2016, table 1; the stride of a bottleneck lies in its 3x3 convolution.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: Sequence[int],
        shape: Sequence[int],
        classes: int,
    ) -> None:
        super().__init__()
        grow = block.expansion
        self.conv1 = nn.Conv2d(shape[0], 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, counts[0], 1, grow)
        self.layer2 = _stage(block, 64 * grow, 128, counts[1], 2, grow)
        self.layer3 = _stage(block, 128 * grow, 256, counts[2], 2, grow)
        self.layer4 = _stage(block, 256 * grow, 512, counts[3], 2, grow)
        self.fc = nn.Linear(512 * grow, classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.fc(hidden.mean((2, 3)))


def resnet18(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> ResNet:
    """ResNet-18; 11,689,512 parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), shape, classes)


def resnet50(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> ResNet:
    """ResNet-50; 25,557,032 parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), shape, classes)


class WideBlock(nn.Module):
    """Pre-activation block: normalisation and ReLU before each of the two 3x3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))


class WideResNet(nn.Module):
    """WRN-depth-factor for 32x32 images.

    Args:
        shape: (channels, height, width) of one input.
        classes: outputs.
        depth: 6n + 4, such as 22 or 28.
        factor: multiplies the 16, 32, 64 channels; WRN-28-10 has 36,479,194 parameters for 10 classes.
        dropout: between a block's convolutions.
    Raises:
        ConfigError: a depth that is not 6n + 4.
    Source: Zagoruyko & Komodakis 2016.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        depth: int = 28,
        factor: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ConfigError(f"depth={depth}: a Wide-ResNet has 6n + 4 layers, such as 22 or 28")
        block, count = partial(WideBlock, dropout=dropout), (depth - 4) // 6
        widths = [16, 16 * factor, 32 * factor, 64 * factor]
        self.conv1 = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)
        self.layer1 = _stage(block, widths[0], widths[1], count, 1)
        self.layer2 = _stage(block, widths[1], widths[2], count, 2)
        self.layer3 = _stage(block, widths[2], widths[3], count, 2)
        self.bn = nn.BatchNorm2d(widths[3])
        self.linear = nn.Linear(widths[3], classes)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.relu(self.bn(hidden)).mean((2, 3)))
