"""The page is self-contained, well formed, and its numbers are those of the record; also in a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from gossamer.report.card import Comparison, ReportCard
from gossamer.report.page import render, write

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Reader(HTMLParser):
    """Checks nesting, and collects ids and table cells."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.tables, self.cell = [], [], [], {}, None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.links += [value for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
        if tag == "table":
            self.table = self.tables.setdefault(attrs.get("id"), [])
        if tag == "tr":
            self.table.append([])
        if tag in ("td", "th"):
            self.table[-1].append(float(attrs["data-value"]) if "data-value" in attrs else None)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(html):
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def record(html):
    return re.search(r'<script type="application/json" id="record">(.*?)</script>', html, re.S)[1]


def test_the_record_is_embedded_whole(html, compared):
    assert Comparison.from_json(record(html)) == compared


def test_nothing_is_fetched(html):
    assert all(link.startswith(("#", "data:")) for link in read(html).links)
    assert not re.search(r"@import|url\((?!#)", html)
    external = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert "http://" not in external
    assert "https://" not in external


def test_ids_are_unique_and_references_exist(html):
    ids = read(html).ids
    assert len(set(ids)) == len(ids)
    used = set(re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html))
    assert used <= set(ids)


def test_numbers_of_the_tables_equal_the_record(html):
    cards = json.loads(record(html))["cards"]
    tables = read(html).tables
    for row, card in zip(tables["quality-table"][1:], cards, strict=True):
        assert row[1] == pytest.approx(sum(card["values"]) / 3)
        assert row[4] == pytest.approx(sum(card["other_metrics"]["ece"]) / 3)
        assert row[-1] == 3
    for row, card in zip(tables["sparsity-table"][1:], cards, strict=True):
        scopes = [card[f"sparsity_{scope}"] for scope in ("prunable", "weights", "all")]
        assert row[1:] == [
            *scopes,
            *(card[k] for k in ("nnz_by_mask", "peak_density", "itop_rate", "mask_flips", "dense_gradient_steps")),
        ]
    for row, card in zip(tables["cost-table"][1:], cards, strict=True):
        assert row[1] == card["inference_flops"]
        assert row[2] == pytest.approx(card["inference_flops"] / card["inference_flops_dense"])
        assert row[3] == card["training_flops"]
    assert [row[1:] for row in tables["bytes-table"][1:]] == [list(c["bytes_by_format"].values()) for c in cards]
    assert [row[2] for row in tables["latency-table"][1:]] == [c["latencies"][0]["milliseconds"] for c in cards]
    kept = [[layer["kept"] / layer["numel"] for layer in card["layers"]] for card in cards]
    assert [row[1:] for row in tables["layer-table"][1:]] == [list(column) for column in zip(*kept, strict=True)]


def test_findings_and_command_are_shown(html, compared):
    assert "<b>W10</b>" in html
    assert compared.command in html
    assert "set_to:" in html


def test_text_from_a_card_cannot_break_out(card):
    evil = "</script><script>alert(1)</script>"
    html = render(card(model=evil, recipe=evil, command=evil))
    assert "<script>alert" not in html
    assert json.loads(record(html))["cards"][0]["model"] == evil
    read(html)


def test_the_same_record_gives_the_same_bytes(card):
    assert render(card()) == render(card())


def test_a_bare_card_has_a_page_too(tmp_path):
    path = write(ReportCard(method="m", model="mlp", data="digits"), tmp_path / "page.html")
    html = path.read_text(encoding="utf-8")
    read(html)
    assert "No latency was measured" in html
    assert "nan" not in html.split("<main>")[1].split("<script")[0]


def test_a_single_seed_claims_no_spread(card):
    html = render(card(seeds=[0], values=[0.9], other_metrics={}, curves=[]))
    assert ">90.00<" in html
    assert "nan" not in html.split("<main>")[1].split("<script")[0]


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-sync",
    "--disable-component-update",
    "--enable-logging=stderr",
]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it_without_complaint(html, compared, tmp_path):
    page = tmp_path / "page.html"
    # What the browser built, compared inside the browser with the JSON inside the page.
    probe = """<script>
      const record = JSON.parse(document.getElementById("record").textContent);
      const rows = [...document.querySelectorAll("#quality-table tbody tr")];
      const right = rows.filter((row, i) => {
        const values = record.cards[i].values, mean = values.reduce((a, b) => a + b) / values.length;
        const cell = row.querySelector("td");
        return Math.abs(cell.dataset.value - mean) < 1e-12 && cell.textContent.startsWith((100 * mean).toFixed(2));
      });
      const wide = document.documentElement.scrollWidth <= window.innerWidth;
      const drawn = [...document.querySelectorAll("svg")].every(s => s.getBoundingClientRect().height > 20);
      document.title = `rows ${right.length} wide ${wide} drawn ${drawn}`;
    </script>"""
    page.write_text(html.replace("</body>", probe + "</body>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "<title>rows 3 wide true drawn true</title>" in done.stdout
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
