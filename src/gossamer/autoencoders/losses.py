"""What training a sparse autoencoder lowers: reconstruction, sparsity, and the revival of features that are not used.

All are means over tokens, in the units of the scaled activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.autoencoders.budgets import Zipf, fit_zipf
from gossamer.autoencoders.jump import step
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import Gated, JumpReLU, ReLU
from gossamer.errors import ConfigError
from gossamer.kernels import codes
from gossamer.kernels.codes import SparseCode
from gossamer.kernels.topk import topk_rows


@dataclass(frozen=True)
class AuxK:
    """Dead features explain what is left unexplained (Gao et al. 2024, appendix A.2).

    Args:
        k: dead features per token that take part (512 there); at most half of the activations' width.
        weight: of the loss (1/32). window: tokens without activation after which a feature is dead.
    """

    k: int = 512
    weight: float = 1 / 32
    window: int = 10_000_000

    def __post_init__(self) -> None:
        _check_aux(self.k, self.weight, self.window)

    def weights(self, sae: SparseAutoencoder) -> Tensor:
        """(features,): 1 for a dead feature, else 0."""
        return sae.usage.dead(self.window).to(sae.encoder.dtype)


@dataclass(frozen=True)
class AuxZipf:
    """Features used less than the Zipf law of their rank explain what is left (after Ayonrinde 2024; ours in detail).

    A feature of density p and rank r takes part where p < c zipf(r), with weight 1 - p / zipf(r). For c towards 0 only
    the dead are left, with weight 1: `AuxK`.

    Args:
        c: share of the law's density below which a feature is under-used. k, weight: as `AuxK`.
        window: tokens without activation after which a feature counts as of density 0.
    """

    c: float = 0.5
    k: int = 512
    weight: float = 1 / 32
    window: int = 10_000_000

    def __post_init__(self) -> None:
        _check_aux(self.k, self.weight, self.window)
        if not 0 < self.c <= 1:
            raise ConfigError(f"c={self.c}: the under-used share must lie in (0, 1]")

    def weights(self, sae: SparseAutoencoder) -> Tensor:
        """(features,): by how much each feature is under-used, 0 for those that are not."""
        usage = sae.usage
        density = usage.density.masked_fill(usage.dead(self.window), 0.0)
        if int((density > 0).sum()) < 4:
            return torch.zeros_like(density)
        alpha, beta = sae.law.tolist()
        law = fit_zipf(density) if alpha != alpha else Zipf(alpha, beta)
        shares = law.shares(len(density))
        expected = (shares * float(density.sum()) / float(shares.sum())).to(density)[usage.ranks()]
        weights = (1 - density / expected).clamp(0, 1)
        return torch.where(density < self.c * expected, weights, 0.0)


Aux = AuxK | AuxZipf


def _check_aux(k: int, weight: float, window: int) -> None:
    if k < 1 or not 0 <= weight < float("inf") or window < 1:
        raise ConfigError(f"auxiliary loss: k={k}, weight={weight}, window={window}: need k, window >= 1, weight >= 0")


def revival(sae: SparseAutoencoder, u: Tensor, residual: Tensor, weights: Tensor, most: int) -> Tensor:
    """How badly the features of `weights` > 0 explain the residual, over its variance; 0 where there are none.

    Args:
        u: (B, d), centred activations. residual: (B, d_out), not differentiated. weights: (features,) in [0, 1].
        most: features per token that take part; at most half the width counts.
    """
    chosen = weights.nonzero()[:, 0]
    variance = residual.var(0, unbiased=False).sum()
    if not len(chosen) or not float(variance) > 0:
        return residual.new_zeros(())
    z = F.linear(u, sae.encoder[chosen], sae.b_enc[chosen]).relu()
    k = min(most, max(1, sae.d_out // 2), len(chosen))
    z = z * topk_rows(z, k) * weights[chosen]
    error = (residual - z @ sae.decoder[chosen]).square().sum(1).mean()
    return (error / variance).nan_to_num(0.0)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of the squared distance."""
    return (output - target).square().sum(1).mean()


def nested_error(sae: SparseAutoencoder, code: SparseCode, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over all prefixes of the dictionary, and the reconstruction of the whole.

    One selection over the whole dictionary serves all prefixes (Bussmann et al. 2025).
    """
    if sae.prefixes is None:
        output = codes.decode(code, sae.decoder) + sae.b_dec
        return squared_error(output, target), output
    output, total, start = sae.b_dec.expand_as(target), target.new_zeros(()), 0
    for end in sae.prefixes:
        output = output + codes.decode(code.only(start, end), sae.decoder[start:end])
        total, start = total + squared_error(output, target), end
    return total / len(sae.prefixes), output


def nested_error_dense(sae: SparseAutoencoder, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`nested_error` for codes that are not sparse yet: z (B, features)."""
    if sae.prefixes is None:
        output = z @ sae.decoder + sae.b_dec
        return squared_error(output, target), output
    output, total, start = sae.b_dec.expand_as(target), target.new_zeros(()), 0
    for end in sae.prefixes:
        output = output + z[:, start:end] @ sae.decoder[start:end]
        total, start = total + squared_error(output, target), end
    return total / len(sae.prefixes), output


def penalised(sae: SparseAutoencoder, u: Tensor, target: Tensor, progress: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, reconstruction and code of the kinds that a penalty makes sparse: ReLU, gated, JumpReLU.

    Args:
        u: centred activations. progress: of the training, in [0, 1], for p-annealing.
    Returns:
        the scalar loss, (B, d_out), (B, features).
    """
    select, pre, strength = sae.select, sae.pre(u), sae.strength
    z = sae._activate(pre, True)
    error, output = nested_error_dense(sae, z, target)
    if isinstance(select, Gated):
        gate = pre.relu()
        through = gate @ sae.decoder.detach() + sae.b_dec.detach()
        return error + strength * gate.sum(1).mean() + squared_error(through, target), output, z
    if isinstance(select, JumpReLU):
        l0 = step(pre.relu(), sae.learned_threshold(), select.bandwidth).sum(1).mean()
        size = target.detach().square().sum(1).mean()  # what the error is measured against
        penalty = l0 if select.k is None else size * (l0 / select.k - 1).square()
        return error + strength * penalty, output, z
    assert isinstance(select, ReLU)
    power = select.power + (select.final_power - select.power) * progress
    weighted = z * sae.decoder.detach().norm(dim=1)
    size = weighted if power == 1 else (weighted + 1e-6) ** power - 1e-6**power
    return error + strength * size.sum(1).mean(), output, z


def follow_budget(sae: SparseAutoencoder, l0: float, rate: float = 0.02) -> None:
    """Raise or lower the strength of an L1 or L_p penalty, so that the mean L0 goes towards k (after each batch).

    Args:
        rate: largest relative change; short trainings need a larger one, or they end on the way.
    """
    select = sae.select
    if isinstance(select, ReLU | Gated) and select.k is not None:
        push = max(-1.0, min(1.0, l0 / select.k - 1))
        sae.strength.mul_(1 + rate * push).clamp_(1e-6, 1e6)
