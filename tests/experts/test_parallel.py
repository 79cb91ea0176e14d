"""Experts over two processes give what one process gives, with all gradients."""

import pytest
import torch
from experts_jobs import compare

from gossamer.errors import ConfigError
from gossamer.experts import Experts, MoE, TopK, shard, unshard
from gossamer.experts.parallel import split
from gossamer.training.distributed import launch


@pytest.mark.parametrize(
    ("experts", "empty"),
    [
        (5, False),
        pytest.param(4, True, marks=pytest.mark.slow),
        pytest.param(1, False, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(tmp_path, experts, empty):
    """Five experts do not divide; four with a rank without tokens; one expert leaves a rank without any."""
    launch(compare, 2, str(tmp_path), experts, empty)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_experts_split_as_evenly_as_they_can():
    assert [split(n, 3) for n in (6, 7, 8, 2)] == [[2, 2, 2], [3, 2, 2], [3, 3, 2], [1, 1, 0]]


def test_needs_a_process_group():
    with pytest.raises(ConfigError, match="process group"):
        shard(MoE(Experts(2, 4, 4), TopK(2)))
    with pytest.raises(ConfigError, match="not sharded"):
        unshard(MoE(Experts(2, 4, 4), TopK(2)))


def test_the_exchange_has_the_right_gradient_in_one_process(tmp_path):
    import torch.distributed as dist

    from gossamer.experts.parallel import _Exchange

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda t: _Exchange.apply(t, [3], [3], None), x)
    finally:
        dist.destroy_process_group()
