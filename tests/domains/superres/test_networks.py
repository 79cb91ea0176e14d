"""Networks, upscaling, training with a recipe, measuring, and the command line."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from gossamer.cli.app import app
from gossamer.domains import superres as sr
from gossamer.domains.superres.cat import CAT
from gossamer.domains.superres.generated import dead_leaves, leaf_pairs
from gossamer.domains.superres.pictures import Picture
from gossamer.domains.superres.run import authors_optimiser, method
from gossamer.domains.superres.swinir import SwinIR
from gossamer.domains.superres.windows import merge, padded, partition, relative_index, shift_mask, window_attention
from gossamer.errors import CheckpointError, ConfigError, DataError
from gossamer.sparsify.groups import select
from gossamer.training.config import TrainConfig

CliRunner = pytest.importorskip("typer.testing").CliRunner
PARAMETERS = {"edsr-l": 40_729_603, "edsr-baseline": 1_369_859, "swinir-light": 910_152, "cat-r": 16_475_615}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_sizes(name):
    """EDSR and SwinIR-light at x2 have exactly the published networks' parameters; CAT-R's are given as 16.6 M."""
    with torch.device("meta"):
        model = sr.build(name, 2)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["edsr-small", "swinir-small", "cat-small"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shapes_and_gradients(name, scale):
    model = sr.build(name, scale)
    x = torch.rand(2, 3, 7, 10)
    out = model(x)
    assert out.shape == (2, 3, 7 * scale, 10 * scale)
    out.sum().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None]
    assert silent == []
    assert len(select(model)) >= 8


def test_edsr_small_starts_from_bicubic():
    x = torch.rand(1, 3, 6, 6)
    torch.testing.assert_close(sr.build("edsr-small", 2)(x), sr.bicubic(x, 2))


# ------------------------------------------------------------------ windows


def test_partition_is_undone_by_merge():
    x = torch.rand(2, 8, 12, 5)
    assert torch.equal(merge(partition(x, (4, 6)), (4, 6), (8, 12)), x)


def naive_attention(qkv, bias, heads, window, shift):
    """Pixel by pixel: each sees those that share its window of the shifted grid."""
    _, height, width, three = qkv.shape
    size = three // 3 // heads
    q, k, v = qkv[0].view(height, width, 3, heads, size).unbind(2)
    index, (h, w) = relative_index(window), window
    out = torch.zeros(height, width, heads, size)

    def cell(y, x):
        y, x = (y - shift[0]) % height, (x - shift[1]) % width  # place in the rolled image
        torn = (y >= height - shift[0] if shift[0] else False, x >= width - shift[1] if shift[1] else False)
        return (y // h, x // w, torn), y % h * w + x % w

    pixels = [(y, x) for y in range(height) for x in range(width)]
    for y, x in pixels:
        home, mine = cell(y, x)
        near = [(p, cell(*p)[1]) for p in pixels if cell(*p)[0] == home]
        for head in range(heads):
            logits = torch.stack(
                [
                    q[y, x, head] @ k[a, b, head] / math.sqrt(size) + bias[head].take(torch.tensor(mine * h * w + at))
                    for (a, b), at in near
                ]
            )
            out[y, x, head] = sum(
                weight * v[a, b, head] for weight, ((a, b), _) in zip(logits.softmax(0), near, strict=True)
            )
    assert index.shape == (h * w, h * w)
    return out.flatten(2)[None]


@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
def test_window_attention_is_the_naive_one(shift):
    qkv, bias = torch.randn(1, 4, 8, 12), torch.randn(2, 8, 8)
    ours = window_attention(qkv, bias, 2, (2, 4), shift)
    torch.testing.assert_close(ours, naive_attention(qkv, bias, 2, (2, 4), shift), rtol=1e-4, atol=1e-5)


def test_shift_mask_and_offsets():
    mask = shift_mask((4, 4), (2, 2), (1, 1))
    assert mask.shape == (4, 1, 4, 4)
    assert bool(mask[0].all())  # an inner window is whole
    assert int(mask[3].sum()) == 4  # the corner one holds four strangers
    index = relative_index((2, 3))
    assert int(index.max()) == 3 * 5 - 1
    assert bool((index.diagonal() == index[0, 0]).all())


def test_padding_mirrors_even_beyond_the_image():
    assert padded(torch.rand(1, 3, 3, 5), (8, 8)).shape == (1, 3, 8, 8)
    assert padded(torch.rand(1, 3, 1, 1), (4, 4)).shape == (1, 3, 4, 4)
    x = torch.rand(1, 1, 5, 6)
    assert torch.equal(padded(x, (8, 8)), F.pad(x, (0, 2, 0, 3), mode="reflect"))


# ------------------------------------------------------------------ upscaling and measuring


def test_tiles_give_the_same_picture():
    model = sr.build("edsr-small", 2).eval()
    image = dead_leaves(50, 3)[:, :37]
    whole, tiled = sr.upscale(model, image, 2), sr.upscale(model, image, 2, tile=16)
    inside = (whole - tiled)[:, 16:-16, 16:-16]  # the border of the image is mirrored for bicubic either way
    assert float(inside.abs().max()) < 1e-5
    with pytest.raises(ConfigError, match="tile"):
        sr.upscale(model, image, 2, tile=0)


def test_kinds_of_pictures_are_kept():
    model = sr.bicubic_by(3)
    picture = Picture(dead_leaves(12)[:1].expand(3, -1, -1), torch.rand(1, 12, 12), grey=True, deep=False)
    out = sr.upscale_picture(model, picture, 3)
    assert out.rgb.shape == (3, 36, 36)
    assert out.alpha.shape == (1, 36, 36)
    assert out.grey
    assert torch.equal(out.rgb[0], out.rgb[1])


def test_scores():
    pairs = leaf_pairs(2, 2, 32)
    score = sr.evaluate(sr.bicubic_by(2), pairs, 2)
    assert 15 < score.psnr < 40
    assert 0.3 < score.ssim < 1
    assert score.pictures == 2
    by_hand = []
    for low, high in pairs:
        out = sr.bicubic(low / 255, 2).clamp(0, 1).mul(255).round()
        y = [65.481 / 255, 128.553 / 255, 24.966 / 255]
        luma = [sum(c * plane for c, plane in zip(y, image.double(), strict=True)) for image in (out, high)]
        error = (luma[0] - luma[1])[2:-2, 2:-2].square().mean()
        by_hand.append(10 * math.log10(255**2 / float(error)))
    assert score.psnr == pytest.approx(sum(by_hand) / 2, abs=1e-6)
    with pytest.raises(DataError, match="no pictures"):
        sr.evaluate(sr.bicubic_by(2), [], 2)


# ------------------------------------------------------------------ training


def config(steps=12, **options):
    return TrainConfig(steps=steps, device="cpu", checkpoint_every=4, optim=authors_optimiser(1e-3), **options)


@pytest.mark.parametrize("name", ["edsr-small", "swinir-small", "cat-small"])
def test_a_recipe_prunes_every_kind_of_network(name):
    torch.manual_seed(0)
    model, masks, result = sr.train(
        sr.build(name, 2), leaf_pairs(4, 2, 32), method("iss_p", 0.5), config(6), patch=16, batch_size=2
    )
    assert masks
    assert not any(key.startswith("tail") for key in masks)
    for key, mask in masks.items():
        assert int((~mask).sum()) == math.ceil(0.5 * mask.numel())
        assert not model.get_parameter(key)[~mask].count_nonzero()
    assert result["density"] == pytest.approx(0.5, abs=0.01)


def test_training_resumes_with_the_same_bits(tmp_path):
    pairs, recipe = leaf_pairs(4, 2, 32), method("iss_p", 0.5)
    runs = []
    for resume in (False, True):
        torch.manual_seed(0)
        model = sr.build("edsr-small", 2)
        if resume:
            for path in (tmp_path / "run").rglob("*"):
                if path.is_file() and "000012" in path.name:
                    path.unlink()
        trained, _, _ = sr.train(
            model, pairs, recipe, config(), patch=16, batch_size=2, folder=tmp_path / "run", resume=resume
        )
        runs.append(trained.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_methods():
    assert method("iss_h", 0.9).select.exclude == ("tail*",)
    assert method("dense", 0.9).name == "dense"
    assert method("iss_p", 0.9, half_life=1.0).weight_ops[0].alpha == 0.5
    with pytest.raises(ConfigError, match="iss_h shrinks no weights by a factor"):
        method("iss_h", 0.9, half_life=1.0)
    with pytest.raises(ConfigError, match="did you mean 'iss_"):
        method("iss_q", 0.9)


def test_saved_networks(tmp_path):
    torch.manual_seed(0)
    model = sr.build("swinir-small", 2).eval()
    sr.save(tmp_path / "m", model, "swinir-small", {}, {})
    x = torch.rand(1, 3, 9, 9)
    assert torch.equal(sr.load(tmp_path / "m")(x), model(x))
    with pytest.raises(CheckpointError):
        sr.load(tmp_path)
    sr.save(tmp_path / "n", model, "swin", {}, {})
    with pytest.raises(CheckpointError, match="no super-resolution network"):
        sr.load(tmp_path / "n")


def test_bad_networks():
    with pytest.raises(ConfigError, match="did you mean 'edsr-l'"):
        sr.build("edsr", 2)
    with pytest.raises(ConfigError, match="2, 3, 4 or 8"):
        sr.build("edsr-small", 5)
    with pytest.raises(ConfigError, match="heads"):
        SwinIR(2, width=10, heads=4)
    with pytest.raises(ConfigError, match="even number of heads"):
        CAT(2, width=30, heads=5)


# ------------------------------------------------------------------ command line


def test_the_command_line_trains_measures_and_upscales(tmp_path):
    high = tmp_path / "HR"
    high.mkdir()
    for number in range(3):
        sr.write_picture(high / f"{number}.png", Picture(dead_leaves(40, number)))
    run = CliRunner()
    options = [
        "--steps",
        "6",
        "--patch",
        "16",
        "--batch",
        "2",
        "--sparsity",
        "0.5",
        "-o",
        str(tmp_path / "m"),
        "--json",
    ]
    done = run.invoke(app, ["superres", "train", "--data", str(high), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["density"] == pytest.approx(0.5, abs=0.01)
    done = run.invoke(app, ["superres", "evaluate", "-d", str(high), "-m", str(tmp_path / "m"), "--json"])
    assert set(json.loads(done.stdout)) == {"network", "bicubic"}
    page, out = tmp_path / "page.html", tmp_path / "big.png"
    done = run.invoke(
        app,
        ["superres", "upscale", str(high / "0.png"), "-m", str(tmp_path / "m"), "-o", str(out), "--report", str(page)],
    )
    assert done.exit_code == 0, done.output
    assert sr.read_picture(out).rgb.shape == (3, 80, 80)
    html = page.read_text()
    assert html.count("data:image/png;base64,") == 4
    assert "before: bicubic" in html
    assert "zeros among the weights" in html
