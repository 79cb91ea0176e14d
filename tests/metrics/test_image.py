"""Image measures by brute force, and against scikit-image where it is installed."""

import math

import numpy as np
import pytest
import torch

from gossamer.errors import ConfigError, ShapeError
from gossamer.metrics.image import luma, luma_psnr_ssim, psnr, ssim

G = torch.Generator().manual_seed(2)
A = torch.rand(3, 24, 20, generator=G, dtype=torch.float64)
B = (A + 0.1 * torch.randn(3, 24, 20, generator=G, dtype=torch.float64)).clamp(0, 1)


def brute_ssim(x, y, data_range, window):
    """The definition, window by window."""
    if window == "gaussian":
        w = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
        w = np.outer(w, w) / w.sum() ** 2
        unbias = 1.0
    else:
        w, unbias = np.full((7, 7), 1 / 49), 49 / 48
    c1, c2, side, out = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, len(w), []
    for i in range(x.shape[0] - side + 1):
        for j in range(x.shape[1] - side + 1):
            p, q = x[i : i + side, j : j + side], y[i : i + side, j : j + side]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, vpq = (unbias * (w * d).sum() for d in ((p - mp) ** 2, (q - mq) ** 2, (p - mp) * (q - mq)))
            out.append((2 * mp * mq + c1) * (2 * vpq + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(out))


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_equals_the_definition(window):
    want = np.mean([brute_ssim(a, b, 1.0, window) for a, b in zip(A.numpy(), B.numpy(), strict=True)])
    assert ssim(A, B, window=window) == pytest.approx(want, abs=1e-12)
    assert ssim(255 * A, 255 * B, 255.0, window) == pytest.approx(want, abs=1e-12)
    assert ssim(A[None], B[None], window=window) == pytest.approx(want, abs=1e-12)


def test_equal_images():
    assert ssim(A, A) == pytest.approx(1.0)
    assert psnr(A, A) == math.inf


def test_psnr_of_a_constant_offset_and_of_a_mask():
    assert psnr(A, A + 0.01) == pytest.approx(40.0)
    assert psnr(255 * A, 255 * A + 255, 255.0) == pytest.approx(0.0)
    half = torch.zeros(24, 20, dtype=torch.bool)
    half[:12] = True
    shifted = A.clone()
    shifted[:, 12:] += 1.0
    shifted[:, :12] += 0.1
    assert psnr(A, shifted, mask=half) == pytest.approx(20.0)
    assert psnr(A, B, mask=torch.ones(24, 20, dtype=torch.bool)) == pytest.approx(psnr(A, B))


def test_luma_of_black_white_and_red():
    colours = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).view(3, 1, 3)
    assert luma(colours)[0].tolist() == pytest.approx([16.0, 235.0, 81.481])


def test_luma_protocol_ignores_the_border_and_sub_bit_noise():
    framed = A.clone()
    framed[:, :2], framed[:, -2:], framed[..., :2], framed[..., -2:] = 0, 0, 0, 0
    assert luma_psnr_ssim(A, framed, border=2)[0] == math.inf
    assert luma_psnr_ssim(A, framed, border=1)[0] < 40
    eight = (A * 255).round() / 255
    assert luma_psnr_ssim(eight, eight + 0.001, border=0) == (math.inf, pytest.approx(1.0))


def test_equal_to_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    color = pytest.importorskip("skimage.color")
    a, b = A.numpy(), B.numpy()
    assert psnr(A, B) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1.0))
    peer = metrics.structural_similarity
    assert ssim(A, B, window="uniform") == pytest.approx(peer(a, b, data_range=1.0, channel_axis=0))
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert ssim(A, B) == pytest.approx(peer(a, b, data_range=1.0, channel_axis=0, **gaussian))
    assert np.allclose(luma(A).numpy(), color.rgb2ycbcr(a, channel_axis=0)[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: psnr(A, A[:, 1:]), ShapeError, "one shape"),
        (lambda: psnr(A, A, 0.0), ConfigError, "data_range must be positive"),
        (lambda: psnr(A, A, mask=torch.zeros(24, 20, dtype=torch.bool)), ShapeError, "selects no pixel"),
        (lambda: ssim(A[:, :8], B[:, :8]), ShapeError, "at least 11x11"),
        (lambda: ssim(A, B, window="gauss"), ConfigError, "did you mean 'gaussian'"),
        (lambda: luma(A[:2]), ShapeError, "RGB"),
        (lambda: luma_psnr_ssim(A, B, -1), ConfigError, "border"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
