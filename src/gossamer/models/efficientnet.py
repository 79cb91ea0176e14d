"""EfficientNet-B0."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from gossamer.models.blocks import SqueezeExcite, conv_bn, he_init, pooled_head

# (expansion, channels, repeats, first stride, kernel): Tan & Le 2019, table 1.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class MBConv(nn.Module):
    """Pointwise expansion, depthwise convolution, squeeze-and-excitation, linear projection, residual.

    Source: Tan & Le 2019; the squeezed width is a quarter of the block's input channels.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            parts["expand"] = conv_bn(inputs, hidden, 1, activation=nn.SiLU())
        parts["depthwise"] = conv_bn(hidden, hidden, kernel, stride, groups=hidden, activation=nn.SiLU())
        parts["squeeze"] = SqueezeExcite(hidden, max(1, inputs // 4))
        parts["project"] = conv_bn(hidden, outputs, 1)
        self.body = nn.Sequential(parts)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def efficientnet_b0(*, shape: Sequence[int] = (3, 224, 224), classes: int = 1000) -> nn.Sequential:
    """EfficientNet-B0 without stochastic depth; 5,288,548 parameters.

    Args:
        shape: (channels, height, width) of one input; sides of 32 or more.
        classes: outputs.
    Source: Tan & Le 2019.
    """
    inputs = 32
    stem = conv_bn(shape[0], inputs, 3, 2, activation=nn.SiLU())
    blocks: list[nn.Module] = []
    for expansion, outputs, repeats, first, kernel in _STAGES:
        for index in range(repeats):
            blocks.append(MBConv(inputs, outputs, first if index == 0 else 1, expansion, kernel))
            inputs = outputs
    blocks.append(conv_bn(inputs, 1280, 1, activation=nn.SiLU()))
    head = pooled_head(1280, classes, dropout=0.2)
    model = nn.Sequential(OrderedDict(stem=stem, blocks=nn.Sequential(*blocks), head=head))
    he_init(model)
    return model
