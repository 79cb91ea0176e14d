"""Fisher forgetting: noise on every weight, the more the less the retained samples need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...data.dataset import Batches, generator
from ...errors import ConfigError
from .masks import Job, keeping
from .samplewise import block_size, evaluating, flat, sample_gradients, split_vector, trainable
from .split import ForgetSplit, plain

# Released constants: bounds of 1 / F, variance of a forgotten class's outputs, factor for output layer, norms, biases.
_BOUND, _BOUND_OUTPUT, _VARIANCE_GONE, _FACTOR = 1e3, 1e2, 1e-4, 10.0


def first_samples(part: Batches, count: int | None, seed: int) -> list[tuple[Tensor, Tensor]]:
    """`count` samples in a random order (None: all), in blocks, without augmentation."""
    calm = plain(part)
    order = torch.randperm(part.samples, generator=generator(seed, 6))[:count]
    x, y = calm.source[order][:2]
    if calm.transform is not None:
        x = calm.transform(x, generator(seed, 8))
    return list(zip(x.split(256), y.split(256), strict=True))


def fisher_diagonal(model: nn.Module, blocks: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Mean over the samples of sum_y p(y|x) (d log p(y|x) / dw)^2, by parameter name; labels are not used.

    Source: Golatkar et al. 2020, equation 8; every class in turn, weighted by the model's own probability.
    """
    parameters = trainable(model)
    total = torch.zeros_like(flat(parameters).detach())
    device = total.device
    count = 0
    with evaluating(model):
        for big, _ in blocks:
            for x in big.split(block_size(parameters)):
                x = x.to(device)
                with torch.no_grad():
                    p = model(x).softmax(1)
                for label in range(p.shape[1]):
                    rows = sample_gradients(model, x, torch.full((len(x),), label, device=device))
                    total = total + (p[:, label, None] * rows.square()).sum(0)
                count += len(x)
    return split_vector(total / count, parameters)


@dataclass(frozen=True)
class FisherForgetting:
    """w <- w + sqrt(alpha / F) N(0, 1), F the diagonal Fisher of the retain set (FF; Golatkar et al. 2020).

    The released variant: 1 / F is bounded by 1e3 (the output layer's by 1e2) and averaged over the inputs of a unit;
    variances of the output layer and of vectors (norms, biases) are ten times as large; where a class is
    forgotten wholly, its row of the output layer becomes noise of variance 1e-3. Masked weights stay 0.

    Args:
        alpha: scale of the noise; the authors search 1e-9 to 1e-6.
        samples: of the retain set that F is estimated on; None takes all.
        output: name of the output layer; by default the last Linear or convolution.
    Raises:
        ConfigError: alpha <= 0, no sample, frozen parameters, or an output layer of another size than the classes.
    """

    name: ClassVar[str] = "ff"
    alpha: float = 1e-7
    samples: int | None = 1000
    output: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha, the scale of the noise, must be positive, got {self.alpha}")
        if self.samples is not None and self.samples < 1:
            raise ConfigError(f"samples must be at least 1, or None for all, got {self.samples}")

    @torch.no_grad()
    def apply(self, model: nn.Module, split: ForgetSplit, job: Job) -> nn.Module:
        """The model, changed in place."""
        output = output_layer(model, self.output)
        with torch.enable_grad():
            fisher = fisher_diagonal(model, first_samples(split.retain, self.samples, job.seed))
        source = generator(job.seed, 7)
        with keeping(model, job.masks):
            for name, w in model.named_parameters():
                is_output = name.rpartition(".")[0] == output
                variance = self._variance(fisher[name], is_output)
                if is_output:
                    gone = list(split.whole_classes)
                    if gone and max(gone) >= len(w):
                        raise ConfigError(f"output layer {output!r} has {len(w)} rows, class {max(gone)} has none")
                    w[gone] = 0.0
                    variance[gone] = _VARIANCE_GONE * _FACTOR
                w.add_(variance.sqrt() * torch.randn(w.shape, generator=source).to(w))
        return model

    def _variance(self, fisher: Tensor, is_output: bool) -> Tensor:
        inverse = (1 / (fisher + 1e-8)).clamp(max=_BOUND_OUTPUT if is_output else _BOUND)
        if inverse.ndim > 1:
            inverse = inverse.mean(1, keepdim=True).expand_as(inverse).clone()
        return self.alpha * inverse * (_FACTOR if is_output or inverse.ndim == 1 else 1.0)


def output_layer(model: nn.Module, name: str | None) -> str:
    """The name of the output layer. Raises ConfigError where the model has none."""
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    if name is not None and name not in layers:
        raise ConfigError(f"output={name!r} is no layer of the model; it has {', '.join(layers)}")
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no Linear or convolution; Fisher forgetting needs an output layer"
        )
    return layers[-1] if name is None else name
