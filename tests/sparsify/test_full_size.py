"""The full-size code path behind the same configuration: ResNet-50 at 224 pixels, ERK at 90 %, a few steps of RigL."""

import torch
from torch.nn import functional as F

from gossamer import recipes
from gossamer.models import build
from gossamer.sparsify import Sparsifier
from gossamer.sparsify.allocation import budget


def test_resnet50_at_224():
    torch.manual_seed(0)
    model = build("resnet-50")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)
    sp = Sparsifier(model, optimizer, recipes.rigl(0.9, every=1), steps=3)
    total = sum(group.numel for group in sp.groups)
    assert total == 25_502_912  # all convolutions and the classifier, without norms and biases
    for step in range(3):
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(step)).expand(2, -1, -1, -1)
        F.cross_entropy(model(x), torch.tensor([1, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
        sp.check()
        assert sum(int(mask.sum()) for mask in sp.masks.values()) == budget(0.1, total)
    assert sp.history[-1]["flips"] > 0
    sp.finalize()
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name in sp.masks)
    assert zeros >= total - budget(0.1, total)
