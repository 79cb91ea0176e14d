"""The snippet of the README runs as it is written."""

import re
from pathlib import Path

import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def test_the_snippet_gives_a_plain_sparse_model():
    snippet = next(
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "Sparsifier" in code
    )
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    inputs = torch.randn(200, 8, 16)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "loader": [(x, x[:, :4].argmax(1)) for x in inputs],
        "loss_fn": nn.CrossEntropyLoss(),
        "epochs": 1,
    }
    before = nn.functional.cross_entropy(model(inputs[0]), inputs[0, :, :4].argmax(1)).item()
    exec(snippet, names)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    kept, total = sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)
    assert kept == round(0.05 * total)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert not any(module._forward_hooks or hasattr(module, "parametrizations") for module in model.modules())
    assert nn.functional.cross_entropy(model(inputs[0]), inputs[0, :, :4].argmax(1)).item() < before
