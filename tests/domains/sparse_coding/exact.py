"""Brute force over all states, written independently of the library: for small H only."""

from __future__ import annotations

from itertools import product

import torch
from torch.distributions import MultivariateNormal

from gossamer.domains.sparse_coding.discrete import DiscreteLinear
from gossamer.domains.sparse_coding.maximum import MaximalCauses, soft_maximum
from gossamer.domains.sparse_coding.spike_slab import SpikeSlab
from gossamer.domains.sparse_coding.states import StateSpace

F64 = torch.float64


def states_of(units, values=(0.0, 1.0)):
    return torch.tensor(list(product(values, repeat=units)), dtype=F64)


def gaussian(y, mean, covariance):
    """log N(y_n; mean_s, covariance_s), (n, s)."""
    return MultivariateNormal(mean, covariance).log_prob(y[:, None])


def linear_joint(params, y, values):
    """States and log p(y, s) of the linear discrete model."""
    s = states_of(params["W"].shape[1], (0.0, *values))
    order = (0.0, *values)
    prior = sum(params["prior"][k].log() * (s == v).sum(1) for k, v in enumerate(order))
    cov = params["sigma"].square() * torch.eye(y.shape[1], dtype=F64)
    return s, prior + gaussian(y, s @ params["W"].T, cov)


def maximum_joint(params, y, rho):
    s = states_of(params["W"].shape[1])
    h = s.shape[1]
    padded = torch.where(s > 0, torch.arange(h), h)
    mean = soft_maximum(params["W"], padded, rho)
    prior = s.sum(1) * params["pi"].log() + (h - s.sum(1)) * (1 - params["pi"]).log()
    return s, prior + gaussian(y, mean, params["sigma"].square() * torch.eye(y.shape[1], dtype=F64))


def slab_joint(params, y):
    """States, log p(y, s), and E[s z | s, y] (n, s, H) by conditioning the joint Gaussian of (z, y)."""
    W, mu, psi, sigma = (params[name] for name in ("W", "mu", "psi", "sigma"))
    s = states_of(W.shape[1])
    noise = sigma if sigma.ndim == 2 else torch.diag(sigma.square().expand(len(W)))
    prior = (s * params["pi"].log() + (1 - s) * (1 - params["pi"]).log()).sum(1)
    joint, means = [], []
    for state, p in zip(s, prior, strict=True):
        basis = W * state
        cov = noise + (basis * psi) @ basis.T
        joint.append(p + MultivariateNormal(basis @ mu, cov).log_prob(y))
        gain = (psi[:, None] * basis.T) @ torch.linalg.inv(cov)
        means.append(state * (mu + (y - basis @ mu) @ gain.T))
    return s, torch.stack(joint, 1), torch.stack(means, 1)


def make(name, units=4, dimensions=3, n=40, active=None, seed=0):
    """(model, parameters, data): everything random, no unit or value special."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    values = {"tsc": (-1.0, 1.0), "dsc": (1.0, 2.0)}.get(name, (1.0,))
    space = StateSpace(units, units, active or units, values)
    y, W, sigma = 1.5 * normal(n, dimensions), normal(dimensions, units), torch.tensor(0.7, dtype=F64)
    if name in ("bsc", "tsc", "dsc"):
        prior = {"tsc": [0.6, 0.2, 0.2], "dsc": [0.6, 0.3, 0.1]}.get(name, [0.7, 0.3])
        params = {"W": W, "prior": torch.tensor(prior, dtype=F64), "sigma": sigma}
        return DiscreteLinear(space, tied=name == "tsc"), params, y
    if name in ("mca", "mmca"):
        W = W.abs() + 0.1 if name == "mca" else W
        return (
            MaximalCauses(space, name == "mmca"),
            {"W": W, "pi": torch.tensor(0.3, dtype=F64), "sigma": sigma},
            y.abs(),
        )
    noise = name.removeprefix("gsc-")
    root = normal(dimensions, dimensions)
    sigmas = {"scalar": sigma, "diagonal": 0.5 + normal(dimensions).abs()}
    sigmas["full"] = root @ root.T + torch.eye(dimensions, dtype=F64)
    unit = torch.rand(units, generator=g, dtype=F64)
    params = {"W": W, "pi": 0.1 + 0.7 * unit, "mu": normal(units), "psi": 0.3 + unit, "sigma": sigmas[noise]}
    return SpikeSlab(space, noise), params, y
