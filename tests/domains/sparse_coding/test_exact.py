"""Exact answers: posteriors by enumeration, EM that never falls, stationary M-steps, known special cases."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch.distributions import Normal

from gossamer.claims.coding_exact import F64, LINEAR, NAMES, SLAB, brute, linear_joint, make, states_of
from gossamer.domains.sparse_coding.anneal import Anneal, Settings
from gossamer.domains.sparse_coding.em import em_step, run
from gossamer.domains.sparse_coding.maximum import derivative, soft_maximum, softmax_power, superpose
from gossamer.domains.sparse_coding.model import Batch
from gossamer.domains.sparse_coding.reducer import Reducer
from gossamer.domains.sparse_coding.spike_slab import SpikeSlab
from gossamer.domains.sparse_coding.states import StateSpace

EXACT = (*LINEAR, *SLAB)


@pytest.mark.parametrize("name", NAMES)
def test_the_posterior_is_that_of_enumeration(name):
    model, params, y = make(name)
    found = model.infer(params, Batch(y), Settings())
    s, joint, latents = brute(name, model, params, y)
    torch.testing.assert_close(found.evidence, joint.logsumexp(1), rtol=1e-10, atol=1e-10)
    q = joint.softmax(1)
    states = model.decode(found, torch.arange(model.space.size).expand(len(y), -1))
    for k, state in enumerate(s):
        here = ((states != 0) == (state != 0)).all(2) if name in SLAB else (states == state).all(2)
        assert (here.sum(1) == 1).all()
        torch.testing.assert_close(found.q[here], q[:, k], rtol=1e-10, atol=1e-10)
        if name in SLAB:
            torch.testing.assert_close(states[here], latents[:, k], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.codes(found), torch.einsum("ns,nsh->nh", q, latents), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.activity(found), q @ (s != 0).double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT)
def test_exact_em_never_falls(name):
    model, params, y = make(name, n=80)
    curve = run(model, Batch(y), 30, Anneal(), torch.Generator(), Reducer(), params).history["log_likelihood"]
    assert min(np.diff(curve)) > -1e-9
    assert curve[-1] - curve[0] > 0.1


@pytest.mark.parametrize("name", [*LINEAR, "gsc-scalar", "gsc-diagonal"])
def test_exact_em_with_missing_values_never_falls(name):
    model, params, y = make(name, n=80)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) > 0.25
    data = Batch(y * mask, mask)
    curve = run(model, data, 30, Anneal(), torch.Generator(), Reducer(), params).history["log_likelihood"]
    assert min(np.diff(curve)) > -1e-9
    assert curve[-1] - curve[0] > 0.1


@pytest.mark.parametrize("name", [*LINEAR, "gsc-diagonal"])
def test_missing_values_are_integrated_out(name):
    model, params, y = make(name)
    mask = torch.ones_like(y, dtype=torch.bool)
    mask[:, 1] = False
    found = model.infer(params, Batch(y * mask, mask), Settings())
    keep = [0, 2]
    rest = params | {"W": params["W"][keep]}
    rest["sigma"] = params["sigma"][keep] if params["sigma"].ndim else params["sigma"]
    torch.testing.assert_close(found.evidence, brute(name, model, rest, y[:, keep])[1].logsumexp(1))
    # a mask that hides nothing changes nothing
    full = torch.ones_like(mask)
    one, two = (em_step(model, params, data, Settings(), Reducer())[0] for data in (Batch(y), Batch(y, full)))
    for key in one:
        torch.testing.assert_close(one[key], two[key])


@pytest.mark.parametrize("name", EXACT)
def test_the_m_step_is_stationary(name):
    """At the new parameters the gradient of the expected complete log-likelihood vanishes."""
    model, params, y = make(name, n=60)
    new, _, _ = em_step(model, params, Batch(y), Settings(), Reducer())
    s, joint, _ = brute(name, model, params, y)
    q = joint.softmax(1).detach()
    free = {key: value.clone().requires_grad_() for key, value in new.items()}
    if name in LINEAR:
        expected = (q * linear_joint(free, y, tuple(model.space.values.tolist()))[1]).sum()
        gradient = torch.autograd.grad(expected, [free["W"], free["sigma"], free["prior"]])
        # the prior moves on the simplex (and, tied, symmetrically)
        slope = gradient[2]
        slope = torch.stack([slope[0], slope[1:].mean()]) if name == "tsc" else slope
        assert float((slope - slope.mean()).abs().max()) < 1e-8 * len(y)
        rest = gradient[:2]
    else:
        rest = torch.autograd.grad(slab_expected(free, params, y, q, s), list(free.values()))
    for part in rest:
        assert float(part.abs().max()) < 1e-6 * len(y)


def slab_expected(free, old, y, q, s):
    """E[log p(y, z, s)] under the old posterior: z of active units are Gaussian given s."""
    noise = [
        p["sigma"] if p["sigma"].ndim == 2 else torch.diag(p["sigma"].square().expand(y.shape[1])) for p in (free, old)
    ]
    total = torch.zeros((), dtype=F64)
    for k, state in enumerate(s):
        on = state.bool()
        basis = old["W"][:, on]
        strength = basis.T @ torch.linalg.inv(noise[1]) @ basis + torch.diag(1 / old["psi"][on])
        spread = torch.linalg.inv(strength) if on.any() else strength
        mean = old["mu"][on] + (y - basis @ old["mu"][on]) @ torch.linalg.inv(noise[1]) @ basis @ spread
        rest = y - mean @ free["W"][:, on].T
        P = torch.linalg.inv(noise[0])
        fit = torch.einsum("nd,de,ne->n", rest, P, rest) + torch.trace(
            free["W"][:, on].T @ P @ free["W"][:, on] @ spread
        )
        slab = ((mean - free["mu"][on]).square() + spread.diagonal()) / free["psi"][on] + free["psi"][on].log()
        prior = (state * free["pi"].log() + (1 - state) * (1 - free["pi"]).log()).sum()
        total = total + (q[:, k] * (prior - 0.5 * fit - 0.5 * torch.logdet(noise[0]) - 0.5 * slab.sum(1))).sum()
    return total


def test_one_unit_is_a_mixture_of_two():
    """BSC with H = 1: one mean at 0, one at W, equal variance; a hand-written EM goes the same way."""
    model, params, y = make("bsc", units=1, n=60)
    W, pi, sigma = params["W"][:, 0], params["prior"][1], params["sigma"]
    for _ in range(5):
        params, _, _ = em_step(model, params, Batch(y), Settings(), Reducer())
        logs = [torch.log(p) + Normal(m, sigma).log_prob(y).sum(1) for p, m in ((1 - pi, torch.zeros_like(W)), (pi, W))]
        r = torch.stack(logs, 1).softmax(1)[:, 1]
        W = (r[:, None] * y).sum(0) / r.sum()
        square = r @ (y - W).square() + (1 - r) @ y.square()
        pi, sigma = r.mean(), (square.sum() / y.numel()).sqrt()
    torch.testing.assert_close(params["W"][:, 0], W)
    torch.testing.assert_close(params["prior"][1], pi)
    torch.testing.assert_close(params["sigma"], sigma)


def test_an_always_active_slab_is_factor_analysis():
    y = torch.randn(200, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    y = y @ torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
    y = y - y.mean(0)
    peer = FactorAnalysis(2, svd_method="lapack").fit(y.numpy())
    model = SpikeSlab(StateSpace(2, 2, 2), "diagonal")
    params = {
        "W": torch.from_numpy(peer.components_.T.copy()),
        "pi": torch.full((2,), 1 - 1e-13, dtype=F64),
        "mu": torch.zeros(2, dtype=F64),
        "psi": torch.ones(2, dtype=F64),
        "sigma": torch.from_numpy(peer.noise_variance_).sqrt(),
    }
    found = model.infer(params, Batch(y - torch.from_numpy(peer.mean_)), Settings())
    np.testing.assert_allclose(found.evidence.numpy(), peer.score_samples(y.numpy()), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.codes(found).numpy(), peer.transform(y.numpy()), rtol=1e-8, atol=1e-8)


def test_the_derivative_of_the_softened_maximum_is_autograds():
    W = torch.randn(4, 3, dtype=F64, requires_grad=True)
    rows = torch.tensor([[0, 1], [1, 2], [0, 3]])  # 3 stands for none
    rho = 3.0
    mean = soft_maximum(W, rows, rho)
    slope = derivative(W.detach(), rows, mean.detach(), rho)
    for u, row in enumerate(rows.tolist()):
        for d in range(4):
            (gradient,) = torch.autograd.grad(mean[u, d], W, retain_graph=True)
            for k, h in enumerate(row):
                wanted = gradient[d, h].abs() if h < 3 else torch.tensor(0.0)
                # magnitudes that cancel have a steeper slope, which is clipped
                assert float(slope[u, k, d]) == pytest.approx(min(float(wanted), 1.0), abs=1e-9)


def test_the_softened_maximum_lies_between_sum_and_maximum():
    W = torch.rand(5, 4, dtype=F64) + 0.1
    rows = torch.tensor([[0, 1, 2], [1, 3, 4]])
    s = torch.tensor([[1.0, 1, 1, 0], [0, 1, 0, 1]], dtype=F64)
    torch.testing.assert_close(soft_maximum(W, rows, 1.0), s @ W.T)
    hard = superpose(W, s)
    assert torch.equal(hard, (s[:, None] * W).amax(2))
    gaps = [float((soft_maximum(W, rows, rho) - hard).abs().max()) for rho in (2, 8, 32, 128)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01
    assert softmax_power(1.0, 1.05) == pytest.approx(21)
    assert softmax_power(1.0, 1.2) == pytest.approx(6)
    assert softmax_power(1e9, 1.05) == pytest.approx(1)
    signed = W * torch.tensor([1.0, -1, 1, -1])
    torch.testing.assert_close(soft_maximum(signed, rows[:, :1], 5.0), signed.T[rows[:, 0]])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_points_and_units_does_not_matter(name):
    model, params, y = make(name, n=50, active=2)
    points, units = torch.randperm(len(y)), torch.randperm(4)
    moved = {key: value[:, units] if key == "W" else value for key, value in params.items()}
    moved |= {key: params[key][units] for key in ("mu", "psi") if key in params}
    if name in SLAB:
        moved["pi"] = params["pi"][units]
    one, first, _ = em_step(model, params, Batch(y), Settings(T=2.0), Reducer())
    two, second, _ = em_step(model, moved, Batch(y[points]), Settings(T=2.0), Reducer())
    assert first == pytest.approx(second)
    torch.testing.assert_close(one["W"][:, units], two["W"])
    torch.testing.assert_close(one["sigma"], two["sigma"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [Settings(), Settings(T=3.0), Settings(T=3.0, anneal_prior=True)])
def test_cutting_the_data_into_batches_changes_nothing(name, settings, monkeypatch):
    from gossamer.domains.sparse_coding import em

    model, params, y = make(name, n=50, active=2)
    settings = Settings(**(vars(settings) | {"ncut": 1.0}))
    whole = em_step(model, params, Batch(y), settings, Reducer())
    monkeypatch.setattr(em, "NUMBERS", 13 * model.width(y.shape[1]))
    parts = em_step(model, params, Batch(y), settings, Reducer())
    assert whole[1] == pytest.approx(parts[1])
    assert whole[2] == parts[2] < 50
    for key in whole[0]:
        torch.testing.assert_close(whole[0][key], parts[0][key], rtol=1e-10, atol=1e-10)


def test_annealing_flattens_the_likelihood_only_or_all():
    model, params, y = make("bsc", n=10)
    s, joint, _ = brute("bsc", model, params, y)
    prior = s.sum(1) * (params["prior"][1] / params["prior"][0]).log() + 4 * params["prior"][0].log()
    for flag, tempered in ((True, joint / 2), (False, prior + (joint - prior) / 2)):
        found = model.infer(params, Batch(y), Settings(T=2.0, anneal_prior=flag))
        mean = tempered.softmax(1) @ s
        torch.testing.assert_close(model.codes(found), mean)
        torch.testing.assert_close(found.evidence, joint.logsumexp(1))


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_model(name):
    model, params, _ = make(name)
    y, s = model.sample(params, 20000, torch.Generator().manual_seed(0))
    active = (s != 0).double().mean(0)
    wanted = 1 - params["prior"][0] if name in LINEAR else params["pi"]
    assert float((active - wanted).abs().max()) < 0.02
    mean = superpose(params["W"], s) if name in ("mca", "mmca") else s @ params["W"].T
    noise = torch.cov((y - mean).T)
    sigma = params["sigma"]
    covariance = sigma if sigma.ndim == 2 else torch.diag(sigma.square().expand(3))
    torch.testing.assert_close(noise, covariance, rtol=0.05, atol=0.05)


def test_reconstruction_is_the_posterior_mean():
    model, params, y = make("mca", n=20)
    found = model.infer(params, Batch(y), Settings())
    s, joint, _ = brute("mca", model, params, y)
    mean = soft_maximum(params["W"], torch.where(s > 0, torch.arange(4), 4), 21.0)
    torch.testing.assert_close(model.reconstruct(params, found), joint.softmax(1) @ mean)
    assert torch.equal(states_of(4), s)
