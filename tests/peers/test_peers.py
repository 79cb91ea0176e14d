"""Against other libraries, where they define the same thing. Skipped where they are not installed.

They want other versions of numpy or torchvision than we do; install them without dependencies:
pip install --no-deps sparsimony==0.1.0 rigl-torch==0.5.2
"""

import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from gossamer.maths.schedules import Constant, Every
from gossamer.models import build
from gossamer.sparsify import Recipe, Sparsifier, select
from gossamer.sparsify.allocation import ERK
from gossamer.sparsify.scores import Gradient, Magnitude
from gossamer.sparsify.updates import PruneGrow


@pytest.mark.filterwarnings("ignore")
def test_erk_densities_are_sparsimonys():
    distributions = pytest.importorskip("sparsimony.distributions.base", reason="sparsimony is not installed")
    model = build("resnet-18")
    groups = select(model)
    for group in groups:  # it reads the original of a parametrised weight
        parametrize.register_parametrization(
            model.get_submodule(group.name[: -len(".weight")]), "weight", nn.Identity()
        )
    configs = [
        {
            "module": model.get_submodule(g.name.rpartition(".")[0]),
            "tensor_name": "weight",
            "module_fqn": g.name.rpartition(".")[0],
            "tensor_fqn": g.name,
        }
        for g in groups
    ]
    for sparsity in (0.5, 0.9, 0.98):
        theirs = distributions.ERKDistribution()(sparsity, configs)
        ours = ERK().densities({g.name: g.shape for g in groups}, 1 - sparsity)
        # they cut the number of zeros of each layer to an integer before they solve for eps: one weight a layer
        cut = len(groups) / ((1 - sparsity) * sum(g.numel for g in groups))
        for group, config in zip(groups, theirs, strict=True):
            assert ours[group.name] == pytest.approx(1 - config["sparsity"], rel=cut)


def _rigl_torch():
    """rigl-torch imports torchvision for two isinstance checks only; two empty classes serve here."""
    if "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401
        except ImportError:
            blocks = types.SimpleNamespace(BasicBlock=type("BasicBlock", (), {}), Bottleneck=type("B", (), {}))
            stub = types.ModuleType("torchvision")
            stub.models = types.SimpleNamespace(resnet=blocks)
            sys.modules["torchvision"] = stub
    return pytest.importorskip("rigl_torch.RigL", reason="rigl-torch is not installed")


@pytest.mark.filterwarnings("ignore")
def test_drop_and_grow_sets_are_rigl_torchs():
    """Uniform distribution, first layer dense, equal weights, masks and gradients: equal masks and weights after."""
    rigl = _rigl_torch()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40, bias=False), nn.ReLU(), nn.Linear(40, 30, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    scheduler = rigl.RigLScheduler(
        model, optimizer, dense_allocation=0.2, T_end=10**9, ignore_linear_layers=False, delta=2, alpha=0.3
    )
    mask = scheduler.backward_masks[1].clone().bool()

    copied = nn.Sequential(nn.Linear(20, 40, bias=False), nn.ReLU(), nn.Linear(40, 30, bias=False))
    copied.load_state_dict(model.state_dict())
    ours = torch.optim.SGD(copied.parameters(), 0.0)
    move = PruneGrow(Constant(0.3), Magnitude(), Gradient(), Every(2))
    sp = Sparsifier(copied, ours, Recipe("rigl", updates=(move,)), 10)
    sp.masks["0.weight"].fill_(True)
    sp.masks["2.weight"].copy_(mask)

    for step in range(2):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step))
        for net, opt in ((model, optimizer), (copied, ours)):
            opt.zero_grad()
            net(x).square().sum().backward()
            if net is copied or scheduler():
                opt.step()
    assert torch.equal(sp.masks["2.weight"], scheduler.backward_masks[1].bool())
    assert int((sp.masks["2.weight"] != mask).sum()) > 0
    torch.testing.assert_close(copied[2].weight, model[2].weight)
