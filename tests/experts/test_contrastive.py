"""Clusters, batches, losses and phases of diversified multiplet upcycling."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gossamer.errors import CheckpointError, ConfigError, DataError, NumericsError, ShapeError
from gossamer.experts import (
    TensorPairs,
    TopK,
    Training,
    accumulate,
    clip_loss,
    cluster,
    cluster_batches,
    embed,
    recall,
    stages,
    train_routers,
    upcycle,
    upcycle_from,
    zero_shot,
)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.ModuleList([nn.Linear(6, 8), self.ffn(), nn.Linear(8, 4)]) for _ in range(2))

    @staticmethod
    def ffn():
        return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, first, second):
        def run(tower, x):
            x = tower[0](x)
            return tower[2](x + tower[1](x))

        return run(self.a, first), run(self.b, second)


def encode(model, first, second):
    return model(first, second)


NAMES = ["a.1", "b.1"]
HOW = Training(steps=6, batch=8, lr=1e-2, warmup=0, scale=10.0)


def pairs(n=120):
    generator = torch.Generator().manual_seed(1)
    centre = torch.randn(3, 6, generator=generator)[torch.arange(n) % 3] * 2
    x = centre + torch.randn(n, 6, generator=generator)
    return TensorPairs(x, x + 0.1 * torch.randn(n, 6, generator=generator))


@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 8)), min_size=1, max_size=60))
def test_accumulated_labels_are_injective(values):
    old, new = torch.tensor(values).T
    joint = accumulate(old, new)
    assert [(int(v) // 9, int(v) % 9) for v in joint] == values


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=13, max_size=60), st.integers(2, 4), st.booleans())
def test_batches_are_single_cluster_and_each_sample_comes_once(labels, size, drop_small):
    labels = torch.tensor(labels)
    batches = cluster_batches(labels, size, drop_small=drop_small)
    everything = torch.cat(batches)
    assert all(len(labels[b].unique()) == 1 for b in batches)
    assert len(everything.unique()) == len(everything)
    if drop_small:
        assert all(len(b) == size for b in batches)
        assert len(everything) == sum(size * (int((labels == v).sum()) // size) for v in labels.unique())
    else:
        assert len(everything) == len(labels)


def test_clusters_take_turns():
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert [int(labels[b][0]) for b in cluster_batches(labels, 2)] == [0, 1, 0, 1, 0]


def test_kmeans_finds_separate_groups():
    centre = torch.eye(6)[torch.arange(90) % 3]
    found = cluster(centre + 0.01 * torch.randn(90, 6), centre, 3)
    assert len(found.unique()) == 3
    assert all(len(found[i::3].unique()) == 1 for i in range(3))


def test_the_loss_is_torch_cross_entropy_both_ways():
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    logits = 20 * F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    target = torch.arange(7)
    expected = sum(F.cross_entropy(m, target, label_smoothing=0.1) for m in (logits, logits.T)) / 2
    assert torch.allclose(clip_loss(a, b, 20.0, 0.1), expected, atol=1e-6)


def test_masked_duplicates_are_no_negatives():
    """Two equal captions: with the mask each row has its partner and the other pair only."""
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    b[1] = b[0]
    same = (b.unsqueeze(0) == b.unsqueeze(1)).all(-1)
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    rows = [logits[0, [0, 2]], logits[1, [1, 2]], logits[2, [2, 0, 1]]]
    columns = [logits[[0, 2], 0], logits[[1, 2], 1], logits[[2, 0, 1], 2]]
    expected = -sum(line.log_softmax(0)[0] for line in rows + columns) / 6
    assert torch.allclose(clip_loss(a, b, 1.0, 0.0, same), expected, atol=1e-6)


def test_stages_change_the_networks_and_nothing_else(tmp_path):
    base = Towers()
    before = copy.deepcopy(base.state_dict())
    models = stages(base, pairs(), encode, NAMES, HOW, count=2, clusters=2, folder=tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in models[0].state_dict().items())
    for model in models[1:]:
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) != name.startswith(tuple(NAMES))
        assert all(p.requires_grad for p in model.parameters())
    lines = []
    again = stages(base, pairs(), encode, NAMES, HOW, count=2, clusters=2, folder=tmp_path, say=lines.append)
    assert all("read from" in line for line in lines)
    for one, two in zip(models, again, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    (tmp_path / "stage-1.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"stage-1.*train the stage again"):
        stages(base, pairs(), encode, NAMES, HOW, count=2, clusters=2, folder=tmp_path)


def test_routers_train_and_nothing_else():
    base = Towers()
    mixed = upcycle_from(stages(base, pairs(), encode, NAMES, HOW, count=1, clusters=2), NAMES, router=TopK(2))
    before = copy.deepcopy(mixed.state_dict())
    train_routers(mixed, pairs(), encode, HOW)
    for name, value in mixed.state_dict().items():
        assert torch.equal(value, before[name]) != name.endswith("gate.weight")


def test_training_that_cannot_change_anything_is_refused():
    with pytest.raises(ConfigError, match="copies of each other"):
        train_routers(upcycle(Towers(), NAMES), pairs(), encode, HOW)
    mixed = upcycle(Towers(), NAMES, init="noise", router=TopK(1, renormalise=False))
    with pytest.warns(UserWarning, match="no gradient"):
        mixed.a[1].router = mixed.b[1].router = TopK(1)
    with pytest.raises(ConfigError, match="no gradient"):
        train_routers(mixed, pairs(), encode, HOW)


def test_bad_input():
    with pytest.raises(ConfigError, match="clusters of 5 samples"):
        cluster(torch.randn(5, 2), torch.randn(5, 2), 6)
    with pytest.raises(DataError, match="no cluster has 8 samples; largest has 3"):
        cluster_batches(torch.tensor([0, 0, 0, 1]), 8)
    with pytest.raises(ShapeError, match="equally many"):
        TensorPairs(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="batch >= 2"):
        Training(batch=1)
    with pytest.raises(ConfigError, match="one stage"):
        stages(Towers(), pairs(), encode, NAMES, HOW, count=0)
    broken = TensorPairs(torch.full((9, 6), float("nan")), torch.zeros(9, 6))
    with pytest.raises(NumericsError, match="first views"):
        embed(Towers(), broken, encode)
    with pytest.raises(NumericsError, match="embeddings"):
        clip_loss(torch.full((2, 3), float("inf")), torch.ones(2, 3))


def test_recall_by_hand():
    """Image 0 has texts 0 and 1; text 1 is nearer to image 1."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.1], [0.4, 1.0], [0.0, 1.0]])
    found = recall(images, texts, torch.tensor([0, 0, 1]), ks=(1, 2))
    assert found["first to second R@1"] == 1.0
    assert found["second to first R@1"] == pytest.approx(2 / 3)
    assert found["second to first R@2"] == 1.0
    with pytest.raises(ShapeError, match="owner"):
        recall(images, texts)


def test_zero_shot_averages_the_templates():
    prompts = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.0, 1.0], [0.0, 1.0]]])
    images = torch.tensor([[1.0, 0.2], [0.1, 1.0], [1.0, 1.2]])
    assert zero_shot(images, prompts, torch.tensor([0, 1, 0])) == pytest.approx(1.0)
    assert zero_shot(images, prompts[:, 0], torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
