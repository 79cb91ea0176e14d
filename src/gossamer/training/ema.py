"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError


class EMA:
    """average := decay * average + (1 - decay) * value, for every floating tensor of the state; others are copied.

    Normalisation statistics are averaged like weights. Early on the decay is min(decay, (1 + n) / (10 + n)) after n
    updates, so that the first weights do not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"the decay of an average lies in (0, 1), got {decay}")
        self.decay, self.updates = decay, 0
        self.average = {name: tensor.clone() for name, tensor in _tensors(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in _tensors(model).items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - decay)
            else:
                self.average[name].copy_(tensor)

    @torch.no_grad()
    def copy_to(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
        """Overwrite the model's weights with the average. Entries off a mask become 0: the average of a moving mask
        is not sparse by itself."""
        for name, tensor in _tensors(model).items():
            value = self.average[name]
            if masks and name in masks:
                value = torch.where(masks[name], value, torch.zeros_like(value))
            tensor.copy_(value)

    @contextmanager
    def applied(self, model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Use the average inside the block; the weights come back at its end."""
        own = {name: tensor.clone() for name, tensor in _tensors(model).items()}
        self.copy_to(model, masks)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _tensors(model).items():
                    tensor.copy_(own[name])

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: dict) -> None:
        self.updates = int(state["updates"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors of the state."""
    return {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
