"""One table in four forms."""

import csv
import io

import pytest

from gossamer.errors import ConfigError
from gossamer.maths.statistics import paired_interval
from gossamer.report.card import ReportCard, comparison
from gossamer.report.compare import FORMATS, rows, table


def test_rows_are_the_cards_figures(compared):
    dense, granet, _ = rows(compared)
    assert dense["difference"] is None
    assert granet["metric"] == compared.cards[1].estimate
    assert granet["difference"] == paired_interval(compared.cards[1].values, compared.cards[0].values)
    assert granet["bytes"] == min(compared.cards[1].bytes_by_format.values())
    assert granet["inference FLOPs"] == compared.cards[1].inference_ratio


def test_unpaired_seeds_give_no_difference(card):
    both = comparison([card("dense", (1, 1, 1)), card("granet", seeds=[3, 4, 5])])
    assert rows(both)[1]["difference"] is None


def test_csv_holds_full_numbers(compared):
    read = list(csv.DictReader(io.StringIO(table(compared, "csv"))))
    assert [row["method"] for row in read] == ["dense", "granet", "random"]
    assert float(read[1]["metric mean"]) == compared.cards[1].estimate.mean
    assert read[0]["difference mean"] == ""


def test_markdown_and_terminal_show_the_same_figures(compared):
    lines = table(compared, "md").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| method | sparsity | accuracy | vs dense |")
    assert "95.13 ± 0.35" in lines[3]
    assert "-2.23 ± 0.29" in lines[3]
    assert "95.13 ± 0.35" in table(compared, "rich")


def test_latex_is_escaped_and_balanced(card):
    text = table(comparison([card("a_b & 50%"), card("c")], control="c"), "latex")
    assert r"a\_b \& 50\%" in text
    assert r"$\pm$" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    ampersands = {line.replace(r"\&", "").count("&") for line in text.splitlines() if line.endswith(r"\\")}
    assert ampersands == {8}


def test_a_bare_card_makes_a_row_of_dashes():
    bare = comparison([ReportCard(method="m", model="mlp", data="digits")])
    assert table(bare, "md").splitlines()[-1] == "| m | – | – | – | – | – | – | – | 0 |"


def test_an_unknown_format_is_named(compared):
    assert list(FORMATS) == ["rich", "md", "latex", "csv"]
    with pytest.raises(ConfigError, match="unknown table format 'latx'; did you mean 'latex'"):
        table(compared, "latx")
