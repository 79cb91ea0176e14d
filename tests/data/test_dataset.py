"""Batches are a function of (seed, step); splits are disjoint and fixed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gossamer.data import Batches, Subset, Tensors, generator, hold_out
from gossamer.errors import ConfigError, DataError, ShapeError


def add_noise(x: Tensor, source: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=source)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3), st.booleans())
def test_an_epoch_visits_each_sample_at_most_once_and_misses_less_than_a_batch(
    samples: int, size: int, seed: int, shuffle: bool
) -> None:
    batches = Batches([torch.arange(samples)], size, seed=seed, shuffle=shuffle)
    for epoch in (0, 2):
        seen = torch.cat([batches.batch(epoch * len(batches) + k)[0] for k in range(len(batches))]).tolist()
        assert len(seen) == len(set(seen))
        missed = samples - len(seen)
        assert missed == (samples % min(size, samples) if shuffle else 0)
        if not shuffle:
            assert seen == list(range(samples))


def test_batches_do_not_depend_on_what_was_asked_before() -> None:
    x = torch.arange(20.0)
    one = Batches([x], 6, seed=3, shuffle=True, transform=add_noise)
    other = Batches([x], 6, seed=3, shuffle=True, transform=add_noise)
    in_order = [one.batch(step)[0] for step in range(9)]
    for step in (8, 0, 5, 5, 2, 7):
        assert torch.equal(other.batch(step)[0], in_order[step])


def test_global_random_state_is_neither_read_nor_written() -> None:
    batches = Batches([torch.arange(20.0)], 6, seed=3, shuffle=True, transform=add_noise)
    torch.manual_seed(0)
    expected, state = batches.batch(1)[0], torch.get_rng_state()
    assert torch.equal(state, torch.manual_seed(0).get_state())
    torch.manual_seed(99)
    fresh = Batches([torch.arange(20.0)], 6, seed=3, shuffle=True, transform=add_noise)
    assert torch.equal(fresh.batch(1)[0], expected)


def test_seeds_epochs_and_steps_differ() -> None:
    x = torch.arange(64)
    epochs = [Batches([x], 64, seed=seed, shuffle=True).batch(step)[0] for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    noisy = Batches([torch.zeros(4)], 4, transform=add_noise)
    assert not torch.equal(noisy.batch(0)[0], noisy.batch(1)[0])


def test_targets_follow_their_inputs_and_are_not_transformed() -> None:
    x = torch.arange(30.0)
    batches = Batches([x, 2 * x], 7, shuffle=True, transform=lambda inputs, _: -inputs)
    for inputs, targets in batches:
        assert torch.equal(targets, -2 * inputs)


def test_tensors_gives_everything_in_order() -> None:
    batches = Batches([torch.arange(5)], 2, shuffle=True, transform=lambda x, _: x + 1)
    assert batches.tensors()[0].tolist() == [1, 2, 3, 4, 5]
    assert batches.samples == 5


def test_subset_composes() -> None:
    subset = Subset(Subset(Tensors(torch.arange(10)), torch.tensor([9, 7, 5])), torch.tensor([2, 0]))
    assert len(subset) == 2
    assert subset[torch.tensor([0, 1])][0].tolist() == [5, 9]


def test_generator_streams_are_pinned() -> None:
    """A resumed run on another machine must see the same data, so the derivation may never change."""
    assert torch.randint(1000, (4,), generator=generator(0, 0, 0)).tolist() == PINNED
    assert generator(1, 2).initial_seed() != generator(2, 1).initial_seed()


PINNED = [267, 228, 647, 822]


@given(st.integers(2, 300), st.floats(0, 0.99))
def test_hold_out_splits_once_and_for_all(samples: int, val: float) -> None:
    if round(val * samples) == samples:
        with pytest.raises(ConfigError):
            hold_out(samples, val)
        return
    kept, held = hold_out(samples, val)
    assert len(held) == round(val * samples)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(samples))
    assert torch.equal(hold_out(samples, val)[1], held)


@pytest.mark.parametrize("val", [1.0, -0.1, 2.0, float("nan")])
def test_hold_out_refuses_impossible_fractions(val: float) -> None:
    with pytest.raises(ConfigError, match="held-out fraction"):
        hold_out(10, val)


def test_bad_sources_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[3, 4\]"):
        Batches([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(ShapeError, match="equal first dimensions"):
        Tensors()
    with pytest.raises(DataError, match="without samples"):
        Batches([torch.zeros(0)])
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        Batches([torch.zeros(3)], 0)
    with pytest.raises(ConfigError, match="seed >= 0"):
        Batches([torch.zeros(3)], seed=-1)
