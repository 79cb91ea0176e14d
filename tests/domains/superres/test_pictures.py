"""Pictures of every kind keep their kind; folders, pairs and patches."""

import numpy as np
import pytest
import torch

from gossamer.domains.superres.data import Patches, read_pairs
from gossamer.domains.superres.generated import dead_leaves, leaf_pairs
from gossamer.domains.superres.pictures import Picture, picture_files, read_picture, write_picture
from gossamer.domains.superres.resize import degrade
from gossamer.errors import ConfigError, DataError, ShapeError

Image = pytest.importorskip("PIL.Image")


def picture(height=20, width=24, **options):
    return Picture(
        torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width)) / 255).float(), **options
    )


def save(path, array, mode=None):
    Image.fromarray(array, mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


def test_rgb_round_trip(tmp_path):
    write_picture(tmp_path / "a.png", picture())
    again = read_picture(tmp_path / "a.png")
    assert torch.equal(again.rgb, picture().rgb)
    assert (again.alpha, again.grey, again.deep) == (None, False, False)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "P", "1"])
def test_other_kinds_round_trip(mode, tmp_path):
    source = tmp_path / "in.png"
    rng = np.random.default_rng(0)
    if mode == "I;16":
        values = rng.integers(0, 65536, (9, 11)).astype(np.uint16)
        Image.fromarray(values).save(source)
    else:
        Image.fromarray(rng.integers(0, 256, (9, 11, 4), dtype=np.uint8), "RGBA").convert(mode).save(source)
    read = read_picture(source)
    assert read.rgb.shape == (3, 9, 11)
    assert read.grey == (mode in ("L", "LA", "I;16", "1"))
    assert read.deep == (mode == "I;16")
    assert (read.alpha is not None) == (mode in ("LA", "RGBA", "P"))  # this palette holds opacity
    assert 0 <= float(read.rgb.min()) <= float(read.rgb.max()) <= 1
    write_picture(tmp_path / "out.png", read)
    again = read_picture(tmp_path / "out.png")
    assert torch.equal(again.rgb, read.rgb)
    assert (again.grey, again.deep) == (read.grey, read.deep)
    if read.alpha is not None:
        assert torch.equal(again.alpha, read.alpha)


def test_bad_pictures(tmp_path):
    with pytest.raises(DataError, match=r"cannot read picture .*no\.png"):
        read_picture(tmp_path / "no.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 30)
    with pytest.raises(DataError, match="cannot read picture"):
        read_picture(tmp_path / "bad.png")
    write_picture(tmp_path / "cut.png", picture())
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot read picture"):
        read_picture(tmp_path / "cut.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_picture(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"choose one of \.png"):
        write_picture(tmp_path / "a.gif", picture())
    with pytest.raises(DataError, match="no transparency"):
        write_picture(tmp_path / "a.jpg", picture(alpha=torch.ones(1, 20, 24)))
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        picture_files(empty)
    with pytest.raises(DataError, match="no folder"):
        picture_files(tmp_path / "none")


@pytest.fixture
def folder(tmp_path):
    high = tmp_path / "HR"
    high.mkdir()
    for name, size in (("0001", (40, 45)), ("0002", (33, 48))):
        write_picture(high / f"{name}.png", picture(*size))
    return high


def test_pairs_are_cut_and_degraded(folder):
    pairs = read_pairs(folder, 2)
    assert [tuple(high.shape[1:]) for _, high in pairs] == [(40, 44), (32, 48)]
    for low, high in pairs:
        assert torch.equal(low, (degrade(high / 255, 2) * 255).round().to(torch.uint8))
    assert len(read_pairs(folder, 2, limit=1)) == 1


def test_pairs_of_two_folders(folder, tmp_path):
    low = tmp_path / "LR" / "X2"
    low.mkdir(parents=True)
    for number, (small, _) in enumerate(read_pairs(folder, 2), 1):
        write_picture(low / f"{number:04d}x2.png", Picture(small / 255))
    for (a, b), (c, d) in zip(read_pairs(folder, 2, low), read_pairs(folder, 2), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    (low / "0001x4.png").write_bytes((low / "0001x2.png").read_bytes())
    with pytest.raises(ShapeError, match=r"0001x4\.png of 20x22 times 4"):
        read_pairs(folder, 4, low)
    (low / "0002x2.png").unlink()
    with pytest.raises(DataError, match=r"holds neither 0002x2\.png nor 0002\.png"):
        read_pairs(folder, 2, low)


def test_patches_show_the_same_place_in_both(folder):
    pairs = read_pairs(folder, 2)
    patches = Patches(pairs, 2, patch=16, batch_size=6, seed=3)
    low, high = patches.batch(5)
    assert low.shape == (6, 3, 8, 8)
    assert high.shape == (6, 3, 16, 16)
    again = Patches(pairs, 2, patch=16, batch_size=6, seed=3).batch(5)
    assert torch.equal(low, again[0])
    assert torch.equal(high, again[1])
    assert not torch.equal(low, patches.batch(6)[0])
    inside = (low[:, :, 2:-2, 2:-2] - degrade(high, 2)[:, :, 2:-2, 2:-2]).abs().max()
    assert float(inside) <= 1.01 / 255  # the neighbourhood decides near the patch's border only
    assert len(list(patches)) == len(patches) == 1


def test_bad_patches(folder):
    pairs = read_pairs(folder, 2)
    with pytest.raises(DataError, match="picture 1 has 32x48 pixels, the patch 36x36"):
        Patches(pairs, 2, patch=36)
    with pytest.raises(ConfigError, match="that scale 2 divides"):
        Patches(pairs, 2, patch=15)
    with pytest.raises(DataError, match="no pictures"):
        Patches([], 2)
    with pytest.raises(ConfigError, match="2, 3, 4 or 8, got 5"):
        read_pairs(folder, 5)
    write_picture(folder / "0003.png", picture(2, 9))
    with pytest.raises(ShapeError, match=r"0003\.png has 2x9 pixels, fewer than the scale 4"):
        read_pairs(folder, 4)


def test_dead_leaves():
    image = dead_leaves(48, 1)
    assert image.shape == (3, 48, 48)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert torch.equal(image, dead_leaves(48, 1))
    assert not torch.equal(image, dead_leaves(48, 2))
    low, high = leaf_pairs(1, 4, 48)[0]
    assert low.shape == (3, 12, 12)
    assert high.dtype == torch.uint8
