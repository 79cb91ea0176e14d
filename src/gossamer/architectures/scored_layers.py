"""Parametric sparse operations: a weight seen through the top share of a learned score (DASS, HYDRA, edge-popup).

A layer is made sparse in place; its class, its shape and its name stay. At keep 1 it is the dense layer to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import ConfigError
from ..kernels.topk import topk_mask
from ..sparsify.estimators import ScoredForward, install, uninstall

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def kept(numel: int, keep: float) -> int:
    """Survivors of a layer: numel - int((1 - keep) numel), as the released code counts."""
    return numel - int((1 - keep) * numel)


class TopShare(ScoredForward):
    """The parametrisation: forward w * mask of the top share of |score|; the score's gradient passes straight through.

    d loss / d score = gradient * w * sign(score); w gets the masked gradient. Where the score is trained the mask
    follows it at every pass, else it stays as it is.

    Args:
        shape: of the weight. name: of the layer, for messages.
    """

    def __init__(self, weight: Tensor, name: str = "layer") -> None:
        score = weight.detach().abs().clone()
        super().__init__(torch.ones_like(weight, dtype=torch.bool), score, trained=False)
        self.name, self.keep = name, 1.0

    def set_keep(self, keep: float) -> None:
        """Change the kept share and the mask.

        Raises:
            ConfigError: outside (0, 1], or so small that not one weight would be left; the smallest valid one is named.
        """
        numel = self.mask.numel()
        if not 0 < keep <= 1:
            raise ConfigError(f"keep must lie in (0, 1], got {keep}")
        if keep * numel < 1:
            raise ConfigError(f"keep {keep} leaves {self.name} none of its {numel} weights; at least {1 / numel:.3g}")
        self.keep = keep
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """The mask of the present score, in place."""
        numel = self.mask.numel()
        self.mask.copy_(topk_mask(self.score.abs(), kept(numel, self.keep), name=f"scores of {self.name}"))

    def forward(self, w: Tensor) -> Tensor:
        if self.keep == 1:
            return w
        if self.score.requires_grad:
            self.refresh()
        return scored_weight(w, self.score.abs(), self.mask)


def scored_weight(w: Tensor, importance: Tensor, mask: Tensor) -> Tensor:
    """w under the mask, with the straight-through gradient of `importance`; see `sparsify.estimators.Scored`."""
    from ..sparsify.estimators import _ByScore

    out: Tensor = _ByScore.apply(w, importance, mask)
    return out


def make_sparse(model: nn.Module) -> nn.Module:
    """Give every linear layer and convolution inside `model` a score, in place. Returns the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LAYERS) and not parametrize.is_parametrized(module, "weight"):
            install(module, "weight", TopShare(module.weight, name or type(module).__name__))
    return model


def SparseLinear(inputs: int, outputs: int, bias: bool = True, keep: float = 1.0) -> nn.Linear:  # noqa: N802
    """A linear layer with a score."""
    return _made(nn.Linear(inputs, outputs, bias), keep)  # type: ignore[return-value]


def SparseConv(inputs: int, outputs: int, kernel: int, *, keep: float = 1.0, **options: Any) -> nn.Conv2d:  # noqa: N802
    """A 2-D convolution with a score; options as of `nn.Conv2d`."""
    return _made(nn.Conv2d(inputs, outputs, kernel, **options), keep)  # type: ignore[return-value]


def _made(layer: nn.Module, keep: float) -> nn.Module:
    make_sparse(layer)
    set_keep(layer, keep)
    return layer


def shares(model: nn.Module) -> Iterator[tuple[str, nn.Module, TopShare]]:
    """(name, layer, parametrisation) of every layer with a score."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            found = module.parametrizations["weight"][0]
            if isinstance(found, TopShare):
                yield name, module, found


def set_keep(model: nn.Module, keep: float) -> None:
    """The kept share of every scored layer. Raises ConfigError as `TopShare.set_keep`; nothing is changed then."""
    found = list(shares(model))
    for name, _, share in found:
        share.name = name or share.name
        if 0 < keep <= 1 and keep * share.mask.numel() < 1:
            raise ConfigError(
                f"keep {keep} leaves {share.name} none of its {share.mask.numel()} weights; "
                f"at least {max(1 / s.mask.numel() for _, _, s in found):.3g} is needed"
            )
    for _, _, share in found:
        share.set_keep(keep)


def refresh(model: nn.Module) -> None:
    """The masks of the present scores, as after the last step that moved them."""
    for _, _, share in shares(model):
        share.refresh()


@torch.no_grad()
def scaled_init(model: nn.Module) -> None:
    """Scores sqrt(6 / fan_in) w / max|w| of every layer: before training the mask is magnitude pruning (HYDRA)."""
    for _, module, share in shares(model):
        w = module.parametrizations["weight"].original  # type: ignore[index, union-attr]
        share.score.copy_(math.sqrt(6 / w[0].numel()) * w / w.abs().max().clamp_min(1e-12))
        share.refresh()


def train_scores(model: nn.Module, scores: bool) -> None:
    """Train the scores and freeze all other parameters, or the other way round."""
    own = {id(share.score) for _, _, share in shares(model)}
    for p in model.parameters():
        p.requires_grad_((id(p) in own) == scores)


def score_masks(model: nn.Module) -> dict[str, Tensor]:
    """Layer -> its present mask (a copy)."""
    return {name: share.mask.clone() for name, _, share in shares(model)}


def finish(model: nn.Module) -> dict[str, Tensor]:
    """Bake the masks in: plain layers with exact zeros. Returns the masks by parameter name."""
    found = [(name, share.mask.clone()) for name, _, share in shares(model)]
    for name, _ in found:
        uninstall(model.get_submodule(name) if name else model, "weight")
    return {f"{name}.weight" if name else "weight": mask for name, mask in found}
