"""The lessons that need no long training hold, and their mutants do not."""

import pytest

from gossamer import papers, recipes
from gossamer.claims.protocol import Context
from gossamer.papers import ten_lessons_sparseland as lessons


@pytest.mark.parametrize("claim", ["taxonomy-verified", "counting-rules", "erk-costs-more", "search-cost"])
def test_it_holds(claim):
    said = []
    found = papers.load("ten-lessons-sparseland").claim(claim).run(Context(seeds=1, say=said.append))
    assert found.holds, said or found


def test_every_recipe_and_procedure_is_instrumented():
    names = {name for name, _, _ in lessons.methods()}
    assert names == {*recipes.RECIPES, "imp", "train_prune_finetune"}


def test_a_run_that_contradicts_its_flags_is_found():
    still = recipes.random(0.9)
    found = lessons.contradictions("rigl", recipes.rigl(0.9, every=10), still, trained=False)
    assert any("said to be dynamic, but 0 entries changed" in text for text in found)
    assert lessons.contradictions("random", still, still, trained=False) == []


def _rows(*values):
    return [{"accuracy": value} for value in values]


def test_cards_of_arms_raise_exactly_the_rule():
    rigl = recipes.rigl(0.9)
    short = lessons.card("rigl", _rows(0.7, 0.7, 0.7), 400, rigl)
    long = lessons.card("static", _rows(0.8, 0.8, 0.8), 2000, recipes.random(0.9))
    assert "W1" in lessons._codes(short, long)
    assert "W1" not in lessons._codes(short, long.model_copy(update={"epochs_multiplier": 5.0}))
    weak = lessons.card("dense", _rows(0.2, 0.2, 0.2), 400, None, role="dense")
    assert "W16" in lessons._codes(short, weak)
