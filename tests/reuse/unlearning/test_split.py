"""Splits are disjoint and complete, and say what is wrong with a request."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.data import Batches, load
from gossamer.data.transforms import Chain, Normalise, RandomFlip
from gossamer.errors import ConfigError, DataError, ShapeError
from gossamer.reuse.unlearning.split import ForgetSplit, as_batches, labels_of, plain, shuffled

X, Y = torch.arange(24.0).view(12, 2), torch.arange(12) % 3


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_both_parts_together_are_the_training_set(chosen):
    split = ForgetSplit.by_index((X, Y), sorted(chosen))
    forget, retain = split.forget.tensors(), split.retain.tensors()
    assert len(forget[1]) == len(chosen)
    assert torch.equal(forget[0], X[sorted(chosen)])
    assert torch.equal(forget[1], Y[sorted(chosen)])
    assert sorted([*forget[0][:, 0].tolist(), *retain[0][:, 0].tolist()]) == X[:, 0].tolist()
    left = set(Y.tolist()) - set(retain[1].tolist())
    assert set(split.whole_classes) == left


def test_a_class_goes_and_the_test_set_loses_it():
    data = load("digits", batch_size=50)
    split = ForgetSplit.by_class(data, 3)
    assert set(labels_of(split.forget).tolist()) == {3}
    assert split.forget.samples + split.retain.samples == 1000
    assert 3 not in labels_of(split.retain)
    tested = labels_of(split.tested())
    assert 3 not in tested
    assert len(tested) == int((labels_of(data.test) != 3).sum())
    assert split.scenario == "class-wise: 3"
    assert ForgetSplit.by_class(data, (0, 3)).whole_classes == (0, 3)


def test_a_random_share_depends_on_the_seed_alone():
    data = load("digits")
    first, again, other = (ForgetSplit.at_random(data, 0.1, seed=seed) for seed in (1, 1, 2))
    assert first.forget.samples == 100
    assert torch.equal(first.forget.tensors()[0], again.forget.tensors()[0])
    assert not torch.equal(first.forget.tensors()[0], other.forget.tensors()[0])
    assert first.tested() is data.test


def test_measuring_drops_augmentation_and_training_keeps_it():
    images = torch.rand(6, 1, 4, 4)
    part = Batches([images, Y[:6]], 2, transform=Chain(RandomFlip(1.0), Normalise((0.5,), (2.0,))))
    assert torch.allclose(plain(part).batch(0)[0], (images - 0.5) / 2)
    assert torch.allclose(shuffled(part, 6, 0).batch(0)[0].sum(), ((images - 0.5) / 2).sum())
    assert not torch.allclose(part.batch(0)[0], plain(part, 2).batch(0)[0])


def test_datasets_of_items_are_sets_too():
    items = torch.utils.data.TensorDataset(X, Y)
    part = as_batches(items, "forget")
    assert torch.equal(part.tensors()[0], X)
    assert torch.equal(labels_of(part), Y)


@pytest.mark.parametrize(
    ("forget", "error", "words"),
    [
        ([], DataError, "empty"),
        (list(range(12)), DataError, "whole training set"),
        ([12], DataError, "sample 12 does not exist"),
        ([-1], DataError, "sample -1 does not exist"),
        ([3, 5, 3], DataError, "sample 3 is named twice"),
        ([0.5], ShapeError, "whole numbers"),
        ([[1]], ShapeError, "whole numbers"),
    ],
)
def test_bad_lists(forget, error, words):
    with pytest.raises(error, match=words):
        ForgetSplit.by_index((X, Y), forget)


def test_bad_requests():
    with pytest.raises(DataError, match="class 7 has no training sample"):
        ForgetSplit.by_class((X, Y), 7)
    with pytest.raises(ConfigError, match="share"):
        ForgetSplit.at_random((X, Y), 1.0)
    few, rest = Y == 2, Y != 2
    with pytest.raises(DataError, match=r"whole_classes=\(2,\)"):
        ForgetSplit.of((X[few], Y[few]), (X[rest], Y[rest]))
    with pytest.raises(DataError, match="holds samples of"):
        ForgetSplit.of((X[few], Y[few]), (X, Y), whole_classes=(2,))
    with pytest.raises(DataError, match="no sample of"):
        ForgetSplit.of((X[Y == 1][:1], Y[Y == 1][:1]), (X[rest], Y[rest]), whole_classes=(2,))
    with pytest.raises(DataError, match="no sample of the classes"):  # the test set alone has the class
        ForgetSplit.of((X[Y == 1][:1], Y[Y == 1][:1]), (X[rest], Y[rest]), (X, Y))
    with pytest.raises(DataError, match="only"):
        ForgetSplit.of((X[few], Y[few]), (X[rest], Y[rest]), (X[few], Y[few]), (2,)).tested()
    with pytest.raises(DataError, match="the forget set is empty"):
        ForgetSplit.of((X[:0], Y[:0]), (X, Y))
    with pytest.raises(DataError, match="pair of tensors"):
        as_batches(X, "retain")
