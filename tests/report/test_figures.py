"""Figures take the page's colours, keep text as text, and leave nothing behind."""

import re

import pytest

pytest.importorskip("matplotlib")

from gossamer.report import figures
from gossamer.report.card import Layer


def test_colours_are_style_variables_and_text_is_text(compared):
    for svg in (
        figures.metric_chart(compared.cards, 100.0),
        figures.density_chart(compared.cards),
        figures.cost_chart(compared.cards),
        figures.curves_chart(compared.cards, "training loss"),
    ):
        assert svg.startswith('<svg role="img" aria-label="')
        assert "var(--ink)" in svg
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "<text" in svg
        assert "<style" not in svg


def test_a_log_axis_only_where_a_layer_is_thin(card):
    thick = figures.density_chart([card(densities=(0.5, 0.5, 0.5))])
    thin = figures.density_chart([card(densities=(0.5, 0.01, 0.5))])
    assert "10^{" not in thick
    assert thin.count("<tspan") > thick.count("<tspan")


def test_labels_are_escaped(card):
    assert "a&lt;b&quot;" in figures.metric_chart([card(metric='a<b"')])


def test_more_arms_than_colours(card):
    assert figures.colour(0) == figures.colour(8)
    assert "m11" in figures.cost_chart([card(f"m{i}") for i in range(12)])


def test_many_layers_become_rows_of_dots(card):
    def height(svg):
        return float(re.search(r'viewBox="0 0 [0-9.]+ ([0-9.]+)"', svg)[1])

    def deep(name, count):
        layers = [Layer(name=f"layer{i}", shape=[10], numel=10, kept=5) for i in range(count)]
        return card(name).model_copy(update={"layers": layers})

    bars = figures.density_chart([deep("a", 24), deep("b", 24)])
    dots = figures.density_chart([deep("a", 25), deep("b", 25)])
    assert dots.count("<use") > bars.count("<use")
    assert height(dots) < height(bars)
    assert "layer24" in dots
