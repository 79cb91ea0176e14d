"""Flow losses against torchgfn's, on its own trajectories. Skipped where it is not installed.

It wants numpy below 2; install it without dependencies, and what it imports:
pip install --no-deps torchgfn==2.4.1 tensordict einops orjson cloudpickle dill pyvers linear-attention-transformer \
    local-attention axial-positional-embedding product-key-memory linformer colt5-attention hyper-connections
"""

import pytest
import torch
from torch import nn

from gossamer.architectures.gflownet import Flow, HyperGrid, Tabular
from gossamer.architectures.gflownet.balance import loss
from gossamer.architectures.gflownet.memory import Memory
from gossamer.architectures.gflownet.rollout import Rollout

pytestmark = pytest.mark.filterwarnings("ignore")
SIDE, DIMS, COUNT = 5, 2, 64


class Part(nn.Module):
    """Columns of our table as one of its modules: states (n, dims) -> scores."""

    def __init__(self, policy, columns):
        super().__init__()
        self.policy, self.columns = policy, columns
        self.input_dim, self.output_dim = DIMS, len(range(2 * policy.env.actions)[columns])

    def forward(self, states):
        return self.policy.table[self.policy.env.index(states.long())][..., self.columns]


@pytest.fixture(scope="module")
def world():
    """(our policy, its environment, its estimators, its trajectories, the same as a rollout, log rewards)."""
    pytest.importorskip("gfn", reason="torchgfn is not installed")
    from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
    from gfn.gym import HyperGrid as Theirs
    from gfn.samplers import Sampler

    ours = HyperGrid(SIDE, DIMS)
    env = Theirs(ndim=DIMS, height=SIDE, validate_modes=False)
    torch.manual_seed(0)
    policy = Tabular(ours, learn_backward=True)
    with torch.no_grad():
        policy.table.normal_()
        policy.log_z.fill_(0.7)
    actions = ours.actions
    ahead = DiscretePolicyEstimator(Part(policy, slice(0, actions)), n_actions=actions)
    back = DiscretePolicyEstimator(Part(policy, slice(actions, 2 * actions - 1)), n_actions=actions, is_backward=True)
    flow = ScalarEstimator(Part(policy, slice(2 * actions - 1, 2 * actions)))
    found = Sampler(ahead).sample_trajectories(env, n=COUNT)
    taken = found.actions.tensor[..., 0]
    alive = (taken >= 0) & (taken < actions)
    states = found.states.tensor[:-1].long().clamp_min(0)
    last = states.gather(0, (alive.sum(0) - 1)[None, :, None].expand(1, -1, DIMS))[0]
    rollout = Rollout(states, torch.where(alive, taken, actions - 1), alive, last)
    return policy, env, (ahead, back, flow), found, rollout, found.log_rewards


def ours(world, kind):
    policy, _, _, _, rollout, log_rewards = world
    memory = Memory()
    rewards = dict(zip(map(tuple, rollout.last.tolist()), log_rewards.double().exp().tolist(), strict=True))
    memory.add(rollout.last, lambda objects: torch.tensor([rewards[tuple(o)] for o in objects.tolist()]))
    return float(loss(policy, rollout, memory, Flow(kind, order=None), torch.Generator()).detach())


def test_trajectory_balance_is_torchgfns(world):
    from gfn.gflownet import TBGFlowNet

    policy, env, (ahead, back, _), found, _, _ = world
    theirs = TBGFlowNet(ahead, back, logZ=policy.log_z).loss(env, found)
    assert ours(world, "tb") == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_sub_trajectory_balance_is_torchgfns(world):
    from gfn.gflownet import SubTBGFlowNet

    _, env, (ahead, back, flow), found, _, _ = world
    theirs = SubTBGFlowNet(ahead, back, flow, weighting="geometric_within", lamda=0.9).loss(env, found)
    assert ours(world, "subtb") == pytest.approx(float(theirs.detach()), rel=1e-5)
