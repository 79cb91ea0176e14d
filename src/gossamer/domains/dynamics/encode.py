"""ReLU networks as mixed-integer rows, and the bounds of their pre-activations."""

from __future__ import annotations

import numpy as np

from ...errors import unknown
from .folded import Array, Folded
from .program import Columns, Program, solve
from .transition import Box, box

BOUNDS = ("interval", "lp", "exact")
MARGIN = 1e-6  # added to bounds that a floating-point solver found


def affine(matrix: Array, bias: Array, lower: Array, upper: Array) -> Box:
    """Exact range of each entry of matrix x + bias over a box."""
    positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
    return positive @ lower + negative @ upper + bias, positive @ upper + negative @ lower + bias


def interval(net: Folded, lower: Array, upper: Array, known: Box | None = None) -> Box:
    """Bounds (K,), (K,) of the pre-activations for inputs in a box, by interval arithmetic.

    Args:
        known: bounds that hold anyway; the result lies inside them.
    """
    n, low, high = net.inputs, np.zeros(net.relus), np.zeros(net.relus)
    for k in range(net.relus):
        x_low = np.concatenate([lower, np.maximum(low[:k], 0)])
        x_high = np.concatenate([upper, np.maximum(high[:k], 0)])
        ends = affine(net.pre[k : k + 1, : n + k], net.pre_bias[k : k + 1], x_low, x_high)
        low[k], high[k] = ends[0][0], ends[1][0]
        if known is not None:
            low[k], high[k] = max(low[k], known[0][k]), min(high[k], known[1][k])
    return low, np.maximum(low, high)


def encode(
    program: Program, net: Folded, v: Columns, bounds: Box, count: int | None = None, relaxed: bool = False
) -> tuple[Columns, Columns]:
    """Add y = max(a, 0) for the first `count` ReLUs of a network with inputs v (specification 3.5).

    Returns:
        columns of y (count,), and of the binaries z (count,), -1 where bounds decide the neuron without one.
    """
    total = net.relus if count is None else count
    low, high = bounds[0][:total], bounds[1][:total]
    y = program.add(total, 0.0, np.maximum(high, 0.0))
    unsure = np.flatnonzero((low < 0) & (high > 0))
    z = np.full(total, -1)
    z[unsure] = program.add(len(unsure), 0.0, 1.0, integer=not relaxed)
    pre, bias = net.pre[:total, : net.inputs + total], net.pre_bias[:total]
    difference = np.concatenate([-pre[:, : net.inputs], np.eye(total) - pre[:, net.inputs :]], 1)  # y - a + bias
    both = np.concatenate([v, y])
    on = np.flatnonzero(low >= 0)
    if len(on):
        program.rows("relu", [(both, difference[on])], bias[on], bias[on])
    if len(unsure):
        program.rows("relu", [(both, difference[unsure])], bias[unsure], np.inf)
        slope = -np.diag(low[unsure])
        program.rows("relu", [(both, difference[unsure]), (z[unsure], slope)], -np.inf, bias[unsure] - low[unsure])
        program.rows("relu", [(y[unsure], np.eye(len(unsure))), (z[unsure], -np.diag(high[unsure]))], -np.inf, 0.0)
    return y, z


def bounds_of(
    net: Folded, domain: Box, method: str = "exact", *, solver: str = "highs", time_limit: float = 5.0
) -> Box:
    """Bounds of every pre-activation for inputs in a box.

    Args:
        method: "interval"; "lp": one linear relaxation per neuron and side; "exact": one mixed-integer program
            instead, whose dual bound is taken where `time_limit` seconds are over, so that bounds always hold.
    Raises:
        ConfigError: an unknown method, or an unbounded box.
    """
    if method not in BOUNDS:
        raise unknown("bounds", method, BOUNDS)
    lower, upper = box(*domain, "the domain of the model")
    low, high = interval(net, lower, upper)
    for k in range(net.relus if method != "interval" else 0):
        low[k:], high[k:] = (side[k:] for side in interval(net, lower, upper, _open(low, high, k)))
        for sign, side in ((1.0, low), (-1.0, high)):
            program = Program()
            v = program.add(net.inputs, lower, upper)
            y, _ = encode(program, net, v, (low, high), k, relaxed=method == "lp")
            row = net.pre[k]
            for columns, weights in ((v, row[: net.inputs]), (y, row[net.inputs : net.inputs + k])):
                for column, weight in zip(columns, weights, strict=True):
                    program.cost[column] = sign * weight
            if k == 0:
                continue  # interval arithmetic is exact there
            found = solve(program, solver=solver, time_limit=time_limit, gap=1e-6)
            value = sign * found.bound + net.pre_bias[k]
            side[k] = max(low[k], value - MARGIN) if sign > 0 else min(high[k], value + MARGIN)
    return low, high


def _open(low: Array, high: Array, k: int) -> Box:
    """Bounds found for the first k neurons, nothing for the others."""
    return (np.where(np.arange(len(low)) < k, low, -np.inf), np.where(np.arange(len(low)) < k, high, np.inf))
