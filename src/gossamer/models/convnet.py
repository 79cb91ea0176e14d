"""Plain convolutional networks: LeNets, a small one for digits, VGG-19."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

from torch import nn

from gossamer.errors import ConfigError
from gossamer.models.blocks import conv_bn, he_init, pooled_head
from gossamer.models.mlp import mlp


def lenet_300_100(*, shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-300-100: two hidden layers with biases, no normalisation; 266,610 parameters for 28x28.

    Source: LeCun et al. 1998.
    """
    return mlp(shape=shape, classes=classes, hidden=(300, 100), norm=False)


def lenet5(*, shape: Sequence[int] = (1, 28, 28), classes: int = 10) -> nn.Sequential:
    """LeNet-5 in today's form (ReLU, max pooling): 6 and 16 filters of 5x5, then 120 and 84 units.

    61,706 parameters for (1, 28, 28).

    Raises:
        ConfigError: sides below 12.
    Source: LeCun et al. 1998, figure 2; the first convolution pads by 2 as its 32x32 canvas did.
    """
    sides = [(side // 2 - 4) // 2 for side in shape[1:]]
    if min(sides) < 1:
        raise ConfigError(f"LeNet-5 needs inputs of at least 12x12, got {tuple(shape)}")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(shape[0], 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * prod(sides), 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            head=nn.Linear(84, classes),
        )
    )


def convnet(
    *, shape: Sequence[int] = (1, 12, 12), classes: int = 10, channels: Sequence[int] = (16, 32, 64)
) -> nn.Sequential:
    """A small convolutional network: 3x3 convolutions with batch normalisation and ReLU, halving after the first.

    Args:
        shape: (channels, height, width) of one input.
        classes: outputs.
        channels: of the convolutions; the first has stride 1, each other one stride 2.
    """
    blocks: list[nn.Module] = []
    inputs = shape[0]
    for index, outputs in enumerate(channels):
        blocks.append(conv_bn(inputs, outputs, 3, 1 if index == 0 else 2, activation=nn.ReLU()))
        inputs = outputs
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), head=pooled_head(inputs, classes)))


# Channels of the 16 convolutions, "M" for a 2x2 max pool: Simonyan & Zisserman 2015, table 1, column E.
_VGG19 = (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4)


def vgg19(*, shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> nn.Sequential:
    """VGG-19 with batch normalisation for CIFAR: one linear layer after the average pool; 20,035,018 parameters.

    The convolutions have no bias, which the normalisation makes redundant.

    Source: Simonyan & Zisserman 2015, in the CIFAR form that the sparse-training papers use.
    """
    blocks: list[nn.Module] = []
    inputs = shape[0]
    for step in _VGG19:
        if isinstance(step, int):
            blocks.append(conv_bn(inputs, step, 3, activation=nn.ReLU()))
            inputs = step
        else:
            blocks.append(nn.MaxPool2d(2))
    model = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks), head=pooled_head(inputs, classes)))
    he_init(model)
    return model
