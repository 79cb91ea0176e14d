"""Small pruned networks."""

import pytest
import torch
from torch import nn

from gossamer.engine import tune
from gossamer.models.zoo import build


@pytest.fixture(autouse=True)
def quick(tmp_path_factory, monkeypatch):
    """Short measurements, out of the user's cache."""
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(tune, "SECONDS", 0.0)
    monkeypatch.setattr(tune, "RACE_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained_looking(model: nn.Module, sparsity: float = 0.8, seed: int = 0) -> nn.Module:
    """Statistics other than those of a fresh model, and the smallest weights of each wide layer pruned."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight[0].numel() >= 16:
            weight = module.weight.data
            kth = weight.abs().flatten().kthvalue(max(1, int(sparsity * weight.numel()))).values
            weight[weight.abs() <= kth] = 0
    return model.eval()


@pytest.fixture(scope="session")
def pruned():
    """A function: model, sparsity -> the same model, pruned, in evaluation mode."""
    return trained_looking


@pytest.fixture(scope="session")
def digits():
    torch.manual_seed(0)
    return trained_looking(build("mobilenet-digits"), 0.9)
