"""Transforms against loops and hand values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gossamer.data.transforms import (
    CenterCrop,
    Chain,
    Normalise,
    RandomCrop,
    RandomFlip,
    RandomResizedCrop,
    resize,
)
from gossamer.errors import ShapeError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_normalise_scales_bytes_and_leaves_floats() -> None:
    normalise = Normalise((0.5, 0.25), (0.5, 0.25))
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    assert normalise(images, seeded()).flatten().tolist() == [-1.0, 3.0]
    assert normalise(images.float() / 255, seeded()).flatten().tolist() == [-1.0, 3.0]
    with pytest.raises(ShapeError, match="2 channel means"):
        normalise(torch.zeros(1, 3, 4, 4), seeded())


def test_crop_cuts_windows_of_the_padded_image() -> None:
    images = torch.rand(40, 3, 5, 6)
    cut = RandomCrop(2)(images, seeded())
    assert cut.shape == images.shape
    padded = F.pad(images, (2, 2, 2, 2))
    places = set()
    for index in range(40):
        fits = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[index, :, top : top + 5, left : left + 6], cut[index])
        ]
        assert len(fits) == 1
        places.update(fits)
    assert len(places) > 10


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = torch.rand(200, 1, 2, 3)
    flipped = RandomFlip()(images, seeded())
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130
    assert torch.equal(RandomFlip(0.0)(images, seeded()), images)


def test_resized_crop_keeps_constants_and_ranges() -> None:
    images = torch.full((6, 3, 20, 30), 77, dtype=torch.uint8)
    crops = RandomResizedCrop(16)(images, seeded())
    assert crops.shape == (6, 3, 16, 16)
    assert crops.dtype == torch.uint8
    assert (crops == 77).all()
    whole = RandomResizedCrop(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    square = torch.rand(2, 3, 8, 8)
    assert torch.allclose(whole(square, seeded()), square)


def test_center_crop_and_resize() -> None:
    image = torch.arange(36.0).view(1, 1, 6, 6)
    assert CenterCrop(2)(image, seeded()).flatten().tolist() == [14, 15, 20, 21]
    assert resize(image, 3).shape == (1, 1, 3, 3)
    with pytest.raises(ShapeError, match="cannot cut 7 pixels"):
        CenterCrop(7)(image, seeded())


def test_chain_depends_on_the_generator_alone() -> None:
    chain = Chain(RandomCrop(1), RandomFlip(), Normalise((0.0,), (1.0,)))
    images = torch.rand(9, 1, 4, 4)
    assert torch.equal(chain(images, seeded(4)), chain(images, seeded(4)))
    assert not torch.equal(chain(images, seeded(4)), chain(images, seeded(5)))
