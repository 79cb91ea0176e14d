"""The module: codes, modes, scales, gradients, thresholds, nested prefixes, transcoders, bad inputs."""

import warnings

import pytest
import torch

from gossamer.autoencoders.export import folded, to_jumprelu
from gossamer.autoencoders.jump import jump_relu, step
from gossamer.autoencoders.losses import nested_error, nested_error_dense, penalised
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.selection import FeatureChoice, Gated, JumpReLU, MutualChoice, ReLU, TokenChoice
from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.kernels import codes

CHOICES = (TokenChoice(3), MutualChoice(2.5), FeatureChoice(2.0))
ALL = (*CHOICES, ReLU(4), Gated(4), JumpReLU(4))


def _sae(select, d=6, features=16, **options):
    sae = SparseAutoencoder(d, features, select, **options).double()
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return sae


def _x(*shape):
    return torch.randn(*shape, 6, dtype=torch.float64)


@pytest.mark.parametrize("select", ALL, ids=lambda s: s.name)
def test_sparse_and_dense_decoding_agree_and_leading_dimensions_are_batch(select):
    sae, x = _sae(select), _x(4, 5)
    z = sae.encode(x)
    assert z.shape == (4, 5, 16)
    assert torch.allclose(sae.decode(z).reshape(-1, 6), sae.decode(sae.sparse_code(x)), atol=1e-12)
    assert torch.equal(z, sae.encode(x.reshape(20, 6)).reshape(4, 5, 16))


@pytest.mark.parametrize("select", CHOICES, ids=lambda s: s.name)
def test_gradients_of_the_sparse_path_are_those_of_the_dense_one(select):
    sae, x = _sae(select), _x(12)
    error = (sae(x) - x).square().sum(1).mean()
    wanted = torch.autograd.grad(error, list(sae.parameters()))
    u = sae.centred(sae.normalised(x))
    pre = sae.pre(u).detach()
    code = codes.encode(u, sae.encoder, sae.b_enc, pre, sae.select_mask(pre.relu()))
    found, _ = nested_error(sae, code, x)
    got = torch.autograd.grad(found, list(sae.parameters()))
    assert float(found.detach()) == pytest.approx(float(error.detach()))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(got, wanted, strict=True))


def test_unselected_entries_get_no_gradient():
    sae, x = _sae(TokenChoice(1)), _x(3)
    used = sae.encode(x).detach().ne(0).any(0)
    sae(x).sum().backward()
    assert bool((sae.decoder.grad[~used] == 0).all())
    assert bool((sae.b_enc.grad[~used] == 0).all())
    assert bool(sae.b_enc.grad[used].ne(0).all())


@pytest.mark.parametrize("select", ALL, ids=lambda s: s.name)
def test_folding_the_scales_changes_nothing(select):
    sae = _sae(select)
    sae.scale_in.fill_(2.5)
    sae.scale_out.fill_(2.5)
    x = _x(40)
    if select.couples:
        sae.calibrate_threshold([x])
    sae.eval()
    plain = folded(sae)
    assert float(plain.scale_in) == float(plain.scale_out) == 1
    assert torch.allclose(plain(x), sae(x), atol=1e-9)
    assert torch.allclose(plain.encode(x) * 2.5, sae.encode(x), atol=1e-9)


def test_a_scaled_input_equals_a_scale_in_the_module():
    sae, x = _sae(TokenChoice(3)), _x(9)
    plain = sae(x * 3.0) / 3.0
    sae.scale_in.fill_(3.0)
    sae.scale_out.fill_(3.0)
    assert torch.allclose(sae(x), plain)


@pytest.mark.parametrize("select", CHOICES[1:], ids=lambda s: s.name)
def test_by_thresholds_a_token_does_not_see_its_batch(select):
    sae, x = _sae(select), _x(64)
    with pytest.raises(ConfigError, match="calibrate_threshold"):
        sae.eval().encode(x)
    sae.calibrate_threshold([x])
    together = sae.encode(x)
    alone = torch.cat([sae.encode(one[None]) for one in x])
    assert torch.equal(alone != 0, together != 0)
    assert torch.allclose(alone, together, atol=1e-12)  # the product's rounding depends on the batch's size
    assert torch.equal(sae.encode(x, batch=True) != 0, together != 0)  # what was calibrated on is coded the same
    jump = to_jumprelu(sae)
    assert jump.select.name == "jumprelu"
    assert torch.allclose(jump.double().encode(x), together, atol=1e-9)


def test_thresholds_follow_the_smallest_selected():
    sae = SparseAutoencoder(2, 3, MutualChoice(1))
    sae.observe(codes.SparseCode.of(torch.tensor([[0.5, 0.0, 2.0]])), rate=0.1)
    sae.observe(codes.SparseCode.of(torch.tensor([[0.0, 1.5, 0.0]])), rate=0.1)
    assert sae.threshold.tolist() == pytest.approx([0.6] * 3)
    each = SparseAutoencoder(2, 3, FeatureChoice(1))
    each.observe(codes.SparseCode.of(torch.tensor([[0.5, 0.0, 2.0], [0.25, 0.0, 0.0]])))
    assert each.threshold.tolist() == [0.25, 0.0, 2.0]
    assert each.calibrated.tolist() == [True, False, True]


def test_pseudo_derivatives_of_jump_relu():
    z = torch.tensor([[0.9, 1.04, 1.2]])
    threshold = torch.ones(3, requires_grad=True)
    step(z, threshold, 0.1).sum().backward()
    assert threshold.grad.tolist() == pytest.approx([0.0, -10.0, 0.0])
    threshold.grad = None
    z.requires_grad_()
    jump_relu(z, threshold, 0.1).sum().backward()
    assert threshold.grad.tolist() == pytest.approx([0.0, -10.0, 0.0])
    assert z.grad.tolist() == [[0.0, 1.0, 1.0]]


def test_gated_loss_is_its_formula():
    sae, x = _sae(Gated(4)), _x(7)
    sae.strength.fill_(0.3)
    u = x - sae.b_dec
    pi = u @ sae.encoder.t() + sae.b_enc
    magnitude = u @ (sae.encoder * sae.r_mag.exp()[:, None]).t() + sae.b_mag
    f = (pi > 0) * magnitude.relu()
    wanted = (x - f @ sae.decoder - sae.b_dec).square().sum(1).mean() + 0.3 * pi.relu().sum(1).mean()
    wanted = wanted + (x - pi.relu() @ sae.decoder - sae.b_dec).square().sum(1).mean()
    assert float(penalised(sae, u, x, 0.0)[0].detach()) == pytest.approx(float(wanted.detach()))


def test_nested_prefixes_share_one_selection():
    sae, x = _sae(MutualChoice(3), prefixes=(4, 9, 16)), _x(8)
    u = x - sae.b_dec
    z = sae.encode(x).detach()
    wanted = sum((z[:, :n] @ sae.decoder[:n] + sae.b_dec - x).square().sum(1).mean() for n in (4, 9, 16)) / 3
    pre = sae.pre(u).detach()
    code = codes.encode(u, sae.encoder, sae.b_enc, pre, sae.select_mask(pre.relu()))
    assert float(nested_error(sae, code, x)[0].detach()) == pytest.approx(float(wanted.detach()))
    assert float(nested_error_dense(sae, z, x)[0].detach()) == pytest.approx(float(wanted.detach()))


def test_a_transcoder_has_its_own_output_width():
    sae = _sae(TokenChoice(3), d_out=3)
    assert sae(_x(5)).shape == (5, 3)
    assert torch.equal(sae.centred(_x(2) * 0), _x(2) * 0)


def test_configurations_rebuild_the_module():
    sae = _sae(FeatureChoice(2.0, "zipf"), prefixes=(4, 16))
    other = SparseAutoencoder.from_config(sae.config()).double()
    other.load(sae.state_dict())
    x = _x(30)
    assert torch.equal(other.encode(x), sae.encode(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SparseAutoencoder(4, 8, TokenChoice(9)), "k=9"),
        (lambda: SparseAutoencoder(0, 8, TokenChoice(2)), "d=0"),
        (lambda: SparseAutoencoder(4, 8, TokenChoice(2), prefixes=(4, 3, 8)), "must increase from above 0 to all 8"),
        (lambda: SparseAutoencoder(4, 8, TokenChoice(2), prefixes=(4, 7)), "must increase"),
        (lambda: SparseAutoencoder(4, 8, TokenChoice(2)).calibrate_threshold([]), "no thresholds to calibrate"),
        (lambda: SparseAutoencoder(4, 8, MutualChoice(2)).calibrate_threshold([]), "no data"),
        (lambda: to_jumprelu(SparseAutoencoder(4, 8, ReLU(2))), "no choice over batches"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_bad_activations_and_checkpoints_are_named():
    sae = SparseAutoencoder(4, 8, TokenChoice(2))
    with pytest.raises(ShapeError, match=r"takes activations \(..., 4\), got \(3, 5\)"):
        sae(torch.zeros(3, 5))
    with pytest.raises(NumericsError, match="1 of 2 activation vectors are NaN or infinite, the first is number 1"):
        sae(torch.tensor([[1.0] * 4, [float("nan")] * 4]))
    with pytest.raises(
        CheckpointError, match=r"this is a 'topk' autoencoder .* the checkpoint of a 'gated' autoencoder"
    ):
        sae.load(SparseAutoencoder(4, 8, Gated(2)).state_dict())
    with pytest.raises(CheckpointError, match="another model"):
        sae.load(SparseAutoencoder(4, 9, TokenChoice(2)).state_dict())
    with pytest.raises(CheckpointError, match="version 99"):
        SparseAutoencoder.from_config(sae.config() | {"version": 99})


def test_doubtful_use_is_warned_of():
    with pytest.warns(UserWarning, match="2 features for 4 dimensions"):
        SparseAutoencoder(4, 2, TokenChoice(1))
    with pytest.warns(UserWarning, match="a batch of one token"):
        SparseAutoencoder(4, 8, MutualChoice(2)).encode(torch.randn(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseAutoencoder(4, 8, TokenChoice(2)).encode(torch.randn(1, 4))
