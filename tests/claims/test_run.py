"""Running claims: verdicts, exit codes, records and the listing."""

import json
import sys
from types import ModuleType

import pytest

from gossamer import papers
from gossamer.claims import exit_code, listing, read_result, reproduce, run
from gossamer.claims.protocol import Claim, Measured, Paper
from gossamer.errors import ConfigError, DataError, MissingExtra

SEEN = []


def claim(name, holds=True, kind="asserted", **changes):
    def measure(ctx):
        SEEN.append((name, ctx.seeds, ctx.quick))
        return Measured(0.7, 0.01, 0.5, ctx.seeds, holds)

    return Claim(name, kind, "It holds.", "none", "a test", changes.pop("run", measure), **changes)


def missing_extra(ctx):
    raise MissingExtra("jinja2", "report")


def crash(ctx):
    raise ZeroDivisionError("by accident")


@pytest.fixture
def install(monkeypatch):
    """Install a paper of these claims under the slug 'toy'."""

    def put(*claims):
        module = ModuleType("gossamer_toy_paper")
        module.PAPER = Paper("toy", "Toy", 2020, "V", "none", "k", "s", ("gossamer.maths.pareto",), claims)
        monkeypatch.setitem(sys.modules, "gossamer.toy_paper", module)
        monkeypatch.setattr(papers, "PAPERS", {"toy": "gossamer.toy_paper"})
        monkeypatch.setattr(run.store, "fingerprint", lambda name: "f" * 16)
        SEEN.clear()

    return put


@pytest.mark.parametrize(
    ("claims", "holds", "code"),
    [
        ([claim("a"), claim("b", False, "reported")], True, 0),
        ([claim("a"), claim("b", False)], False, 1),
        ([claim("a", None)], None, 3),
        ([claim("a"), claim("b", run=missing_extra)], None, 3),
        ([claim("a", False), claim("b", run=missing_extra)], False, 1),
        ([claim("a"), claim("b", needs=("no-such-data-set",))], None, 3),
        ([claim("a"), claim("b", needs=("no-such-data-set",), kind="reported")], True, 0),
        ([claim("a"), claim("b", kind="reported", run=crash)], False, 1),
    ],
)
def test_verdicts_and_exit_codes(install, tmp_path, claims, holds, code):
    install(*claims)
    outcome = reproduce("toy", record=tmp_path)
    assert list(outcome) == ["slug", "holds", "seconds", "claims"]
    assert outcome["holds"] is holds
    assert exit_code(outcome) == code
    json.dumps(outcome, allow_nan=False)


def test_what_is_missing_is_named(install, tmp_path):
    install(claim("a", needs=("no-such-data-set",)), claim("b", run=missing_extra), claim("c", run=crash))
    whys = [row["why"] for row in reproduce("toy", record=tmp_path)["claims"]]
    assert "could not run" in whys[0]
    assert "no-such-data-set" in whys[0]
    assert "gossamer[report]" in whys[1]
    assert "ZeroDivisionError: by accident" in whys[2]
    assert read_result("toy", tmp_path) is None  # nothing is recorded when a claim could not run


def test_a_full_run_is_recorded_and_listed(install, tmp_path):
    install(claim("a", seeds=5), claim("b", kind="reported", holds=None))
    (before,) = listing(tmp_path)
    assert (before["holds"], before["stale"], before["measured_on"]) == (None, None, None)
    assert before["claims"][0]["measured"] is None
    outcome = reproduce("toy", record=tmp_path)
    (entry,) = listing(tmp_path)
    assert list(entry) == [
        "slug",
        "title",
        "year",
        "kind",
        "summary",
        "modules",
        "claims",
        "holds",
        "stale",
        "measured_on",
    ]
    assert entry["claims"] == outcome["claims"]
    assert entry["holds"] is True
    assert entry["stale"] is False
    assert SEEN == [("a", 5, False), ("b", 3, False)]


@pytest.mark.parametrize("partial", [{"quick": True}, {"seeds": 7}, {"claims": ("a",)}])
def test_a_partial_run_is_not_recorded(install, tmp_path, partial):
    install(claim("a", seeds=5), claim("b"))
    reproduce("toy", record=tmp_path, **partial)
    assert not list(tmp_path.iterdir())
    assert SEEN[0][1] == (7 if "seeds" in partial else 2 if "quick" in partial else 5)


def test_bad_requests_are_refused(install):
    install(claim("a"))
    with pytest.raises(ConfigError, match="unknown paper 'toi'; did you mean 'toy'"):
        reproduce("toi")
    with pytest.raises(ConfigError, match="seeds must be at least 1, got 0"):
        reproduce("toy", seeds=0)
    with pytest.raises(ConfigError, match="unknown claim of toy 'z'"):
        reproduce("toy", claims=("z",))


def test_needs_are_packages_or_data_sets(monkeypatch):
    run.check_needs(())
    with pytest.raises(DataError, match="no-such-data-set"):
        run.check_needs(("no-such-data-set",))
    monkeypatch.setitem(run.EXTRAS, "no_such_package", "report")
    with pytest.raises(MissingExtra, match="no_such_package"):
        run.check_needs(("no_such_package",))
