"""The README's table says what the records say."""

import pytest

from gossamer.errors import ConfigError
from gossamer.report.catalogue import BEGIN, END, catalogue, update_readme


def entry(**changes):
    claims = [
        {"kind": "reported", "statement": "Reported.", "holds": None},
        {"kind": "asserted", "statement": "Beats a|b.", "holds": True},
        {"kind": "asserted", "statement": "Other.", "holds": False},
    ]
    base = {"slug": "toy", "title": "Toy", "year": 2020, "kind": "unstructured", "claims": claims}
    return base | {"holds": False, "stale": False, "measured_on": "2026-01-02"} | changes


def test_rows():
    assert catalogue([entry()]).splitlines()[2] == (
        r"| Toy (`toy`) | 2020 | unstructured | 1 of 2 hold | Beats a\|b. | 2026-01-02 |"
    )
    assert "| not yet run | Beats" in catalogue([entry(measured_on=None, stale=None, holds=None)])
    assert "2026-01-02, code changed since" in catalogue([entry(stale=True)])


def test_readme_is_updated_between_the_markers_once(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update_readme(readme, [entry()])
    text = readme.read_text()
    assert text == f"before\n{BEGIN}\n{catalogue([entry()])}{END}\nafter\n"
    assert not update_readme(readme, [entry()])
    readme.write_text("no markers")
    with pytest.raises(ConfigError, match="needs the lines"):
        update_readme(readme, [entry()])
