"""What is refused, and what is remarked on, before and after learning."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from ...errors import ConfigError, DataError
from .model import Batch, Moments

UNEVEN = 1e4  # ratio of the deviations of dimensions from which one common noise makes no sense
MANY = 0.5  # share of points with as many active units as are allowed, from which the limit is too low


class SparseCodingWarning(UserWarning):
    """Something that a result depends on and that was probably not meant."""


def remark(text: str) -> None:
    """Warn the caller of the library."""
    warnings.warn(text, SparseCodingWarning, stacklevel=4)


def read(estimator: Any, X: Any, reset: bool) -> np.ndarray:
    """X as float64 (n, D); where `estimator.missing` is set, NaN stands for a value that is not there.

    Raises:
        DataError: not a finite matrix of numbers, or of other columns than were learned.
    """
    X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
    finite = "allow-nan" if estimator.missing else True
    least = 2 if reset else 1
    try:
        read_: np.ndarray = validate_data(
            estimator, X, reset=reset, dtype=np.float64, ensure_all_finite=finite, ensure_min_samples=least
        )
    except ValueError as error:
        hint = "; missing=True takes NaN as missing values" if "NaN" in str(error) and not estimator.missing else ""
        raise DataError(f"{error}{hint}") from error
    return read_


def to_batch(X: np.ndarray, missing: bool, like: Tensor) -> Batch:
    """The points as tensors of the type and device of `like`."""
    y = torch.from_numpy(np.require(X, requirements=["C", "W"])).to(like)
    if not missing:
        return Batch(y)
    mask = ~torch.isnan(y)
    return Batch(torch.where(mask, y, torch.zeros_like(y)), None if bool(mask.all()) else mask)


def check_training(data: Moments, units: int, positive: bool, y: Tensor) -> None:
    """Refuse data without variation; remark on uneven scales, few points, and negative data for MCA.

    Raises:
        DataError: all values of the data are (nearly) equal, or a whole dimension is missing.
    """
    deviations = data.variance.sqrt()
    if not bool(torch.isfinite(deviations).all()):
        raise DataError("the data are too large to square: divide them by their standard deviation")
    size = float(data.mean.abs().max())
    if float(deviations.max()) <= 1e-12 * max(size, 1e-300):
        raise DataError("the data do not vary: nothing can be learned from equal points")
    some = deviations[deviations > 0]
    if float(some.max() / some.min()) > UNEVEN:
        remark(
            f"standard deviations of the columns lie between {float(some.min()):.3g} and {float(some.max()):.3g}, but "
            "the noise is one number: scale the columns, for example with sklearn's StandardScaler"
        )
    if data.count < units:
        remark(f"{data.count} data points are fewer than the {units} components: more data or fewer components")
    if positive:
        below, above = float(-y.clamp(max=0).sum()), float(y.clamp(min=0).sum())
        if below > 0.25 * above:
            remark("a large part of the data is negative, but maximal causes are positive: use MaxMagnitudeCauses")


def check_saturated(share: float, active: int, units: int) -> None:
    """Remark where most points need more active units than the truncation allows."""
    if share > MANY and active < units:
        remark(
            f"{share:.0%} of the points have max_active={active} active units in their most probable state, so more may"
            " be needed: raise max_active and n_candidates"
        )


def check_counts(**counts: Any) -> None:
    """Positive integers.

    Raises:
        ConfigError: names the one that is none.
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ConfigError(f"{name} must be a positive integer, got {value!r}")


def check_states(states: Any) -> tuple[float, ...]:
    """The non-zero values of a list of states, in order.

    Raises:
        ConfigError: fewer than two, duplicates, no zero, or not finite.
    """
    values = [float(value) for value in states]
    if len(values) < 2 or len(set(values)) != len(values) or 0.0 not in values or not np.isfinite(values).all():
        raise ConfigError(f"states must be two or more different finite numbers with 0 among them, got {values}")
    return tuple(value for value in values if value != 0.0)
