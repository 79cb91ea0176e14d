"""Averages of models: soups of several, running averages of one, and the batch statistics that they invalidate."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from ..errors import ConfigError, MaskError, NumericsError, ShapeError, unknown

log = logging.getLogger(__name__)
State = Mapping[str, Tensor]
Source = nn.Module | State


def _state(source: Source) -> State:
    return source.state_dict() if isinstance(source, nn.Module) else source


def _weights(count: int | None, weights: Sequence[float] | None) -> list[float] | None:
    """Normalised weights, None for a plain mean."""
    if weights is None:
        return None
    if (count is not None and len(weights) != count) or any(not w >= 0 for w in weights) or not sum(weights) > 0:
        raise ConfigError(f"need one weight >= 0 for each model, not all zero; got {list(weights)} for {count} models")
    total = math.fsum(weights)
    return [w / total for w in weights]


def average(
    models: Iterable[Source], weights: Sequence[float] | None = None, require_same_mask: bool = True
) -> dict[str, Tensor]:
    """The weighted mean of models as a state dict, one model in memory at a time.

    Sums run in float64 and are rounded once to the type of the first model. Integer tensors (the number of batches
    that normalisation has seen) are not averaged: the largest is taken. Batch statistics are averaged, which is not
    the same as statistics of the averaged model: call `recalibrate_bn` after loading.

    Args:
        models: modules or state dicts; an iterator may load them one by one.
        weights: one >= 0 for each model, normalised here; default: equal.
        require_same_mask: exact zeros of tensors with two or more dimensions must lie in the same places, so that
            the mean is as sparse as its parts. False: the mean has the union of the masks.
    Raises:
        ConfigError: no model, weights that do not fit, other tensor names. ShapeError: another shape.
        MaskError: unequal zeros (the tensor is named). NumericsError: NaN or infinity.
    """
    shares = _weights(len(models) if isinstance(models, Sequence) else None, weights)
    first: dict[str, Tensor] = {}
    total: dict[str, Tensor] = {}
    count = 0
    for source in models:
        state = _state(source)
        if not first:
            first = {name: value.detach().clone() for name, value in state.items()}
            total = {n: _zero(v) for n, v in first.items()}
        if shares is not None and count >= len(shares):
            raise ConfigError(f"need one weight for each model, got {len(shares)} for more models")
        _check_alike(first, state, count, require_same_mask)
        for name, value in state.items():
            _accumulate(total[name], value.detach(), 1.0 if shares is None else shares[count])
        count += 1
    if not count or (shares is not None and count != len(shares)):
        raise ConfigError(f"cannot average {count} models" + (f" with {len(shares)} weights" if shares else ""))
    scale = count if shares is None else 1
    return {
        n: (t / scale if t.is_floating_point() or t.is_complex() else t).to(first[n].dtype) for n, t in total.items()
    }


def _zero(value: Tensor) -> Tensor:
    """An accumulator: float64 for real, complex128 for complex, the value itself for integers."""
    if value.is_floating_point():
        return torch.zeros_like(value, dtype=torch.float64)
    return torch.zeros_like(value, dtype=torch.complex128) if value.is_complex() else value.clone()


def _accumulate(total: Tensor, value: Tensor, share: float) -> None:
    if total.is_floating_point() or total.is_complex():
        total.add_(value.to(total.device, total.dtype), alpha=share)
    else:
        torch.maximum(total, value.to(total.device), out=total)


def _check_alike(first: State, state: State, index: int, same_mask: bool) -> None:
    for name in first.keys() ^ state.keys():
        raise unknown(f"tensor in one of the models to average (model {index})", name, first.keys() & state.keys())
    for name, value in state.items():
        if value.shape != first[name].shape:
            raise ShapeError(
                f"{name} has shape {tuple(value.shape)} in model {index}, {tuple(first[name].shape)} before"
            )
        if not bool(torch.isfinite(value).all()):
            raise NumericsError(f"{name} of model {index} has NaN or infinite entries; leave this model out")
        if same_mask and value.ndim >= 2 and value.is_floating_point():
            differing = int(((value == 0) != (first[name] == 0).to(value.device)).sum())
            if differing:
                raise MaskError(
                    f"{name}: {differing} zeros of model {index} and model 0 lie in other places; average models "
                    f"of one mask, or pass require_same_mask=False for the union"
                )


def greedy_soup(
    models: Sequence[Source], score_fn: Callable[[dict[str, Tensor]], float], require_same_mask: bool = True
) -> tuple[dict[str, Tensor], list[int]]:
    """Best model first, every other joins the mean if the score does not fall.

    Args:
        models: candidates.
        score_fn: state dict -> held-out score, larger is better; recalibrate batch statistics inside.
    Returns:
        the averaged state dict and the indices of its ingredients in order of joining.
    Raises:
        ConfigError: no models. NumericsError: a NaN score (the model is named).
    Source: Wortsman et al. 2022 (Model soups), recipe 1.
    """
    if not models:
        raise ConfigError("a soup needs at least one model")
    scores = [_score(score_fn, average([model]), f"model {i}") for i, model in enumerate(models)]
    order = sorted(range(len(models)), key=lambda i: -scores[i])
    chosen, best = order[:1], scores[order[0]]
    for index in order[1:]:
        candidate = average([models[i] for i in [*chosen, index]], require_same_mask=require_same_mask)
        score = _score(score_fn, candidate, f"the soup with model {index}")
        if score >= best:
            chosen, best = [*chosen, index], score
    return average([models[i] for i in chosen], require_same_mask=require_same_mask), chosen


def _score(score_fn: Callable[[dict[str, Tensor]], float], state: dict[str, Tensor], what: str) -> float:
    score = float(score_fn(state))
    if math.isnan(score):
        raise NumericsError(f"the score of {what} is NaN")
    return score


def ema(model: nn.Module, decay: float = 0.999) -> AveragedModel:
    """An exponential moving average: call `.update_parameters(model)` after every optimiser step.

    Masked weights stay exact zeros under a static mask; under a moving one the average has the union of recent masks.

    Args:
        decay: in [0, 1); weight of the past (torch's default 0.999).
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"decay of a moving average must be in [0, 1), got {decay}")
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


def swa(model: nn.Module) -> AveragedModel:
    """The equal average of all models that `.update_parameters(model)` sees (Izmailov et al. 2018)."""
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Layers with running batch statistics."""
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [module for module in found if module.running_mean is not None]


def recalibrate_bn(model: nn.Module, batches: Iterable[Any] | None = None, n: int | None = None) -> int:
    """Replace running batch statistics by those of the model as it now is: exact means over `n` batches.

    Only batch normalisation runs in training mode, so dropout stays off; momenta and modes are restored. For any
    change of weights without training: averaging, one-shot pruning, surgery.

    Args:
        batches: inputs, or (inputs, ...) pairs whose first element is the input, or mappings of keyword arguments.
        n: batches to use; default: all.
    Returns:
        how many batches were used; 0 for a model without batch statistics, which needs none.
    Raises:
        ConfigError: batch statistics but no batches.
    Source: 00-sparse-training-algebra, section 3; Izmailov et al. 2018, section 3.2.
    """
    norms = batch_norms(model)
    if not norms:
        log.info("%s keeps no batch statistics: nothing to recalibrate", type(model).__name__)
        return 0
    if batches is None or (n is not None and n < 1):
        raise ConfigError("this model has batch normalisation: recalibrate_bn needs at least one batch of data")
    used = 0
    with _collecting(model, norms), torch.no_grad():
        for batch in islice(batches, n):
            if not used:
                for norm in norms:
                    norm.reset_running_stats()
            _forward(model, batch)
            used += 1
    if not used or (n is not None and used < n):
        raise ConfigError(f"recalibrate_bn was to use {n or 'all'} batches, the data gave {used}")
    return used


@contextmanager
def _collecting(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    """Cumulative averages in the norms, evaluation mode elsewhere."""
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode


def _forward(model: nn.Module, batch: Any) -> None:
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    if isinstance(batch, Mapping):
        model(**{key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()})
        return
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    model(inputs.to(device))
