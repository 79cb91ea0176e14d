"""Blocks of output channels: groups of weights that fill the registers of a kernel, chosen for each operator.

A strip is B consecutive output channels. A cell of a strip is one of its input channels with all taps of the kernel:
B x 1 weights of a fully connected layer or a 1x1 convolution, B x 1 whole 2-d kernels of a k x k convolution. Cells
are kept or dropped as one.

>>> weight = torch.tensor([[3.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
>>> OutBlock(2).mask(weight, 0.5).int().tolist()
[[1, 0], [1, 0], [0, 1]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import ConfigError, MaskError, NumericsError, ShapeError
from ..kernels.topk import topk_mask, topk_rows
from .allocation import budget
from .patterns import Block

BLOCKS = (1, 2, 4, 8, 16)  # 4, 8 and 16 have kernels of their own; 2 runs unstructured or in blocks of 4
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class OutBlock:
    """B output channels x 1 input channel x all taps.

    Args:
        rows: B, one of 1, 2, 4, 8, 16. A last strip may be shorter.
        balanced: every strip keeps the same number of cells, up to one: equal work for each thread.
    Raises:
        ConfigError: another number of rows.
    Source: Xu et al. 2023 (SparseByteNN); the sizes are those of our kernels.
    """

    rows: int = 4
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.rows not in BLOCKS:
            raise ConfigError(f"strips have {', '.join(map(str, BLOCKS))} rows, got {self.rows}")

    def scores(self, weight: Tensor) -> Tensor:
        """Sum of |w| of each cell, (strips, in), in float64.

        Args:
            weight: (out, in) or (out, in, *kernel), finite.
        Raises:
            ShapeError: fewer than two dimensions. NumericsError: NaN or infinity.
        """
        if weight.ndim < 2 or not weight.numel():
            raise ShapeError(f"strips need a weight (out, in, ...), got shape {tuple(weight.shape)}")
        if not bool(torch.isfinite(weight).all()):
            raise NumericsError(f"a weight of shape {tuple(weight.shape)} holds NaN or infinity; load a sound model")
        rows = weight.detach().double().abs().flatten(2).sum(2) if weight.ndim > 2 else weight.detach().double().abs()
        padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % self.rows))
        return padded.unflatten(0, (-1, self.rows)).sum(1)

    def mask(self, weight: Tensor, sparsity: float) -> Tensor:
        """The mask (True = kept) of the cells with the largest scores.

        Args:
            weight: (out, in) or (out, in, *kernel).
            sparsity: share of the cells that go, in [0, 1); exact to one cell.
        Raises:
            ConfigError: another sparsity, or balanced strips that would keep no cell each.
        """
        scores = self.scores(weight)
        kept = topk_cells(scores, self.keep(scores.shape, sparsity), self.balanced)
        rows = kept.repeat_interleave(self.rows, 0)[: len(weight)]
        return rows.view(*rows.shape, *[1] * (weight.ndim - 2)).expand(weight.shape).clone()

    def keep(self, cells: tuple[int, ...], sparsity: float) -> int:
        """How many of (strips, in) cells stay; errors as in `mask`."""
        if not 0 <= sparsity < 1:
            raise ConfigError(f"sparsity is a fraction of zeros in [0, 1), got {sparsity}")
        strips, inputs = cells
        count = budget(1 - sparsity, strips * inputs)
        if self.balanced and count < strips:
            raise ConfigError(
                f"balanced strips keep at least one cell each, but sparsity {sparsity} leaves {count} cells for "
                f"{strips} strips of {inputs} inputs; lower the sparsity or use balanced=False"
            )
        return count

    def check(self, mask: Tensor) -> None:
        """Raise MaskError unless the rows of each strip are identical, and all taps of a kernel."""
        rows = mask.flatten(2).float().mean(2) if mask.ndim > 2 else mask.float()
        strips = rows.split(self.rows)
        if not all(bool((strip == strip[0]).all() and ((strip == 0) | (strip == 1)).all()) for strip in strips):
            raise MaskError(f"mask of shape {tuple(mask.shape)} is not one of {self}")

    def pattern(self, weight: Tensor) -> Block:
        """The same cells as a pattern of the algebra, for training with a Recipe.

        Raises:
            ShapeError: a short last strip, which the algebra does not know.
        """
        if len(weight) % self.rows:
            raise ShapeError(
                f"{self.rows} rows do not divide the {len(weight)} output channels of a weight; train with a smaller "
                f"block or pad the layer to {-(-len(weight) // self.rows) * self.rows} channels"
            )
        return Block(self.rows, max(1, weight[0, 0].numel()))


def topk_cells(scores: Tensor, keep: int, balanced: bool = False) -> Tensor:
    """The `keep` largest of (strips, in) scores; balanced: floor(keep / strips) in each strip, the rest by score."""
    if not balanced:
        return topk_mask(scores.flatten(), keep).view(scores.shape)
    each, rest = divmod(keep, len(scores))
    kept = topk_rows(scores, [each] * len(scores))
    if rest:
        following = scores.masked_fill(kept, -torch.inf).max(1)
        chosen = topk_mask(following.values, rest)
        kept[chosen, following.indices[chosen]] = True
    return kept


@dataclass(frozen=True)
class Layers:
    """Which layer of a model takes which pattern.

    Args:
        patterns: parameter name -> pattern. dense: parameter name -> why it stays dense.
    """

    patterns: dict[str, OutBlock]
    dense: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{name}: {pattern.rows} x 1" for name, pattern in self.patterns.items()]
        return "\n".join([*rows, *(f"{name}: dense, {reason}" for name, reason in self.dense.items())])


def layer_patterns(
    model: nn.Module,
    rows: int | Mapping[str, int] = 4,
    *,
    balanced: bool = False,
    first_dense: bool = True,
    last_dense: bool = True,
) -> Layers:
    """A pattern for each convolution and fully connected layer of a network.

    Depthwise convolutions, the first layer and the classifier stay dense: they hold few weights that matter much.

    Args:
        rows: strip height for all layers, or by shell pattern over parameter names (the first match wins; layers
            without one stay dense).
        first_dense, last_dense: leave the first convolution and the last fully connected layer alone.
    Raises:
        ShapeError: a grouped convolution whose groups a strip does not divide (named). ConfigError: no layer is left.
    Source: Xu et al. 2023 (SparseByteNN), "different patterns for different operators"; Elsen et al. 2020.
    """
    found = [(f"{path}.weight" if path else "weight", m) for path, m in model.named_modules()]
    layers = [(name, m) for name, m in found if isinstance(m, (*_CONVS, nn.Linear))]
    convs = [name for name, m in layers if isinstance(m, _CONVS)]
    linears = [name for name, m in layers if isinstance(m, nn.Linear)]
    heights = {"*": rows} if isinstance(rows, int) else rows
    patterns: dict[str, OutBlock] = {}
    dense: dict[str, str] = {}
    for name, module in layers:
        height = next((h for glob, h in heights.items() if fnmatchcase(name, glob)), None)
        if isinstance(module, _CONVS) and module.groups > 1 and module.in_channels == module.groups:
            dense[name] = "it is a depthwise convolution"
        elif first_dense and convs and name == convs[0]:
            dense[name] = "it is the first convolution"
        elif last_dense and linears and name == linears[-1]:
            dense[name] = "it is the classifier"
        elif height is None:
            dense[name] = "no pattern is given for it"
        else:
            _check_groups(name, module, height)
            patterns[name] = OutBlock(height, balanced)
    if not patterns:
        raise ConfigError(f"no layer of {type(model).__name__} takes blocks: {dense or 'it has no such layers'}")
    return Layers(patterns, dense)


def _check_groups(name: str, module: nn.Module, height: int) -> None:
    groups = getattr(module, "groups", 1)
    per_group = len(module.weight) // groups  # type: ignore[arg-type]
    if groups > 1 and per_group % height:
        raise ShapeError(
            f"{name} has {groups} groups of {per_group} output channels, which strips of {height} do not divide; "
            f"give it another height, or none"
        )


@torch.no_grad()
def prune_strips_(model: nn.Module, patterns: Mapping[str, OutBlock], sparsity: float) -> dict[str, Tensor]:
    """Drop the smallest cells of each layer, in place and once.

    Args:
        patterns: parameter name -> pattern, as from `layer_patterns`. sparsity: of each layer, in [0, 1).
    Returns:
        parameter name -> bool mask of its shape, True = kept.
    Raises:
        ConfigError: a sparsity outside [0, 1), balanced strips without a cell. NumericsError: NaN or infinity.
    """
    masks = {name: pattern.mask(model.get_parameter(name), sparsity) for name, pattern in patterns.items()}
    for name, mask in masks.items():
        model.get_parameter(name).masked_fill_(~mask, 0.0)
    return masks
