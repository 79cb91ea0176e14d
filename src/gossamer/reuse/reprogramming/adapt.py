"""Adapting a frozen classifier to another task: reprogramming and linear probing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, DataError, NumericsError
from .mapping import LabelMapping
from .prompt import VisualPrompt

DROPS = (0.5, 0.72)  # fractions of training at which the learning rate falls to a tenth


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients; the model itself."""
    return model.eval().requires_grad_(False)


def few_shot(labels: Tensor, shots: int | None, seed: int = 0) -> Tensor:
    """Indices of `shots` samples of every class, at random; None: all.

    Raises:
        DataError: a class has too few samples, or none (named).
    """
    if shots is None:
        return torch.arange(len(labels))
    if shots < 1:
        raise ConfigError(f"shots must be at least 1, got {shots}")
    rng = torch.Generator().manual_seed(seed)
    picked = []
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        if len(own) < shots:
            raise DataError(f"class {label} has {len(own)} samples, {shots} shots were asked for")
        picked.append(own[torch.randperm(len(own), generator=rng)[:shots]])
    return torch.cat(picked)


class Reprogrammed(nn.Module):
    """A frozen classifier behind a prompt, read through a map of labels: (B, C, h, w) -> (B, targets)."""

    labels: Tensor

    def __init__(self, source: nn.Module, prompt: VisualPrompt, targets: int) -> None:
        super().__init__()
        self.source, self.prompt = freeze(source), prompt
        self.register_buffer("labels", torch.zeros(targets, 1, dtype=torch.long))

    def train(self, mode: bool = True) -> Reprogrammed:
        """The source stays in evaluation mode: its statistics must not move."""
        super().train(mode)
        self.source.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the target classes: the mean of those of their source labels."""
        return self.source(self.prompt(x))[:, self.labels].mean(2)


def reprogram(
    source: nn.Module,
    x: Tensor,
    y: Tensor,
    prompt: VisualPrompt,
    mapping: LabelMapping = LabelMapping(),
    *,
    epochs: int = 100,
    lr: float = 0.01,
    batch: int = 128,
    seed: int = 0,
) -> Reprogrammed:
    """Learn the border and the map of labels; no weight of the source changes.

    Args:
        source: a classifier; it is frozen. x: (n, C, h, w) pictures; y: (n,) labels 0 ... targets - 1.
        epochs, lr, batch: the authors' 100, Adam 0.01 and 128; a tenth of it from 50 % and again from 72 %.
        seed: of the order and of a random map.
    Raises:
        ConfigError: too few source labels. NumericsError: the loss is not finite.
    """
    targets = int(y.max()) + 1
    net = Reprogrammed(source, prompt, targets)

    def remap(epoch: int) -> None:
        if mapping.due(epoch):
            logits = predict(nn.Sequential(prompt, source), x, batch)
            net.labels = mapping.make(logits.argmax(1), y, logits.shape[1], targets, seed)

    _train(net, prompt, x, y, epochs, lr, batch, seed, remap)
    return net.eval()


def linear_probe(
    source: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    head: str | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    epochs: int = 100,
    lr: float = 0.01,
    batch: int = 128,
    decay: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A new linear head on the frozen features of `source`; all else as in `reprogram`.

    Args:
        head: name of the layer whose input are the features; None: the last linear layer.
        prepare: brings pictures to the source's input, such as a resize.
        decay: L2 penalty on the head's weights (half of it times the square), for well-posed solutions.
    """
    feature, width = features_of(freeze(source), head)
    shown = x if prepare is None else prepare(x)
    with torch.no_grad():
        inputs = torch.cat([feature(part) for part in shown.split(batch)])
    classifier = nn.Linear(width, int(y.max()) + 1)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    _train(classifier, classifier, inputs, y, epochs, lr, batch, seed, decay=decay)
    return _Probe(feature, classifier, prepare).eval()


class _Probe(nn.Module):
    def __init__(
        self, feature: Callable[[Tensor], Tensor], head: nn.Linear, prepare: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.feature, self.head, self.prepare = feature, head, prepare

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.feature(x if self.prepare is None else self.prepare(x)))


def features_of(source: nn.Module, head: str | None = None) -> tuple[Callable[[Tensor], Tensor], int]:
    """(function from inputs to the features that the layer `head` reads, their number).

    Raises:
        ConfigError: no linear layer of that name, or none at all.
    """
    layers = {name: module for name, module in source.named_modules() if isinstance(module, nn.Linear)}
    if not layers or (head is not None and head not in layers):
        raise ConfigError(f"the source has no linear layer {head or ''}; there are {list(layers)}")
    layer = layers[head] if head is not None else list(layers.values())[-1]

    def feature(x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            source(x)
        finally:
            handle.remove()
        return seen[0].flatten(1)

    return feature, layer.in_features


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = 512) -> Tensor:
    """Outputs of all samples."""
    return torch.cat([model(part) for part in x.split(batch)])


def _train(
    net: nn.Module,
    trained: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    lr: float,
    batch: int,
    seed: int,
    before: Callable[[int], None] = lambda epoch: None,
    decay: float = 0.0,
) -> None:
    if epochs < 1 or batch < 1:
        raise ConfigError(f"epochs and batch must be at least 1, got {epochs} and {batch}")
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(trained.parameters(), lr=lr, weight_decay=decay)
    for epoch in range(epochs):
        before(epoch)
        optimizer.param_groups[0]["lr"] = lr * 0.1 ** sum(epoch >= drop * epochs for drop in DROPS)
        for picked in torch.randperm(len(x), generator=rng).split(batch):
            loss = F.cross_entropy(net(x[picked]), y[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not bool(torch.isfinite(loss)):
            raise NumericsError(f"the loss is {float(loss.detach())} in epoch {epoch}; lower the learning rate {lr}")
