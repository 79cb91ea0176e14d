"""Spectral gaps of masks: graphs whose spectrum is known, and the formula by networkx's adjacency."""

import math

import pytest
import torch

from gossamer.architectures.isoflop import iso_flop, iso_recipe, ramanujan_gap, spectra, weighted_gap
from gossamer.errors import ConfigError, ShapeError
from gossamer.models import build
from gossamer.sparsify import Sparsifier


def test_known_graphs():
    complete = torch.ones(6, 6, dtype=torch.bool)  # mu = 6, 0, ...
    assert ramanujan_gap(complete) == pytest.approx(2 * math.sqrt(5))
    halves = torch.block_diag(*[torch.ones(3, 3)] * 2).bool()  # two graphs: mu_2 = mu_1 = 3
    assert ramanujan_gap(halves) == pytest.approx(2 * math.sqrt(2) - 3)
    ring = torch.eye(8).bool() | torch.eye(8).roll(1, 0).bool()  # a cycle of 16: mu_2 = 2 cos(pi / 8)
    assert ramanujan_gap(ring) == pytest.approx(2 - 2 * math.cos(math.pi / 8), abs=1e-6)


def test_the_gap_is_that_of_the_bipartite_adjacency():
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    mask = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    graph = networkx.Graph()
    graph.add_nodes_from(range(12))
    graph.add_edges_from((int(i), 7 + int(j)) for i, j in mask.nonzero())
    values = sorted(networkx.adjacency_spectrum(graph).real, reverse=True)
    kept = int(mask.sum())
    wanted = math.sqrt(kept / 7 - 1) + math.sqrt(kept / 5 - 1) - values[1]
    assert ramanujan_gap(mask) == pytest.approx(wanted, abs=1e-6)


def test_weighted_gaps():
    assert weighted_gap(torch.outer(torch.ones(4), torch.tensor([1.0, -2.0, 3.0]))) == pytest.approx(1)
    assert weighted_gap(torch.eye(4)) == pytest.approx(0)
    assert weighted_gap(torch.zeros(3, 3)) == 0


def test_every_masked_layer_of_a_wide_network_is_reported():
    torch.manual_seed(0)
    model, example = build("mlp", shape=(1, 8, 8), hidden=(12, 12)), torch.zeros(1, 1, 8, 8)
    iso = iso_flop(model, "wide", 0.75, example, first_dense=False)
    optimizer = torch.optim.SGD(iso.model.parameters(), lr=0.05)
    sparsifier = Sparsifier(iso.model, optimizer, iso_recipe(iso, "static"), 2)
    rows = spectra(iso.model, sparsifier.masks)
    assert {row.name: row.density for row in rows} == pytest.approx(iso.densities)
    assert all(0 <= row.weighted <= 1 for row in rows)


def test_what_is_no_graph_is_refused():
    with pytest.raises(ShapeError, match="inputs and outputs"):
        ramanujan_gap(torch.ones(3).bool())
    with pytest.raises(ConfigError, match=r"mean degrees 0\.5"):
        ramanujan_gap(torch.tensor([[1, 0], [0, 0]]).bool())
