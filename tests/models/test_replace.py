"""Exchange of modules and undo."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gossamer.errors import ConfigError
from gossamer.models import build, matching, replace


def small() -> nn.Module:
    return build("mlp", shape=(4,), hidden=(5, 6), classes=3)


def test_matching_by_type_and_glob() -> None:
    model = small()
    assert list(matching(model, nn.Linear)) == ["fc1", "fc2", "head"]
    assert list(matching(model, "fc*")) == ["fc1", "fc2"]
    assert list(matching(model, (nn.ReLU, nn.Flatten))) == ["flatten", "relu1", "relu2"]


def test_replace_and_undo() -> None:
    model = small().eval()
    x = torch.randn(2, 4)
    before, modules = model(x), dict(model.named_modules())
    seen: list[str] = []

    def double(name: str, old: nn.Module) -> nn.Module:
        seen.append(name)
        return nn.Sequential(old, nn.Dropout(0.9))

    undo = replace(model, nn.Linear, double)
    assert seen == ["fc1", "fc2", "head"]
    assert isinstance(model.fc1, nn.Sequential)
    assert not model.fc1.training
    assert torch.equal(model(x), before)
    undo()
    assert dict(model.named_modules()) == modules


def test_none_leaves_a_module() -> None:
    model = small()
    replace(model, nn.Linear, lambda name, _: nn.Identity() if name == "head" else None)
    assert isinstance(model.head, nn.Identity)
    assert isinstance(model.fc1, nn.Linear)


def test_a_shared_module_becomes_one_new_module() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    undo = replace(model, nn.Linear, lambda _, __: nn.Linear(3, 3))
    assert model[0] is model[2]
    assert model[0] is not shared
    undo()
    assert model[0] is shared
    assert model[2] is shared


def test_nothing_is_replaced_inside_a_replaced_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), nn.ReLU())
    names: list[str] = []

    def note(name: str, _: nn.Module) -> nn.Module:
        names.append(name)
        return nn.Identity()

    replace(model, (nn.Sequential, nn.ReLU), note)
    assert names == ["0", "1"]


def test_nothing_to_replace_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        replace(small(), "haed", lambda _, old: old)
    with pytest.raises(ConfigError, match=r"no module of type .*Conv2d"):
        replace(small(), nn.Conv2d, lambda _, old: old)
