"""ImageNet's residual networks for pictures of 32 pixels: a 3x3 stem that keeps the resolution, and no pool after it.

By import path: "gossamer.models.small_pictures:resnet18" with the options `shape` and `classes`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .resnet import BasicBlock, Bottleneck, ResNet


class SmallPictureResNet(ResNet):
    """`ResNet` with the stem that is usual on CIFAR: 3x3, stride 1."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: Sequence[int],
        shape: Sequence[int],
        classes: int,
    ) -> None:
        super().__init__(block, counts, shape, classes)
        self.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, classes)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        return self.fc(hidden.mean((2, 3)))


def resnet18(*, shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> SmallPictureResNet:
    """ResNet-18; 11,173,962 parameters with 10 classes, 0.56 giga multiply-accumulates for 32 x 32 pixels."""
    return SmallPictureResNet(BasicBlock, (2, 2, 2, 2), shape, classes)


def resnet50(*, shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> SmallPictureResNet:
    """ResNet-50; 23,520,842 parameters with 10 classes."""
    return SmallPictureResNet(Bottleneck, (3, 4, 6, 3), shape, classes)
