"""A finished run fills a card by itself, and the card is sound; a spoiled run is not."""

import pytest
import torch
from torch import nn

from gossamer import recipes
from gossamer.report import ReportCard, lint
from gossamer.report.measure import run_fields
from gossamer.sparsify import Sparsifier

STEPS = 40


def finished(recipe, optimizer=torch.optim.Adam):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    batches = [(torch.randn(32, 16), torch.arange(32) % 4) for _ in range(STEPS)]
    built = optimizer(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, built, recipe, STEPS, data=batches)
    for x, y in batches:
        built.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        built.step()
    return sparsifier


def as_card(sparsifier):
    fields = run_fields(sparsifier, torch.zeros(2, 16))
    return ReportCard(method="m", model="mlp", data="noise", **fields)


def soundness(card):
    return [finding.code for finding in lint([card]) if finding.code[0] == "E"] + card.taxonomy_contradictions


@pytest.mark.parametrize(
    "recipe",
    [
        recipes.dense(),
        recipes.random(0.75),
        recipes.snip(0.75),
        recipes.rigl(0.75, every=5),
        recipes.gmp(0.75, every=5),
        recipes.granet(0.75, every=5),
        recipes.sr_ste(1, 4),
    ],
    ids=lambda recipe: recipe.name,
)
def test_a_run_fills_its_card_soundly(recipe):
    sparsifier = finished(recipe)
    card = as_card(sparsifier)
    assert soundness(card) == []
    assert ReportCard.from_json(card.to_json()) == card
    assert card.has_batchnorm
    assert card.inference_flops_dense == 2 * (16 * 32 + 32 * 4)
    if recipe.name == "dense":
        assert (card.sparsity_prunable, card.inference_ratio, card.training_ratio) == (0.0, 1.0, 1.0)
    else:
        assert card.sparsity_prunable == 0.75
        assert card.sparsity_all < card.sparsity_weights == 0.75
        assert card.nnz_by_mask == sum(layer.kept for layer in card.layers) == 160
        assert card.inference_flops == sum(layer.flops * layer.density for layer in card.layers)
        assert card.bytes_by_format["bitmap"] < card.bytes_by_format["dense"]


def test_leaks_and_stale_momentum_are_counted():
    sparsifier = finished(recipes.random(0.75))
    name, mask = next(iter(sparsifier.entry_masks.items()))
    weight = dict(sparsifier.model.named_parameters())[name]
    where = tuple((~mask).nonzero()[0])
    with torch.no_grad():
        weight[where] = 1.0
        sparsifier.optimizer.state[weight]["exp_avg"][where] = 1.0
    card = as_card(sparsifier)
    assert (card.masked_nonzero, card.masked_momentum) == (1, 1)
    assert card.nnz_by_value == card.nnz_by_mask + 1
    assert soundness(card) == ["E1", "E2", "E3"]
