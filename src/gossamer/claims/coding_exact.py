"""Sparse coding models by brute force over all states: small H only, and none of the library's own inference."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from gossamer.domains.sparse_coding.anneal import Settings
from gossamer.domains.sparse_coding.discrete import DiscreteLinear
from gossamer.domains.sparse_coding.maximum import MaximalCauses
from gossamer.domains.sparse_coding.model import Model, Params
from gossamer.domains.sparse_coding.spike_slab import SpikeSlab
from gossamer.domains.sparse_coding.states import StateSpace

F64 = torch.float64
LINEAR = ("bsc", "tsc", "dsc")
SLAB = ("gsc-scalar", "gsc-diagonal", "gsc-full")
NAMES = (*LINEAR, "mca", "mmca", *SLAB)
Joint = tuple[Tensor, Tensor, Tensor]  # states (S, H); log p(y, s) (n, S); mean of the latents given s (n, S, H)


def states_of(units: int, values: tuple[float, ...] = (0.0, 1.0)) -> Tensor:
    """All states, (S, H)."""
    return torch.tensor(list(product(values, repeat=units)), dtype=F64)


def _gaussian(y: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(y_n; mean_s, sigma^2 I), (n, S)."""
    return MultivariateNormal(mean, sigma.square() * torch.eye(y.shape[1], dtype=F64)).log_prob(y[:, None])


def linear_joint(params: Params, y: Tensor, values: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """States and log p(y, s) of the linear discrete model."""
    order = (0.0, *values)
    s = states_of(params["W"].shape[1], order)
    prior = torch.stack([params["prior"][k].log() * (s == v).sum(1) for k, v in enumerate(order)]).sum(0)
    return s, prior + _gaussian(y, s @ params["W"].T, params["sigma"])


def maximum_joint(params: Params, y: Tensor, rho: float) -> tuple[Tensor, Tensor]:
    """States and log p(y, s) of MCA or MMCA with the softened maximum of exponent rho."""
    W, pi = params["W"], params["pi"]
    s = states_of(W.shape[1])
    t = (s[:, None] * W.sign() * W.abs() ** rho).sum(2)
    mean = t.sign() * t.abs() ** (1 / rho)
    prior = s.sum(1) * pi.log() + (s.shape[1] - s.sum(1)) * (1 - pi).log()
    return s, prior + _gaussian(y, mean, params["sigma"])


def slab_joint(params: Params, y: Tensor) -> Joint:
    """Of GSC: z integrated out by conditioning the joint Gaussian of (z, y) in every state."""
    W, mu, psi, sigma = (params[name] for name in ("W", "mu", "psi", "sigma"))
    s = states_of(W.shape[1])
    noise = sigma if sigma.ndim == 2 else torch.diag(sigma.square().expand(len(W)))
    prior = (s * params["pi"].log() + (1 - s) * (1 - params["pi"]).log()).sum(1)
    joint, means = [], []
    for state, p in zip(s, prior, strict=True):
        basis = W * state
        covariance = noise + (basis * psi) @ basis.T
        joint.append(p + MultivariateNormal(basis @ mu, covariance).log_prob(y))
        gain = (psi[:, None] * basis.T) @ torch.linalg.inv(covariance)
        means.append(state * (mu + (y - basis @ mu) @ gain.T))
    return s, torch.stack(joint, 1), torch.stack(means, 1)


def brute(name: str, model: Model, params: Params, y: Tensor) -> Joint:
    """The joint of one of `NAMES` by enumeration."""
    if name in SLAB:
        return slab_joint(params, y)
    if name in LINEAR:
        s, joint = linear_joint(params, y, tuple(model.space.values.tolist()))
    else:
        assert isinstance(model, MaximalCauses)
        s, joint = maximum_joint(params, y, model.rho(Settings()))
    return s, joint, s.expand(len(y), -1, -1)


def make(
    name: str, units: int = 4, dimensions: int = 3, n: int = 40, active: int | None = None, seed: int = 0
) -> tuple[Model, Params, Tensor]:
    """(model, parameters, data) of one of `NAMES`: everything random, no unit or value special."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64)

    values = {"tsc": (-1.0, 1.0), "dsc": (1.0, 2.0)}.get(name, (1.0,))
    space = StateSpace(units, units, active or units, values)
    y, W, sigma = 1.5 * normal(n, dimensions), normal(dimensions, units), torch.tensor(0.7, dtype=F64)
    if name in LINEAR:
        prior = {"tsc": [0.6, 0.2, 0.2], "dsc": [0.6, 0.3, 0.1]}.get(name, [0.7, 0.3])
        params = {"W": W, "prior": torch.tensor(prior, dtype=F64), "sigma": sigma}
        return DiscreteLinear(space, tied=name == "tsc"), params, y
    if name in ("mca", "mmca"):
        W = W.abs() + 0.1 if name == "mca" else W
        params = {"W": W, "pi": torch.tensor(0.3, dtype=F64), "sigma": sigma}
        return MaximalCauses(space, name == "mmca"), params, y.abs()
    root, unit = normal(dimensions, dimensions), torch.rand(units, generator=g, dtype=F64)
    sigmas = {"scalar": sigma, "diagonal": 0.5 + normal(dimensions).abs()}
    sigmas["full"] = root @ root.T + torch.eye(dimensions, dtype=F64)
    noise = name.removeprefix("gsc-")
    params = {"W": W, "pi": 0.1 + 0.7 * unit, "mu": normal(units), "psi": 0.3 + unit, "sigma": sigmas[noise]}
    return SpikeSlab(space, noise), params, y  # type: ignore[arg-type]
