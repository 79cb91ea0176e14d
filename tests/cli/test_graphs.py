"""`gossamer graphs`: edge lists in and out, figures beside random edges, and what is refused."""

import csv

import pytest

RING = "\n".join(f"a{i},a{(i + 1) % 12},w{i}" for i in range(12)) + "\n"
HUB = "source,target,weight\n" + "".join(f"hub,n{i},{i}\n" for i in range(10)) + "n0,n1,10\nn8,n9,11\n"


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "edges.csv").write_text(HUB)
    return tmp_path


def test_rows_are_kept_whole_and_exactly_counted(gossamer, hub):
    done = gossamer("graphs", "sparsify", "edges.csv", "--keep", "0.5", "-o", "out.csv", "--json", cwd=hub)
    assert done.code == 0
    assert done.json["rows"] == {"read": 12, "kept": 6}
    rows = list(csv.reader((hub / "out.csv").read_text().splitlines()))
    assert rows[0] == ["source", "target", "weight"]
    assert set(map(tuple, rows[1:])) <= set(map(tuple, csv.reader(HUB.splitlines())))
    assert ["n0", "n1", "10"] in rows  # far from the hub
    figures = done.json["figures"]
    assert set(figures) == {"whole graph", "teddy edges", "random edges"}
    assert [f["edges"] for f in figures.values()] == [12, 6, 6]
    assert figures["whole graph"]["largest degree"] == 10
    assert figures["whole graph"]["components"] == 1


def test_a_table_for_people_and_a_page(gossamer, hub):
    pytest.importorskip("matplotlib", reason="the page is in the extra report")
    done = gossamer("graphs", "sparsify", "edges.csv", "--report", "page.html", cwd=hub)
    assert done.code == 0
    assert "5 of 12 rows: sparse.csv" in done.out
    page = (hub / "page.html").read_text()
    assert "random edges" in page
    assert page.count("data:image/png") == 1


def test_both_directions_are_one_edge(gossamer, tmp_path):
    rows = [f"{i}\t{(i + 1) % 10}" for i in range(10)] + [f"{(i + 1) % 10}\t{i}" for i in range(10)]
    (tmp_path / "e.tsv").write_text("\n".join(rows))
    done = gossamer("graphs", "sparsify", "e.tsv", "--keep", "0.5", "-o", "o.tsv", "--json", cwd=tmp_path)
    assert done.json["rows"] == {"read": 20, "kept": 10}
    kept = {tuple(line.split("\t")) for line in (tmp_path / "o.tsv").read_text().splitlines()}
    assert all((b, a) in kept for a, b in kept)
    done = gossamer(
        "graphs", "sparsify", "e.tsv", "--keep", "0.35", "-o", "o.tsv", "--json", "--directed", cwd=tmp_path
    )
    assert done.json["rows"]["kept"] == 7


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        (RING, ("--keep", "0"), 2, "keep must lie in (0, 1]"),
        (RING, ("--score", "tedy"), 2, "did you mean 'teddy'"),
        (RING, ("--nodes", "5"), 3, "node 'a0' is none of 0..4"),
        ("0,1\n1,7\n", ("--nodes", "5"), 3, "line 2: node '7'"),
        ("0,1\n1\n", (), 3, "line 2: '1' does not name two nodes"),
        ("# made by hand\n\nsource,target\n0,1\n\n1\n", (), 3, "line 6: '1' does not name two nodes"),
        ("", (), 3, "holds no edge"),
        ("source,target\n", (), 3, "holds no edge"),
        (RING, ("-o", "edges.csv"), 3, "is the edge list itself"),
    ],
)
def test_refusals(gossamer, tmp_path, text, arguments, code, said):
    (tmp_path / "edges.csv").write_text(text)
    done = gossamer("graphs", "sparsify", "edges.csv", *arguments, cwd=tmp_path)
    assert (done.code, said in done.err) == (code, True), done.err
    assert not (tmp_path / "sparse.csv").exists()


def test_words_above_integers_are_a_heading(gossamer, tmp_path):
    for heading in ("a,b", "person_id,friend_id"):
        (tmp_path / "e.csv").write_text(heading + "\n1,2\n2,3\n3,1\n3,4\n")
        done = gossamer("graphs", "sparsify", "e.csv", "--keep", "0.5", "--json", cwd=tmp_path)
        assert done.json["rows"] == {"read": 4, "kept": 2}
        assert done.json["figures"]["whole graph"]["components"] == 1
        assert (tmp_path / "sparse.csv").read_text().splitlines()[0] == heading
    (tmp_path / "e.csv").write_text("a,b\nb,c\n")  # names, all of them
    done = gossamer("graphs", "sparsify", "e.csv", "--keep", "1", "--json", cwd=tmp_path)
    assert done.json["rows"] == {"read": 2, "kept": 2}


def test_a_remark_is_one_line_without_code(gossamer, tmp_path):
    (tmp_path / "e.csv").write_text(RING)
    done = gossamer("graphs", "sparsify", "e.csv", "--keep", "0.1", cwd=tmp_path)
    assert "note: 9 of 12 nodes lost all their edges; raise keep" in done.err
    assert "UserWarning" not in done.err


def test_a_ticket_of_the_karate_club(gossamer, tmp_path):
    done = gossamer("graphs", "ticket", "karate", "--epochs", "5", "--seeds", "2", "--json", cwd=tmp_path)
    assert done.code == 0
    assert set(done.json) == {"dense", "teddy", "random edges", "without distillation"}
    assert all(row["seeds"] == 2 and 0 <= row["mean"] <= 100 for row in done.json.values())
    assert gossamer("graphs", "ticket", "karat", cwd=tmp_path).code == 2
    done = gossamer("graphs", "ticket", "karate", "--epochs", "2", "--seeds", "1", cwd=tmp_path)
    assert "nan" not in done.out
    for option in ("--edges", "--weights"):
        done = gossamer("graphs", "ticket", "karate", option, "1", cwd=tmp_path)
        assert (done.code, f"{option} must lie in [0, 1)" in done.err) == (2, True), done.err
