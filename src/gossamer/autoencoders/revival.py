"""Dead features made anew from tokens that are explained badly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from gossamer.autoencoders.model import SparseAutoencoder


@torch.no_grad()
def resample(sae: SparseAutoencoder, optimizer: Optimizer, u: Tensor, residual: Tensor, dead: Tensor) -> int:
    """Point dead features at what is left of badly explained tokens, and clear their optimiser state.

    Tokens are drawn with probability in proportion to their squared error. The decoder row becomes the residual's
    direction, the encoder row the input's, at a fifth of the mean length of the living ones.

    Args:
        u: (B, d), centred inputs. residual: (B, d_out). dead: bool (features,).
    Returns:
        how many features were made anew.
    Source: Bricken et al. 2023, appendix on neuron resampling; the input's direction is the residual's there for
        autoencoders, as here.
    """
    chosen = dead.nonzero()[:, 0]
    error = residual.square().sum(1)
    if not len(chosen) or not float(error.sum()) > 0:
        return 0
    chosen = chosen[: int((error > 0).sum())]
    tokens = torch.multinomial(error, len(chosen), replacement=False)
    sae.decoder[chosen] = F.normalize(residual[tokens], dim=1)
    toward = F.normalize(u[tokens] if sae.transcodes else residual[tokens], dim=1)
    living = sae.encoder[~dead]
    length = living.norm(dim=1).mean() if len(living) else torch.ones(())
    sae.encoder[chosen] = 0.2 * length * toward
    sae.b_enc[chosen] = 0.0
    sae.usage.reset(chosen)
    for parameter in (sae.decoder, sae.encoder, sae.b_enc):
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value[chosen] = 0.0
    return len(chosen)
