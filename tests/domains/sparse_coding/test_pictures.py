"""Patches, fields, restored pictures, files and drawings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.sparse_coding import BinarySparseCoding, SpikeSlabSparseCoding, TernarySparseCoding, bars, files
from gossamer.domains.sparse_coding.fields import fit_gabor, is_oriented
from gossamer.domains.sparse_coding.patches import assemble, extract, grey, sample_patches, whitened
from gossamer.domains.sparse_coding.plots import plot_dictionary, plot_pictures, tiles
from gossamer.domains.sparse_coding.restore import default_coder, denoise, inpaint
from gossamer.errors import CheckpointError, ConfigError, DataError, ShapeError

STRIPES = 0.5 + 0.4 * np.sign(np.sin(np.add.outer(np.arange(40), 2 * np.arange(44)) / 4))


@given(
    st.integers(5, 12),
    st.integers(5, 12),
    st.sampled_from([(), (3,)]),
    st.integers(2, 5).flatmap(lambda side: st.tuples(st.just(side), st.integers(1, side))),
)
def test_patches_put_together_are_the_picture(height, width, channels, sizes):
    side, stride = sizes
    picture = np.random.default_rng(0).random((height, width, *channels))
    patches = extract(picture, side, stride)
    assert np.array_equal(patches[0].reshape(side, side, *channels), picture[:side, :side])
    np.testing.assert_allclose(assemble(patches, picture.shape, side, stride), picture)


def test_weights_leave_patches_out():
    patches = extract(np.ones((6, 6)), 3, 3)
    found = assemble(patches, (6, 6), 3, 3, weights=np.array([1.0, 0, 1, 1]))
    assert np.isnan(found[:3, 3:]).all()
    assert (found[3:] == 1).all()


def test_sampled_patches_lie_in_the_pictures():
    pictures = [np.full((9, 9), 1.0), np.full((12, 8), 2.0)]
    patches = sample_patches(pictures, 50, 4, seed=0)
    assert patches.shape == (50, 16)
    assert set(np.unique(patches)) == {1.0, 2.0}


def test_a_whitened_picture_has_a_flat_spectrum():
    random = np.random.default_rng(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    f[0, 0] = 1
    natural = np.fft.ifft2(np.fft.fft2(random.normal(size=(64, 64))) / f).real
    power = np.abs(np.fft.fft2(whitened(natural))) ** 2
    low, high = power[(f > 0.03) & (f < 0.1)].mean(), power[(f > 0.15) & (f < 0.25)].mean()
    assert 0.5 < low / high < 2


def test_grey_values():
    assert grey(np.ones((2, 2, 4))).shape == (2, 2)
    np.testing.assert_allclose(grey(np.ones((2, 2, 3))), 1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: extract(np.zeros(4), 2), ShapeError),
        (lambda: extract(np.zeros((4, 4)), 5), ConfigError),
        (lambda: extract(np.zeros((4, 4)), 2, 3), ConfigError),
        (lambda: assemble(np.zeros((3, 4)), (4, 4), 2, 2), ShapeError),
        (lambda: fit_gabor(np.zeros((8, 8))), ShapeError),
        (lambda: tiles(np.zeros((3, 10)), (3, 3)), ShapeError),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error):
        call()


@pytest.mark.parametrize("angle", [0.0, 0.6, 2.0])
def test_a_gabor_function_is_fitted_exactly(angle):
    y, x = np.mgrid[:10, :10] - 4.5
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    field = np.exp(-0.5 * ((u / 1.5) ** 2 + (v / 2.5) ** 2)) * np.cos(2 * np.pi * 0.2 * u + 0.7)
    found = fit_gabor(field)
    assert found.r2 > 0.999
    assert found.frequency == pytest.approx(0.2, abs=0.01)
    assert np.cos(found.orientation - angle) ** 2 > 0.999
    assert (found.along, found.across) == (pytest.approx(1.5, abs=0.1), pytest.approx(2.5, abs=0.1))
    assert is_oriented(found, 10)
    assert not is_oriented(fit_gabor(np.random.default_rng(0).normal(size=(10, 10))), 10)
    assert not is_oriented(fit_gabor(np.exp(-0.5 * (y**2 + x**2) / 4)), 10)


def error(a, b):
    return float(np.sqrt(((a - b) ** 2).mean()))


def test_noise_goes_and_its_strength_is_found():
    noisy = STRIPES + 0.2 * np.random.default_rng(0).normal(size=STRIPES.shape)
    found = denoise(noisy, default_coder(n_components=12, steps=20), side=6, stride=2, patches=500)
    assert error(found.picture, STRIPES) < 0.55 * error(noisy, STRIPES)
    assert found.sigma == pytest.approx(0.2, abs=0.05)
    again = denoise(noisy, found.coder, side=6, stride=2)  # learned already: used as it is
    assert np.array_equal(again.picture, found.picture)


@pytest.mark.parametrize("model", [SpikeSlabSparseCoding, TernarySparseCoding])
def test_holes_are_filled(model):
    mask = np.random.default_rng(0).random(STRIPES.shape) < 0.3
    coder = model(8, n_candidates=4, max_active=2, steps=15, missing=True, random_state=0)
    found = inpaint(STRIPES, mask, coder, side=6, stride=2, patches=400)
    assert np.array_equal(found.picture[~mask], STRIPES[~mask])
    assert error(found.picture[mask], STRIPES[mask]) < 0.6 * STRIPES.std()


def test_colours_are_kept_apart():
    colours = np.stack([STRIPES, 1 - STRIPES, STRIPES], 2)
    noisy = colours + 0.2 * np.random.default_rng(0).normal(size=colours.shape)
    found = denoise(noisy, default_coder(n_components=8, steps=10), side=4, stride=2, patches=300)
    assert error(found.picture, colours) < error(noisy, colours)


def test_pictures_that_cannot_be_restored():
    holes = np.where(STRIPES > 0, STRIPES, STRIPES)
    holes[5:25, 5:25] = np.nan
    with pytest.raises(DataError, match=r"inpaint\(\) fills NaN in"):
        denoise(holes)
    with pytest.raises(DataError, match="choose a larger side"):
        inpaint(holes, coder=default_coder(True, n_components=4, steps=2), side=6, patches=100)
    with pytest.raises(DataError, match="no pixel is missing"):
        inpaint(STRIPES)
    with pytest.raises(DataError, match="every pixel is missing"):
        inpaint(np.full((9, 9), np.nan))
    with pytest.raises(DataError, match="flat"):
        denoise(np.ones((20, 20)))
    with pytest.raises(ShapeError, match="mask must be bool"):
        inpaint(STRIPES, np.zeros(STRIPES.shape))
    with pytest.raises(ConfigError, match="missing=True"):
        inpaint(holes, coder=default_coder())


@pytest.fixture(scope="module")
def coder():
    return SpikeSlabSparseCoding(6, noise="diagonal", steps=10, random_state=0).fit(bars(200, side=3).Y)


def test_a_model_survives_its_file(coder, tmp_path):
    files.save(coder, tmp_path / "a.npz")
    again = files.load(tmp_path / "a.npz")
    Y = bars(20, side=3, seed=1).Y
    assert np.array_equal(again.transform(Y), coder.transform(Y))
    assert again.score(Y) == coder.score(Y)
    assert again.history_ == coder.history_
    with pytest.raises(ConfigError, match="call fit first"):
        files.save(BinarySparseCoding(3), tmp_path / "b.npz")


def test_spoiled_files_are_refused(coder, tmp_path):
    path = tmp_path / "a.npz"
    files.save(coder, path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"no model"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.npz is (no model|damaged, or no model)"):
            files.load(path)
    with pytest.raises(CheckpointError):
        files.load(tmp_path / "absent.npz")
    with pytest.raises(ConfigError, match="did you mean 'gsc'"):
        files.model("gcs")


def test_drawings(coder, tmp_path):
    pytest.importorskip("matplotlib", reason="extra report")
    shown = tiles(coder.components_, (3, 3), columns=4)
    assert shown.shape == (7, 15)
    assert shown[3].min() == 1  # the gap
    assert tiles(np.ones((5, 12)), (2, 2, 3)).shape == (5, 8, 3)
    plot_dictionary(coder, tmp_path / "d.png")
    plot_pictures({"holes": np.where(STRIPES > 0.8, np.nan, STRIPES), "colour": np.ones((4, 4, 3))}, tmp_path / "p.png")
    assert (tmp_path / "d.png").read_bytes()[:4] == (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_picture_files(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="extra sparse_coding")
    for picture in (STRIPES, np.stack([STRIPES] * 3, 2)):
        files.write_picture(tmp_path / "a.png", picture)
        np.testing.assert_allclose(files.read_picture(tmp_path / "a.png"), picture, atol=0.5 / 255 + 1e-9)
    Image.fromarray((STRIPES * 65535).astype(np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_allclose(files.read_picture(tmp_path / "deep.png"), STRIPES, atol=1e-4)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot read picture"):
        files.read_picture(tmp_path / "b.png")
    with pytest.raises(DataError, match="choose one of"):
        files.write_picture(tmp_path / "a.xyz", STRIPES)
