"""`gossamer reproduce` and `papers`: the JSON and the exit codes that the plan of the house fixes."""

import pytest

from gossamer.papers import PAPERS

OUTCOME = {"slug", "holds", "seconds", "claims"}
ROW = {"id", "kind", "statement", "published", "measured", "spread", "threshold", "seeds", "holds", "why"}
ENTRY = {"slug", "title", "year", "kind", "summary", "modules", "claims", "holds", "stale", "measured_on"}


@pytest.mark.parametrize(("slug", "code", "holds"), [("holding", 0, True), ("failing", 1, False), ("lacking", 3, None)])
def test_exit_codes_and_json(gossamer, slug, code, holds):
    done = gossamer("reproduce", slug, "--quick", "--json")
    assert done.code == code
    assert set(done.json) == OUTCOME
    assert set(done.json["claims"][0]) == ROW
    assert (done.json["slug"], done.json["holds"]) == (slug, holds)
    shown = gossamer("reproduce", slug, "--quick")
    assert shown.code == code
    assert "0.6" in shown.out


def test_figures_and_seeds(gossamer):
    row = gossamer("reproduce", "holding", "--seeds", 4, "--claim", "first", "--json").json["claims"][0]
    assert row["measured"] == pytest.approx(0.65)
    assert row["seeds"] == 4
    assert "no-such-data" in gossamer("reproduce", "lacking", "--quick").out


def test_stale_runs_all_without_a_record_and_ends_with_the_worst_code(gossamer):
    done = gossamer("reproduce", "--stale", "--quick", "--json")
    assert [outcome["slug"] for outcome in done.json] == ["failing", "holding", "lacking"]
    assert done.code == 1


def test_bad_usage(gossamer):
    assert gossamer("reproduce").code == 2
    assert gossamer("reproduce", "holding", "--stale").code == 2
    assert gossamer("reproduce", "--stale", "--claim", "first").code == 2
    assert "did you mean 'holding'" in gossamer("reproduce", "holdin").err
    assert "did you mean 'first'" in gossamer("reproduce", "holding", "--claim", "frist").err
    assert gossamer("reproduce", "holding", "--seeds", 0).code == 2


def test_papers(gossamer):
    listed = gossamer("papers", "--json").json
    assert [set(entry) for entry in listed] == [ENTRY] * 3
    assert listed[0]["holds"] is None
    assert "not yet run" in gossamer("papers").out


@pytest.mark.parametrize("slug", sorted(PAPERS))
def test_a_published_system_is_known_by_its_slug(slug):
    from gossamer.papers import load

    assert load(slug).slug == slug
