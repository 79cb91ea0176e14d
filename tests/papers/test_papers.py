"""One battery for every paper: its record is complete, light to import, and falls to its own mutants."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from gossamer import papers
from gossamer.claims.mutants import MUTANTS
from gossamer.claims.protocol import Context, Paper
from gossamer.claims.sources import closure
from gossamer.errors import ConfigError

ALL = sorted(papers.PAPERS)
FAULTS = [(slug, claim.id, mutant) for slug in ALL for claim in papers.load(slug).claims for mutant in claim.mutants]


def test_an_unknown_paper_is_named():
    with pytest.raises(ConfigError, match="unknown paper 'no-such-paper'"):
        papers.load("no-such-paper")


def test_the_package_names_its_modules_after_the_slugs():
    names = {slug: f"gossamer.papers.{slug.replace('-', '_')}" for slug in ALL}
    assert names == papers.PAPERS


def test_papers_load_without_extras():
    code = (
        "import sys; from gossamer import papers; [papers.load(slug) for slug in papers.PAPERS];"
        "print([m for m in ('matplotlib', 'jinja2', 'transformers', 'onnx', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("slug", ALL)
def test_the_record_is_complete(slug):
    paper = papers.load(slug)
    assert isinstance(paper, Paper)
    assert paper.slug == slug
    assert 1990 < paper.year < 2100
    assert paper.title
    assert paper.venue
    assert paper.kind
    assert paper.code == "none" or paper.code.startswith("https://")
    assert 1 <= paper.summary.count(". ") + 1 <= 3
    assert any(claim.kind == "asserted" for claim in paper.claims)
    used = closure(papers.PAPERS[slug])
    for module in paper.modules:
        import_module(module)
        assert module in used, f"{module} is said to implement {slug}, but its claims do not import it"


def literals(module: str) -> set[str]:
    """The strings in the code that a paper's claims run: faults that are no recipe's are planted there, by name."""
    used = [name for name in closure(module) if name == module or name.startswith("gossamer.claims.")]
    trees = [ast.parse(Path(import_module(name).__file__ or "").read_text()) for name in used]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    # where it is compared or looked up; a name that stands only in a claim's own list is planted nowhere
    listed = {
        id(leaf) for node in nodes if isinstance(node, ast.keyword) and node.arg == "mutants" for leaf in ast.walk(node)
    }
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in listed
    }


@pytest.mark.parametrize("slug", ALL)
def test_the_claims_are_complete(slug):
    for claim in papers.load(slug).claims:
        assert claim.statement.endswith(".")
        assert set(claim.mutants) <= set(MUTANTS) | literals(papers.PAPERS[slug])
        assert claim.budget_s <= 600
        if claim.kind == "needs_gpu":
            assert "gossamer " in claim.why  # the full-size command


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("slug", "claim_id", "mutant"), FAULTS)
def test_a_hollow_implementation_fails(slug, claim_id, mutant):
    claim = papers.load(slug).claim(claim_id)
    found = claim.run(Context(seeds=claim.seeds, budget_s=claim.budget_s, mutant=mutant))
    assert found.holds is False
