"""Two processes on gloo, each from other weights: soups, slimming, N:M, fading and shrinkage end alike on both."""

import pytest
import recipe_jobs
import torch

from gossamer.runs.checkpoint import load_state
from gossamer.sparsify.lowest import kept_count
from gossamer.sparsify.patterns import NM
from gossamer.training.distributed import fingerprint, launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(recipe_jobs.everything, 2, str(folder))
    return folder


def pair(folder, name):
    return [load_state(folder / f"{name}-{rank}")[0] for rank in (0, 1)]


@pytest.mark.parametrize("name", [*recipe_jobs.SINGLE, "soup", "slim"])
def test_masks_and_weights_are_equal_on_both(trained, name):
    zero, one = pair(trained, name)
    assert fingerprint(zero["model"]) == fingerprint(one["model"])
    assert fingerprint(zero["masks"]) == fingerprint(one["masks"])
    assert bool(zero["masks"]) == (name != "slim")


@pytest.mark.parametrize("name", recipe_jobs.SINGLE)
def test_masks_are_those_of_the_method(trained, name):
    """What is asked for, exactly, on the data of both processes together."""
    zero, _ = pair(trained, name)
    options = recipe_jobs.SINGLE[name]
    for layer, mask in zero["masks"].items():
        if "m" in options:
            NM(options["n"], options["m"]).check(mask)
        else:
            assert int(mask.sum()) == kept_count(0.9, mask.numel())
        assert not zero["model"][layer][~mask].any()


def test_stages_end_as_they_should(trained):
    assert pair(trained, "soup")[0]["model"]["0.weight"].shape == torch.Size((32, 16))
    assert pair(trained, "slim")[0]["model"]["0.weight"].shape == torch.Size((16, 16))
    assert "workers = 1" in (trained / "refused-0").read_text()
