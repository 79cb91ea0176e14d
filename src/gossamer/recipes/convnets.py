"""Sparse convolutional networks for speed: which layers become sparse, in which blocks, and on which schedule.

Two published systems: Fast Sparse ConvNets (unstructured and blocked 1x1 convolutions) and SparseByteNN (blocks of
output channels in every operator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..errors import ConfigError, unknown
from ..maths.schedules import Cubic, Every
from ..sparsify.allocation import Uniform
from ..sparsify.groups import Select
from ..sparsify.patterns import Block, Pattern, Unstructured
from ..sparsify.recipe import Recipe
from ..sparsify.strips import layer_patterns
from ..sparsify.updates import PruneTo

START, STOP, EVERY = 0.15, 0.7, 0.02  # of the run: first and last mask, and the steps between


@dataclass(frozen=True)
class Published:
    """What the authors of Fast Sparse ConvNets do to one network.

    Args:
        sparsity: of every sparse layer.
        block: rows of the blocks in the parts `first` to `last` (counted from 1: separable blocks of MobileNetV1,
            inverted residuals of MobileNetV2); 1: none.
        classifier: whether the classifier is sparse, too.
    """

    sparsity: float
    block: int = 1
    first: int = 0
    last: int = 0
    classifier: bool = False


# Elsen et al. 2020, section 4 and the table of the authors' `fastconvnets` folder.
PUBLISHED: Mapping[str, Published] = {
    "mobilenet-v1": Published(0.9, 4, 12, 13),
    "mobilenet-v2": Published(0.85, 2, 11, 16),
    "efficientnet-b0": Published(0.8, classifier=True),
    "mobilenet-digits": Published(0.8),
}


@dataclass(frozen=True)
class LayerChoice:
    """Which weights are sparse and how.

    Attributes:
        patterns: parameter name -> pattern. dense: parameter name -> why it stays dense.
    """

    patterns: dict[str, Pattern]
    dense: dict[str, str] = field(default_factory=dict)

    def recipe(self, name: str, sparsity: float) -> Recipe:
        """Gradual magnitude pruning of these layers, each to the same sparsity.

        Cubic schedule from 15 to 70 % of the run, a new mask every 2 % (defaults of the specification); then fixed.
        Source: Zhu & Gupta 2017.
        """
        if not 0 <= sparsity < 1:
            raise ConfigError(f"sparsity is a fraction of zeros in [0, 1), got {sparsity}")
        prune = PruneTo(Cubic(1.0, 1 - sparsity), allocation=Uniform(), when=Every(EVERY, START, STOP))
        return Recipe(
            name,
            select=Select(layers=("conv", "linear"), only=tuple(self.patterns)),
            layers=tuple(self.patterns.items()),
            updates=(prune,),
        )


def pointwise(model: nn.Module) -> dict[str, nn.Conv2d]:
    """Parameter name -> every 1x1 convolution that sees an image: not those of squeeze-and-excitation, which see
    pooled vectors and hold few weights."""
    squeezing = {id(child) for m in model.modules() if type(m).__name__ == "SqueezeExcite" for child in m.modules()}
    return {
        f"{path}.weight": m
        for path, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1 and id(m) not in squeezing
    }


def fast_sparse_plan(model: nn.Module, network: str | None = None, *, slab_bytes: int | None = None) -> LayerChoice:
    """Which layers of a mobile network are sparse, in which blocks, and which are dense.

    Sparse are the 1x1 convolutions; the first convolution, depthwise ones, normalisation and (but for EfficientNet)
    the classifier are dense. Blocks serve layers whose input does not fit the first-level cache.

    Args:
        network: a key of `PUBLISHED`: the authors' choice of blocks. None: blocks of 4 by `slab_bytes`, or none.
        slab_bytes: a layer whose tile of 32 pixels of all input channels takes more bytes than this gets blocks of 4.
    Raises:
        ConfigError: an unknown network, or no 1x1 convolution.
    Source: Elsen et al. 2020 (Fast Sparse ConvNets), sections 3 and 4.
    """
    if network is not None and network not in PUBLISHED:
        raise unknown("network of Fast Sparse ConvNets", network, PUBLISHED)
    layers = pointwise(model)
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no 1x1 convolution; nothing here would become sparse")
    published = PUBLISHED[network] if network else Published(0.0)
    patterns: dict[str, Pattern] = {}
    for name, module in layers.items():
        rows = _published_rows(name, published)
        if network is None and slab_bytes is not None and module.in_channels * 32 * 4 > slab_bytes:
            rows = 4
        rows = _dividing(rows, module.out_channels)
        patterns[name] = Block(rows, 1) if rows > 1 else Unstructured()
    dense = {}
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, nn.Linear) and published.classifier:
            patterns[name] = Unstructured()
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and name not in patterns:
            dense[name] = _reason(module)
    return LayerChoice(patterns, dense)


def fast_sparse(model: nn.Module, network: str | None = None, sparsity: float | None = None) -> Recipe:
    """The training of Fast Sparse ConvNets for `model`.

    Args:
        network: a key of `PUBLISHED`, for the authors' blocks and sparsity.
        sparsity: of every sparse layer; default: the authors' for this network (90 % for MobileNetV1, 85 % for V2,
            80 % for EfficientNet-B0), 0.9 without one. Widths above 1 win the accuracy back.
    Raises:
        ConfigError: as `fast_sparse_plan`, or a sparsity outside [0, 1).
    """
    plan = fast_sparse_plan(model, network)
    usual = PUBLISHED[network].sparsity if network else 0.9
    return plan.recipe("fast-sparse-convnets", usual if sparsity is None else sparsity)


def sparsebyte(model: nn.Module, sparsity: float = 0.3, rows: int = 4) -> Recipe:
    """The training of SparseByteNN: blocks of output channels, B x 1 for 1x1 convolutions and fully connected layers,
    B x 1 whole kernels for k x k ones. Depthwise, first and last layers are dense.

    Call `sparsify.rearrange.rearrange` first. A layer whose channels B does not divide gets the largest smaller
    block that divides them.

    Args:
        sparsity: of every sparse layer (the authors' 30 %). rows: B, one of 2, 4, 8, 16.
    Raises:
        ConfigError: another B, or a sparsity outside [0, 1). ShapeError: as `layer_patterns`.
    Source: Xu et al. 2023 (SparseByteNN), reconstructed.
    """
    layers = layer_patterns(model, rows)
    patterns: dict[str, Pattern] = {}
    for name in layers.patterns:
        weight = model.get_parameter(name)
        patterns[name] = Block(_dividing(rows, len(weight)), max(1, weight[0, 0].numel()))
    return LayerChoice(patterns, layers.dense).recipe("sparsebytenn", sparsity)


def _dividing(rows: int, channels: int) -> int:
    while channels % rows:
        rows //= 2
    return rows


def _published_rows(name: str, published: Published) -> int:
    """Rows of the blocks of a layer, by the number of the part that it stands in."""
    parts = name.split(".")
    number = next((int(part) + 1 for part in parts if part.isdigit()), 0)
    return published.block if published.first <= number <= published.last and published.last else 1


def _reason(module: nn.Conv2d | nn.Linear) -> str:
    if isinstance(module, nn.Linear):
        return "it is a classifier"
    if module.groups > 1:
        return "it is a depthwise convolution"
    return "it squeezes or excites pooled channels" if module.kernel_size == (1, 1) else "it is a full convolution"
