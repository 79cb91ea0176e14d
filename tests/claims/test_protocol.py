"""Records refuse nonsense, and the seed loop stops for time alone."""

import dataclasses

import pytest

from gossamer.claims.protocol import Claim, Context, Measured, Paper
from gossamer.errors import ConfigError


def claim(**changes):
    fields = {
        "id": "a",
        "kind": "asserted",
        "statement": "It holds.",
        "published": "93.2 %",
        "why": "small but clear here",
        "run": lambda ctx: Measured(1.0, 0.1, 0.5, ctx.seeds, True),
    }
    return Claim(**(fields | changes))


def paper(*claims, **changes):
    fields = {
        "slug": "a-paper",
        "title": "A",
        "year": 2021,
        "venue": "V",
        "code": "none",
        "kind": "k",
        "summary": "s",
        "modules": ("gossamer.maths.pareto",),
        "claims": claims,
    }
    return Paper(**(fields | changes))


def test_json_has_the_documented_keys_in_order():
    row = claim().as_json(Measured({"x": 1.0, "y": float("nan")}, 0.5, None, 3, True))
    keys = [
        "id",
        "kind",
        "statement",
        "published",
        "measured",
        "spread",
        "threshold",
        "seeds",
        "holds",
        "why",
    ]
    assert list(row) == keys
    assert row["measured"] == {"x": 1.0, "y": None}
    assert row["seeds"] == 3
    assert row["holds"] is True
    never = claim().as_json()
    assert [never[k] for k in ("measured", "spread", "threshold", "seeds", "holds")] == [None] * 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: claim(kind="assert"), "unknown kind of claim 'assert'; did you mean 'asserted'"),
        (lambda: claim(why=" "), "claim 'a' needs a why"),
        (lambda: claim(seeds=0), "seeds=0"),
        (lambda: paper(claim(), slug="Bad Slug"), "slug 'Bad Slug'"),
        (lambda: paper(claim(), claim()), "different ids"),
        (lambda: paper(), "different ids"),
        (lambda: paper(claim(id="exact-counts")).claim("exact-count"), "did you mean 'exact-counts'"),
    ],
)
def test_bad_records_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_records_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim().id = "b"


def test_seed_loop_runs_all_within_budget_and_at_least_the_least_beyond_it():
    assert list(Context(seeds=4).each_seed()) == [0, 1, 2, 3]
    lines = []
    late = Context(seeds=9, budget_s=1.0, say=lines.append)
    late.started -= 100
    assert list(late.each_seed(least=3)) == [0, 1, 2]
    assert lines == ["time budget of 1 s allows 3 of 9 seeds"]
    hasty = Context(seeds=9, budget_s=1.0, quick=True)
    hasty.started -= 100
    assert list(hasty.each_seed(least=3)) == [0, 1]
    assert list(Context(seeds=1).each_seed(least=3)) == [0]
