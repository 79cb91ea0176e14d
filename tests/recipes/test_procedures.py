"""Procedures: exact densities per phase, nested masks, rewinding to the remembered bits, resume."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from gossamer.data import Batches
from gossamer.data.dataset import Dataset
from gossamer.errors import ConfigError
from gossamer.recipes import asp, imp, train_prune_finetune
from gossamer.sparsify.allocation import budget
from gossamer.training import Classification, TrainConfig, run_stages


@pytest.fixture
def data():
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    batches = Batches([x, y], 64, seed=0, shuffle=True)
    return Dataset(batches, None, Batches([x, y], 64), 4, (16,))


def task():
    torch.manual_seed(0)
    return Classification(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)))


TRAIN = TrainConfig(steps=12, device="cpu", checkpoint_every=4)


def zeros(model):
    return {n: p.detach() == 0 for n, p in model.named_parameters() if p.ndim > 1}


def test_phases_prune_geometrically_and_nest(data):
    seen = []
    stages = imp(0.9, 3, TRAIN)
    run = task()
    for count in range(2, len(stages) + 1):
        fresh = task()
        run_stages(stages[:count], fresh, data)
        seen.append(zeros(fresh.model))
        run = fresh
    total = sum(z.numel() for z in seen[0].values())
    for k, masks in enumerate(seen, start=1):
        kept = total - sum(int(z.sum()) for z in masks.values())
        assert kept == budget(0.1 ** (k / 3), total)
    for earlier, later in pairwise(seen):
        assert all(bool((earlier[n] <= later[n]).all()) for n in earlier)
    assert run.masks


def test_rewound_weights_are_the_initial_ones(data):
    initial = {n: p.detach().clone() for n, p in task().model.named_parameters()}
    caught = {}
    stages = imp(0.5, 1, TRAIN)
    last = stages[-1]

    def watch(model, sparsifier, memory):
        last.on_start(model, sparsifier, memory)
        caught.update({n: p.detach().clone() for n, p in model.named_parameters()})
        caught.update({f"mask {n}": m.clone() for n, m in sparsifier.entry_masks.items()})

    run_stages([*stages[:-1], replace(last, on_start=watch)], task(), data)
    for name, before in initial.items():
        mask = caught.get(f"mask {name}", torch.ones_like(before, dtype=torch.bool))
        assert torch.equal(caught[name], torch.where(mask, before, 0.0))


def test_late_rewinding_trains_the_rest(data):
    stages = imp(0.5, 2, TRAIN, rewind=0.25)
    assert [s.name for s in stages] == ["early", "dense", "phase-1", "phase-2"]
    assert [s.train.steps for s in stages] == [3, 9, 9, 9]
    memory = run_stages(stages, task(), data)
    assert memory.results["phase-2"]["density"] == pytest.approx(0.5, abs=0.01)


def test_resumed_procedure_has_the_same_bits(data, tmp_path):
    whole = task()
    run_stages(imp(0.8, 2, TRAIN), whole, data)
    stopped = task()
    run_stages(imp(0.8, 2, TRAIN), stopped, data, tmp_path / "a")
    again = task()
    for path in (tmp_path / "a").glob("*phase*"):  # as if stopped after the dense stage
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_stages(imp(0.8, 2, TRAIN), again, data, tmp_path / "a", resume=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_asp_fine_tunes_a_trained_model(data):
    done = task()
    run_stages(train_prune_finetune(0.5, TRAIN, TRAIN, recipe=asp()), done, data)
    weight = done.model[0].weight.detach()
    assert bool(((weight.view(32, 4, 4) != 0).sum(2) <= 2).all())


def test_bad_procedures():
    with pytest.raises(ConfigError, match="rewind"):
        imp(0.5, 2, TRAIN, rewind=1.0)
    with pytest.raises(ConfigError, match="phases"):
        imp(0.5, 0, TRAIN)
