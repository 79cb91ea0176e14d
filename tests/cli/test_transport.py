"""`gossamer transport` on small files."""

import csv

import pytest
import torch

from gossamer.transport import KSparse, colour_transfer


def test_tables_are_matched(gossamer, tmp_path):
    order = [2, 0, 3, 1]
    rows = [(0.0, 0.0), (1.0, 5.0), (4.0, 1.0), (9.0, 9.0)]
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in rows))
    (tmp_path / "b.csv").write_text("".join(f"{rows[i][0] + 0.1},{rows[i][1]}\n" for i in order))
    pytest.importorskip("matplotlib", reason="pictures need the report extra")
    done = gossamer("transport", "match", "a.csv", "b.csv", "-k", 1, "--picture", "p.png", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert done.json["pairs"] == 4
    pairs = list(csv.DictReader((tmp_path / "pairs.csv").read_text().splitlines()))
    assert [int(pair["first"]) for pair in pairs] == order
    (tmp_path / "b.csv").write_text("1,nan\n")
    assert gossamer("transport", "match", "a.csv", "b.csv", cwd=tmp_path).code == 3
    assert gossamer("transport", "match", "a.csv", "none.csv", cwd=tmp_path).code == 3


def test_the_exact_plan_in_the_place_of_a_limited_one(gossamer, tmp_path):
    pytest.importorskip("ot", reason="POT comes with the transport extra")
    (tmp_path / "a.csv").write_text("0\n1\n2\n")
    (tmp_path / "b.csv").write_text("0\n2\n")
    one = gossamer("transport", "match", "a.csv", "b.csv", "-k", 1, cwd=tmp_path)
    assert one.code == 0
    assert "--exact" in one.out
    done = gossamer("transport", "match", "a.csv", "b.csv", "--exact", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["converged"] is True
    assert done.json["row error"] < 1e-12
    assert done.json["pairs"] == 4


def test_a_picture_gets_the_colours_of_another(gossamer, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs pillow (extra superres)")
    image.new("RGB", (20, 16), (200, 30, 30)).save(tmp_path / "red.png")
    image.new("RGB", (24, 24), (20, 40, 220)).save(tmp_path / "blue.png")
    options = ("-k", 1, "-o", "out.png", "--report", "page.html", "--json")
    done = gossamer("transport", "colours", "red.png", "blue.png", *options, cwd=tmp_path)
    assert done.code == 0, done.err
    assert image.open(tmp_path / "out.png").getpixel((3, 3)) == (20, 40, 220)
    assert "blue.png" in (tmp_path / "page.html").read_text()
    wrong = gossamer("transport", "colours", "red.png", "blue.png", "-k", 5, cwd=tmp_path)
    assert wrong.code == 2
    assert "k = 5" in wrong.err


def test_each_target_colour_has_few_sources():
    source = torch.Generator().manual_seed(0)
    pictures = [torch.rand(3, 12, 12, generator=source) for _ in range(2)]
    done = colour_transfer(*pictures, KSparse(3, 1.0), colours=8)
    assert int(done.transport.nonzeros.max()) <= 3
    assert done.picture.shape == (3, 12, 12)
    assert float(done.source.share.sum()) == pytest.approx(1)
