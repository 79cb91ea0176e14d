"""The same function in another form: without scales, and by thresholds of its own."""

from __future__ import annotations

import copy

import torch

from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import FeatureChoice, Gated, JumpReLU, MutualChoice
from gossamer.errors import ConfigError


@torch.no_grad()
def folded(sae: SparseAutoencoder) -> SparseAutoencoder:
    """The same function without scales: folded(sae)(x) = sae(x), and its codes are sae's divided by scale_out."""
    out = copy.deepcopy(sae)
    ratio, scale = sae.scale_in / sae.scale_out, sae.scale_out
    out.encoder.mul_(ratio)
    for bias in (out.b_enc, out.b_dec, out.threshold, *((out.b_mag,) if isinstance(sae.select, Gated) else ())):
        bias.div_(scale)
    if isinstance(sae.select, JumpReLU):
        out.log_threshold.sub_(scale.log())
    out.scale_in.fill_(1.0)
    out.scale_out.fill_(1.0)
    return out


@torch.no_grad()
def to_jumprelu(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Mutual or feature choice by thresholds as a JumpReLU autoencoder with the same codes.

    Raises:
        ConfigError: another kind, or thresholds that are not known.
    """
    if not isinstance(sae.select, MutualChoice | FeatureChoice):
        raise ConfigError(f"a {sae.select.name!r} autoencoder is no choice over batches")
    d_out = sae.d_out if sae.transcodes else None
    out = SparseAutoencoder(sae.d, sae.features, JumpReLU(sae.select.k), d_out=d_out, prefixes=sae.prefixes)
    own = out.state_dict()
    own |= {name: value for name, value in sae.state_dict().items() if name in own}
    own["log_threshold"] = sae.thresholds().clamp_min(1e-12).log()
    own["strength"] = out.strength
    out.load_state_dict(own)
    return out.eval()
