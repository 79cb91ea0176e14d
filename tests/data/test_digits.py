"""The digits: sizes, fixed draws, and pasting checked against a loop."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from gossamer.data import load
from gossamer.data.digits import PasteNoisily, digits, shifted_digits
from gossamer.errors import ConfigError


def test_plain_digits_are_scikit_learns() -> None:
    data = digits()
    x = torch.cat([data.train.tensors()[0], data.test.tensors()[0]])
    y = torch.cat([data.train.tensors()[1], data.test.tensors()[1]])
    images, labels = load_digits(return_X_y=True)
    assert x.shape == (1797, 1, 8, 8)
    # The fixed permutation changes nothing but the order.
    ours = sorted(map(tuple, torch.cat([x.flatten(1) * 16, y[:, None]], dim=1).tolist()))
    assert ours == sorted((*map(float, image), float(label)) for image, label in zip(images, labels, strict=True))
    assert (data.train.samples, data.test.samples, data.classes, data.shape) == (1000, 797, 10, (1, 8, 8))
    assert data.kind == "classification"


def test_shifted_form_has_the_sizes_of_the_paper() -> None:
    data = load("digits-shifted")
    assert (data.train.samples, data.test.samples, data.shape) == (1000, 4782, (1, 12, 12))
    labels = data.test.tensors()[1].view(6, 797)
    assert torch.equal(labels, digits().test.tensors()[1].expand(6, 797))


def test_noisy_form_has_the_sizes_of_the_paper() -> None:
    data = load("digits-noisy")
    assert (data.train.samples, data.test.samples, data.shape) == (1300, 1500, (1, 16, 16))
    labels = data.test.tensors()[1]
    assert torch.equal(labels[:497], labels[497:994])
    noise = data.test.tensors()[0][:, 0, 0, 0]  # a corner that the digits' blank borders leave nearly untouched
    assert noise.std().item() == pytest.approx(0.45, abs=0.03)


def test_test_draws_are_fixed_and_training_draws_fresh() -> None:
    one, other = shifted_digits(seed=0), shifted_digits(seed=1)
    assert torch.equal(one.test.tensors()[0], other.test.tensors()[0])
    assert not torch.equal(one.train.batch(0)[0], other.train.batch(0)[0])
    again = len(one.train)  # the first step of the second epoch
    assert not torch.equal(one.train.batch(0)[0], one.train.batch(again)[0])
    assert torch.equal(one.train.batch(5)[0], shifted_digits(seed=0).train.batch(5)[0])


def test_pasting_equals_a_loop_without_noise() -> None:
    images = torch.rand(50, 1, 8, 8) + 1
    pasted = PasteNoisily(12, 0.0)(images, torch.Generator().manual_seed(0))
    places = set()
    for image, field in zip(images, pasted, strict=True):
        top = int((field[0].sum(1) > 0).int().argmax())
        left = int((field[0].sum(0) > 0).int().argmax())
        expected = torch.zeros(12, 12)
        expected[top : top + 8, left : left + 8] = image[0]
        assert torch.equal(field[0], expected)
        places.add((top, left))
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))


def test_validation_part_is_disjoint_from_training_and_test() -> None:
    data, whole = digits(val=0.25), digits()
    assert data.val is not None
    assert (data.train.samples, data.val.samples, data.test.samples) == (750, 250, 797)
    joined = torch.cat([data.train.tensors()[0], data.val.tensors()[0]]).flatten(1)
    assert sorted(map(tuple, joined.tolist())) == sorted(map(tuple, whole.train.tensors()[0].flatten(1).tolist()))
    assert torch.equal(data.test.tensors()[0], whole.test.tensors()[0])
    assert whole.val is None
    shifted = shifted_digits(val=0.25)
    assert shifted.val is not None
    assert shifted.val.samples == 1500  # six draws of each, as in the test set


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": 7}, "canvas=7"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"train": 1797}, "1797 images"),
        ({"val": 1.0}, "val=1.0"),
        ({"test_draws": 0}, "test_draws=0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shifted_digits(**options)  # type: ignore[arg-type]
