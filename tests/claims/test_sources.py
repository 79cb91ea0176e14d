"""A fingerprint changes with behaviour, and only with behaviour."""

import pytest

from gossamer.claims import sources
from gossamer.errors import ConfigError

SOURCE = '''"""Module."""

import os  # for paths


def f(x: str) -> str:
    """Say
    # not a comment
    """
    return x + " # kept"


class C:
    """Only a docstring."""
'''


def test_essence_drops_comments_docstrings_and_blank_lines_alone():
    assert sources.essence(SOURCE) == ('import os\ndef f(x: str) -> str:\n    return x + " # kept"\nclass C:')


def test_essence_is_blind_to_words_and_sees_code():
    reworded = SOURCE.replace("Say", "Tell").replace("for paths", "why")
    assert sources.essence(reworded) == sources.essence(SOURCE)
    assert sources.essence(SOURCE.replace("x +", "x*2 +")) != sources.essence(SOURCE)


def forget():
    for cached in (sources._imports, sources._digest, sources._tree, sources._only_names, sources._reexports):
        cached.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in package tree whose modules import each other in every way."""
    files = {
        "__init__.py": "",
        "low/__init__.py": "from . import leaf",
        "low/leaf.py": "VALUE = 1",
        "low/near.py": "from .leaf import VALUE\nfrom ..solo import thing",
        "solo.py": "thing = 2",
        "top.py": "def run():\n    from gossamer.low import near\n    import numpy",
        "apart.py": "x = 1",
        "errors.py": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def test_closure_follows_absolute_relative_and_late_imports(package):
    want = {"gossamer.top", "gossamer.low.near", "gossamer.low.leaf", "gossamer.solo"}
    assert sources.closure("gossamer.top") == want


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("from gossamer import shop\nshop.a()", {"one"}),
        ("from gossamer.shop import b as z", {"two"}),
        ("from gossamer.shop import TABLE", {"", "one", "two"}),
        ("from gossamer import shop\nshop.a(shop.TABLE)", {"", "one", "two"}),
        ("from gossamer import shop\nf(shop)", {"", "one", "two"}),
        ("import gossamer.shop.two", {"two"}),
        ("from gossamer.shop import *", {"", "one", "two"}),
    ],
)
def test_of_a_package_that_gathers_names_only_what_is_used_counts(package, line, want):
    (package / "shop").mkdir()
    (package / "shop" / "__init__.py").write_text(
        'from .one import a\nfrom gossamer.shop.two import b\nTABLE = {"a": a, "b": b}\n__all__ = ["a", *[]]'
    )
    (package / "shop" / "one.py").write_text("def a(): pass")
    (package / "shop" / "two.py").write_text("def b(): pass")
    (package / "user.py").write_text(line)
    names = {f"gossamer.shop.{name}".rstrip(".") for name in want}
    assert sources.closure("gossamer.user") == {"gossamer.user"} | names


def test_a_package_that_does_something_counts_whole(package):
    (package / "low" / "__init__.py").write_text("from . import leaf\nleaf.VALUE += 1")
    assert "gossamer.low" in sources.closure("gossamer.top")


def test_a_change_deep_below_is_seen_and_one_elsewhere_is_not(package):
    def now():
        forget()
        return sources.fingerprint("gossamer.top")

    first = now()
    (package / "apart.py").write_text("x = 2")
    (package / "solo.py").write_text("thing = 2  # the same\n")
    assert now() == first
    (package / "solo.py").write_text("thing = 3")
    assert now() != first


def test_real_modules():
    assert "gossamer.metrics.classification" in sources.closure("gossamer.metrics.robustness")
    assert len(sources.fingerprint("gossamer.metrics.robustness")) == 16
    with pytest.raises(ConfigError, match=r"no module 'gossamer\.nowhere'"):
        sources.fingerprint("gossamer.nowhere")
