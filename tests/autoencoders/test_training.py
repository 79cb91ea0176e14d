"""Training: it explains, keeps unit rows, resumes to the same bits, switches, revives; metrics."""

import pytest
import torch

from gossamer.autoencoders.losses import AuxK, AuxZipf, revival
from gossamer.autoencoders.metrics import absorption, density_histogram, measure, recovered, true_features_found
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.revival import resample
from gossamer.autoencoders.selection import FeatureChoice, Gated, JumpReLU, MutualChoice, ReLU, TokenChoice
from gossamer.autoencoders.start import geometric_median, start_from
from gossamer.autoencoders.training import Plan, Switch, optimiser, train
from gossamer.data import Batches
from gossamer.errors import ConfigError, DataError, NumericsError, ShapeError
from gossamer.runs.folder import RunFolder
from gossamer.runs.signals import Interrupted
from gossamer.training.config import TrainConfig

X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0)) + 3.0


def config(steps, **options):
    settings = {"optim": optimiser(24, steps, 3e-3), "clip": 1.0, "device": "cpu", "checkpoint_every": 0}
    return TrainConfig(steps=steps, **settings | options)


def batches(size=64):
    return Batches([X], size, seed=1, shuffle=True)


@pytest.mark.parametrize(
    "select", [TokenChoice(4), MutualChoice(4), FeatureChoice(4), ReLU(4), Gated(4), JumpReLU(4)], ids=lambda s: s.name
)
def test_training_explains_and_keeps_unit_rows(select):
    sae = SparseAutoencoder(8, 24, select)
    start_from(sae, (X,))
    before = measure(sae, [X], batch=True)
    train(sae, batches(), config(60), Plan(aux=None))
    after = measure(sae, [X], batch=True)
    assert after.fvu < before.fvu or after.l0 < 0.7 * before.l0
    assert not sae.training
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(24), atol=1e-6)
    if select.chooses:
        assert after.l0 <= 4
    measure(sae, [X])  # by thresholds, which training has estimated


class StopAt(Batches):
    """Batches that raise SIGTERM's exception half way."""

    def batch(self, step):
        if step == 20:
            raise Interrupted(15)
        return super().batch(step)


@pytest.mark.parametrize(
    ("select", "plan"),
    [
        (MutualChoice(3), Plan(AuxZipf(window=128), Switch(0.4, FeatureChoice(3, "zipf")))),
        (MutualChoice(3), Plan(AuxK(window=128), resample_every=8, window=128, dense_until=0.3)),
        (Gated(3), Plan(None)),
        (JumpReLU(3), Plan(None)),
    ],
    ids=("phased", "revived", "gated", "jumprelu"),
)
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, select, plan):
    whole, parted = (SparseAutoencoder(8, 24, select, prefixes=(8, 24)) for _ in range(2))
    settings = config(40, checkpoint_every=10)
    train(whole, batches(), settings, plan)
    with pytest.raises(Interrupted):
        train(parted, StopAt([X], 64, seed=1, shuffle=True), settings, plan, run=tmp_path / "run")
    again = SparseAutoencoder(8, 24, select, prefixes=(8, 24), seed=5)
    again.select = parted.select if plan.switch is None and not plan.dense_until else select
    train(again, batches(), settings, plan, run=RunFolder(tmp_path / "run"), resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) or bool(value.isnan().any()), name


def test_the_switch_changes_the_selection_and_fits_the_law():
    sae = SparseAutoencoder(8, 24, MutualChoice(3))
    train(sae, batches(), config(40), Plan(None, Switch(0.5, FeatureChoice(3, "zipf"))))
    assert sae.select.name == "feature"
    assert float(sae.law[0]) >= 0
    assert measure(sae, [X], batch=True).dead == 0


def test_annealing_ends_at_k():
    sae = SparseAutoencoder(8, 24, TokenChoice(2))
    train(sae, batches(), config(20), Plan(None, dense_until=0.5))
    assert sae.select == TokenChoice(2)


def _with_dead(dead):
    sae = SparseAutoencoder(8, 24, MutualChoice(3))
    counts = torch.arange(1, 25).flip(0)
    counts[dead] = 0
    for _ in range(3):
        sae.usage.update(counts, 64)
    return sae


def test_aux_zipf_with_small_c_is_aux_k():
    sae = _with_dead([3, 20])
    few, one = AuxZipf(c=1e-9, window=64), AuxK(window=64)
    assert few.weights(sae).nonzero().flatten().tolist() == [3, 20]
    assert torch.equal(few.weights(sae), one.weights(sae))
    u, residual = torch.randn(9, 8), torch.randn(9, 8)
    losses = [float(revival(sae, u, residual, aux.weights(sae), aux.k).detach()) for aux in (few, one)]
    assert losses[0] == losses[1] > 0


def test_without_under_used_features_the_loss_is_zero():
    sae = _with_dead([])
    assert float(revival(sae, X, X, AuxK(window=64).weights(sae), 8).detach()) == 0
    assert float(revival(sae, X, torch.ones(9, 8), torch.ones(24), 8).detach()) == 0  # no variance to explain


def test_revival_is_its_formula():
    sae, u, residual = _with_dead([5]), torch.randn(9, 8), torch.randn(9, 8)
    z = (u @ sae.encoder[5] + sae.b_enc[5]).relu()
    wanted = (residual - z[:, None] * sae.decoder[5]).square().sum() / (residual - residual.mean(0)).square().sum()
    assert float(revival(sae, u, residual, AuxK(window=64).weights(sae), 8).detach()) == pytest.approx(
        float(wanted.detach()), rel=1e-5
    )


def test_resampling_points_dead_features_at_residuals_and_clears_their_moments():
    sae = SparseAutoencoder(8, 24, TokenChoice(2))
    optimizer = torch.optim.Adam(sae.parameters(), 0.1)
    sae(X).square().mean().backward()
    optimizer.step()
    dead = torch.zeros(24, dtype=torch.bool)
    dead[[2, 7]] = True
    residual = torch.zeros(4, 8)
    residual[1, 0], residual[3, 1] = 5.0, -2.0
    kept = sae.decoder.detach().clone()
    assert resample(sae, optimizer, X[:4], residual, dead) == 2
    assert sorted(sae.decoder[dead].abs().argmax(1).tolist()) == [0, 1]
    assert torch.equal(sae.decoder[~dead], kept[~dead])
    assert float(optimizer.state[sae.encoder]["exp_avg"][dead].abs().sum()) == 0


def test_a_transcoder_learns_its_target():
    target = X @ torch.randn(8, 5, generator=torch.Generator().manual_seed(3)) * 10
    sae = SparseAutoencoder(8, 24, TokenChoice(8), d_out=5)
    data = Batches([X, target], 64, seed=0, shuffle=True)
    train(sae, data, config(150), Plan(None))
    assert measure(sae, [(X, target)]).fvu < 0.35
    with pytest.raises(ShapeError, match="needs targets of that width, got 8"):
        train(SparseAutoencoder(8, 24, TokenChoice(3), d_out=5), batches(), config(2), Plan(None, normalise=False))


def _of(select):
    return SparseAutoencoder(8, 24, select)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: train(s, Batches([X.half()], 64), config(2)), ConfigError, "float16"),
        (lambda s: train(s, batches(), config(2, precision="fp16")), ConfigError, "float16"),
        (lambda s: train(s, [X], config(2)), ConfigError, r"wrap activations: gossamer\.data\.Batches"),
        (lambda s: train(s, Batches([X[:, :4]], 64), config(2)), ShapeError, "takes activations"),
        (lambda s: train(s, Batches([X.log()], 64), config(2)), NumericsError, "NaN or infinite"),
        (lambda s: train(_of(ReLU(2)), batches(), config(2), Plan(switch=Switch())), ConfigError, "cannot switch"),
        (lambda s: train(_of(FeatureChoice(2)), batches(8), config(2)), ConfigError, "raise the batch size"),
        (lambda s: Plan(dense_until=1.0), ConfigError, "cannot plan"),
        (lambda s: Switch(1.5), ConfigError, "switch at=1.5"),
        (lambda s: AuxK(0), ConfigError, "auxiliary loss"),
        (lambda s: AuxZipf(0.0), ConfigError, "c=0.0"),
        (lambda s: measure(s, []), DataError, "no activations"),
        (lambda s: measure(s, [torch.ones(4, 8)], batch=True), NumericsError, "do not vary"),
        (lambda s: recovered(1.0, 1.0, 1.0), NumericsError, "ablating"),
        (lambda s: absorption(torch.ones(3, 2), torch.ones(3)), DataError, "with the property and without"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(SparseAutoencoder(8, 24, MutualChoice(3)))


def test_figures_of_a_known_code():
    sae = SparseAutoencoder(2, 2, TokenChoice(2))
    with torch.no_grad():
        sae.encoder.copy_(torch.eye(2))
        sae.decoder.copy_(torch.eye(2))
    x = torch.tensor([[1.0, 0.0], [3.0, -2.0], [5.0, 0.0]])
    found = measure(sae, [x[:1], x[1:]])
    assert found.fvu == pytest.approx(4 / (8 + 8 / 3))
    assert (found.l0, found.l0_std, found.dead, found.tokens) == (1.0, 0.0, 0.5, 3)
    assert found.density.tolist() == [1.0, 0.0]
    assert true_features_found(sae, torch.tensor([[0.0, 2.0], [1.0, 1.0]])) == 0.5


def test_small_measures():
    assert recovered(2.0, 2.5, 4.0) == 0.75
    assert geometric_median(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])).norm() < 1
    assert sum(density_histogram(torch.tensor([0.0, 1.0, 0.1]))[1]) == 3


def test_absorption_is_seen():
    labels = torch.tensor([1, 1, 1, 1, 0, 0]).bool()
    own = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    other = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    found = absorption(torch.stack([own, other], 1), labels)
    assert (found["recall"], found["absorbed"], found["feature"]) == (0.75, 0.25, 0)
    assert absorption(torch.stack([own, 0 * own], 1), labels)["absorbed"] == 0
