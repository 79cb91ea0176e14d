"""`gossamer coding` from a picture file to a dictionary, a clean picture, and a whole one."""

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="extra sparse_coding")
SMALL = ("--components", 6, "--side", 5, "--patches", 200, "--steps", 5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    clean = 0.5 + 0.4 * np.sign(np.sin(np.add.outer(np.arange(32), np.arange(36)) / 3))
    random = np.random.default_rng(0)
    noisy = clean + 0.15 * random.normal(size=clean.shape)
    mask = random.random(clean.shape) < 0.2
    for name, values in (("clean", clean), ("noisy", noisy), ("mask", mask)):
        Image.fromarray((255 * values.clip(0, 1)).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def read(path):
    return np.asarray(Image.open(path)) / 255


def test_learn_and_show(gossamer, pictures, tmp_path):
    pytest.importorskip("matplotlib", reason="extra report")
    model = tmp_path / "d.npz"
    done = gossamer(
        "coding",
        "learn",
        pictures / "clean.png",
        *SMALL,
        "--model",
        "tsc",
        "-o",
        model,
        "--plot",
        tmp_path / "d.png",
        "--json",
    )
    assert done.code == 0, done.err
    assert done.json["dictionary"] == str(model)
    assert np.isfinite(done.json["log_likelihood"])
    assert "200 patches" in done.err
    shown = gossamer("coding", "show", model, "-o", tmp_path / "e.png", "--json")
    assert shown.json["model"] == "TernarySparseCoding"
    assert (tmp_path / "d.png").read_bytes()[:4] == (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG"


def test_denoise_with_a_learned_dictionary_and_without(gossamer, pictures, tmp_path):
    gossamer("coding", "learn", pictures / "noisy.png", *SMALL, "--no-whiten", "-o", tmp_path / "d.npz")
    clean, noisy = read(pictures / "clean.png"), read(pictures / "noisy.png")
    for extra in ((), ("--dictionary", tmp_path / "d.npz")):
        done = gossamer(
            "coding", "denoise", pictures / "noisy.png", *SMALL, *extra, "-o", tmp_path / "out.png", "--json"
        )
        assert done.code == 0, done.err
        found = read(tmp_path / "out.png")
        assert ((found - clean) ** 2).mean() < ((noisy - clean) ** 2).mean()
        assert 20 < done.json["noise_grey_levels"] < 45  # 38 went in, before values were clipped to 0 and 255
        assert done.json["side"] == 5


def test_a_dictionary_brings_its_side_and_learns_the_noise_of_the_picture(gossamer, pictures, tmp_path):
    for name, extra in (("d", ("--no-whiten",)), ("w", ())):
        gossamer("coding", "learn", pictures / "clean.png", *SMALL, *extra, "-o", tmp_path / f"{name}.npz")
    denoise = ("coding", "denoise", pictures / "noisy.png", "--steps", 20, "-o", tmp_path / "out.png", "--json")
    done = gossamer(*denoise, "--dictionary", tmp_path / "d.npz")
    assert done.code == 0, done.err
    assert done.json["side"] == 5
    assert 20 < done.json["noise_grey_levels"] < 60  # the picture's, not that of the clean one
    whitened = gossamer(*denoise, "--dictionary", tmp_path / "w.npz")
    assert whitened.code == 2
    assert "--no-whiten" in whitened.err
    colour = tmp_path / "colour.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(colour)
    other = gossamer("coding", "denoise", colour, "--dictionary", tmp_path / "d.npz", cwd=tmp_path)
    assert other.code == 2
    assert "give it a grey picture" in other.err


def test_a_flat_picture_and_a_mask_of_another_size_are_named(gossamer, pictures, tmp_path):
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(tmp_path / "flat.png")
    done = gossamer("coding", "learn", tmp_path / "flat.png", *SMALL, cwd=tmp_path)
    assert (done.code, "flat.png is flat" in done.err) == (3, True), done.err
    done = gossamer("coding", "inpaint", pictures / "clean.png", "--mask", tmp_path / "flat.png", cwd=tmp_path)
    assert done.code == 2
    assert "40 x 40 pixels" in done.err
    assert "36 x 32" in done.err


def test_inpaint(gossamer, pictures, tmp_path):
    done = gossamer(
        "coding", "inpaint", pictures / "clean.png", "--mask", pictures / "mask.png", *SMALL, "-o", tmp_path / "out.png"
    )
    assert done.code == 0, done.err
    assert "share of pixels missing" in done.out
    clean, mask = read(pictures / "clean.png"), read(pictures / "mask.png") > 0.5
    found = read(tmp_path / "out.png")
    assert np.array_equal(found[~mask], clean[~mask])
    assert np.abs(found - clean)[mask].mean() < 0.4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("learn", "absent.png"), 3, "cannot read picture"),
        (("learn", "{}/clean.png", "--model", "bcs"), 2, "did you mean 'bsc'"),
        (("learn", "{}/clean.png", "--side", 99), 2, "side of the patches"),
        (("learn", "{}/clean.png", "--patches", 0), 2, "--patches"),
        (("learn", "{}/clean.png", "--candidates", 2, "--active", 3), 2, "max_active=3, n_candidates=2"),
        (("denoise", "{}/noisy.png", "--dictionary", "{}/noisy.png"), 3, "is no model of sparse coding"),
        (("denoise", "{}/noisy.png", "--stride", 9), 2, "stride must lie in"),
        (("inpaint", "{}/clean.png"), 2, "--mask"),
        (("show", "absent.npz"), 3, "cannot read the model absent.npz"),
    ],
)
def test_bad_usage(gossamer, pictures, tmp_path, arguments, code, message):
    done = gossamer("coding", *(str(a).format(pictures) for a in arguments), cwd=tmp_path)
    assert done.code == code, done.err
    assert message in done.err
