"""How large a sparse layer may be at the cost of a dense one. `taps` are kernel positions: 1 of a linear layer.

Source: Thangarasa et al. 2024 (Sparse-IFT), section 3, with the rounding of the released code.
"""

from __future__ import annotations

import math

from ...errors import ConfigError


def check_sparsity(sparsity: float) -> None:
    """Raise ConfigError unless 0 <= sparsity < 1."""
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity must lie in [0, 1), got {sparsity}")


def base_scaling(sparsity: float) -> int:
    """round(1 / (1 - s)): how many times as many weights the masks choose from.

    >>> [base_scaling(s) for s in (0.5, 0.75, 0.9, 0.99)]
    [2, 4, 10, 100]
    """
    check_sparsity(sparsity)
    return round(1 / (1 - sparsity))


def wide_width(width: int, sparsity: float) -> int:
    """Sparse Wide: int(sqrt(base_scaling) * width)."""
    return int(math.sqrt(base_scaling(sparsity)) * width + 1e-9)


def branches(sparsity: float) -> int:
    """Sparse Parallel: 1 / (1 - s), which must be a whole number.

    Raises:
        ConfigError: it is not one; the nearest sparsities that work are named.
    """
    count = base_scaling(sparsity)
    if abs(count * (1 - sparsity) - 1) > 1e-6:
        low = math.floor(1 / (1 - sparsity))
        raise ConfigError(
            f"parallel: 1 / (1 - {sparsity}) is no whole number of branches; "
            f"choose {1 - 1 / low:.4g} ({low}) or {1 - 1 / (low + 1):.4g} ({low + 1})"
        )
    return count


def factorized_rank(inputs: int, outputs: int, sparsity: float, taps: int = 1) -> int:
    """Sparse Factorised: the smallest d with (1 - s) d (taps in + out) >= taps in out."""
    check_sparsity(sparsity)
    return math.ceil(taps * inputs * outputs / ((1 - sparsity) * (taps * inputs + outputs)) - 1e-9)


def doped_rank(inputs: int, outputs: int, sparsity: float, taps: int = 1) -> int:
    """Sparse Doped: the largest rank whose dense factors cost at most s of the layer.

    Raises:
        ConfigError: not even rank 1 does; the smallest sparsity that works is named.
    """
    check_sparsity(sparsity)
    rank = math.floor(sparsity * taps * inputs * outputs / (taps * inputs + outputs) + 1e-9)
    if rank < 1:
        least = (taps * inputs + outputs) / (taps * inputs * outputs)
        if least >= 1:
            raise ConfigError(f"doped: a layer of {inputs} x {outputs} is too small for any rank")
        raise ConfigError(
            f"doped: a layer of {inputs} x {outputs} is too small at sparsity {sparsity}; take {least:.4g}"
        )
    return rank
