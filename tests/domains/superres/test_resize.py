"""Bicubic resizing against Pillow and closed forms; patches and folders; pictures of every kind."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.superres.resize import bicubic, cropped, degrade
from gossamer.errors import ConfigError, ShapeError

Image = pytest.importorskip("PIL.Image")


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1 / 4, 1 / 3, 1 / 2, 1.0, 2, 3, 4]))
def test_sizes_and_constants(height, width, factor):
    out = bicubic(torch.full((2, 3, height, width), 0.7), factor)
    assert out.shape == (2, 3, math.ceil(height * factor - 1e-6), math.ceil(width * factor - 1e-6))
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_factor_one_changes_nothing_and_flips_commute():
    x = torch.rand(3, 13, 17)
    torch.testing.assert_close(bicubic(x, 1), x)
    for factor in (1 / 2, 1 / 3, 2):
        small = x[:, :12, :12]
        torch.testing.assert_close(bicubic(small.flip(1), factor), bicubic(small, factor).flip(1))


def test_weights_of_halving_are_the_known_ones():
    """Stretched kernel at half a pixel: the eight taps of antialiased halving, symmetric, from Keys' formula."""
    impulse = torch.zeros(1, 16, 16, dtype=torch.float64)
    impulse[0, 7, :] = 1.0  # one row: the answer is the tap that each new row puts on it
    taps = bicubic(impulse, 0.5)[0, :, 8 // 2]
    keys = lambda x: 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2  # noqa: E731
    expected = [0.5 * keys(abs(2 * row + 0.5 - 7) / 2) if abs(2 * row + 0.5 - 7) < 4 else 0.0 for row in range(8)]
    torch.testing.assert_close(taps, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_inside_it_is_pillows_antialiased_bicubic(scale):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    size = (60 // scale, 48 // scale)
    theirs = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).astype(int)
    ours = degrade(torch.from_numpy(pixels).permute(2, 0, 1) / 255, scale)
    ours = (ours * 255).round().int().permute(1, 2, 0).numpy()
    assert np.abs(theirs - ours)[3:-3, 3:-3].max() <= 1  # Pillow rounds between its two passes


def test_borders_are_mirrored():
    x = torch.rand(1, 8, 8)
    mirrored = torch.cat([x.flip(2), x, x.flip(2)], 2)
    mirrored = torch.cat([mirrored.flip(1), mirrored, mirrored.flip(1)], 1)
    torch.testing.assert_close(bicubic(x, 0.5), bicubic(mirrored, 0.5)[:, 4:8, 4:8])
    torch.testing.assert_close(bicubic(x, 2), bicubic(mirrored, 2)[:, 16:32, 16:32])


def test_degraded_images_are_8_bit_and_crops_divide():
    low = degrade(torch.rand(3, 12, 18), 3)
    torch.testing.assert_close((low * 255).round() / 255, low)
    assert cropped(torch.rand(3, 13, 20), 3).shape == (3, 12, 18)
    assert cropped(torch.rand(3, 13, 20), 2).shape == (3, 12, 20)


def test_bad_input():
    with pytest.raises(ShapeError, match="scale 3 does not divide an image of 10x12"):
        degrade(torch.rand(3, 10, 12), 3)
    with pytest.raises(ShapeError, match="smaller than the scale"):
        cropped(torch.rand(3, 2, 12), 3)
    with pytest.raises(ConfigError, match="must be positive"):
        bicubic(torch.rand(3, 4, 4), 0.0)
    with pytest.raises(ShapeError, match="needs images"):
        bicubic(torch.rand(4), 2)
