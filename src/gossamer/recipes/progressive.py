"""Progressive gradient flow: pruned weights of an N:M network take part fully at first and are then faded out.

Mask decay (`mdgf_*`): pruned weights enter the forward pass times b, which falls from 1 to 0. Structure decay
(`sdgf_*`): masks stay binary, but N:M becomes sparser in equal frames. Both end as strict N:M with straight-through
gradients. Phases of a run: dense for the fraction `dense`, decay, strict for the last fraction `finetune`.
`layers`, `layout`, `tail` and `select` are those of `recipes.nm`.
Source: Bambhaniya et al. 2024, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from ..maths.schedules import Fade, Linear, Steps
from ..sparsify.estimators import STE, SoftMask, master
from ..sparsify.groups import Select
from ..sparsify.patterns import NM
from ..sparsify.recipe import Recipe
from ..sparsify.sparsifier import Sparsifier
from .nm import EACH_STEP, Layers, ste

DENSE = NM(2, 2, tail="keep")
VISIBLE = 1e-6  # a pruned weight's share that would make the exported network another one than the trained


def mdgf_linear(
    n: int = 1,
    m: int = 16,
    decay: float | None = None,
    *,
    dense: float = 0.0,
    finetune: float = 0.75,
    exact_grad: bool = False,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    select: Select = Select(),
) -> Recipe:
    """MdGf-Linear: b = max(0, 1 - tau / (decay T)), tau steps after the dense phase of a run of T.

    Args:
        decay: fraction of the run until b is 0, 1 / (beta T) for a step size beta; None: all until fine-tuning.
        finetune: last fraction with strict masks. 0.75: the decay must end while the learning rate is high.
        exact_grad: pruned weights get b times the gradient, as the forward pass would have it, instead of all of it.
    Raises:
        ConfigError: dense + finetune >= 1, n == m, or a mask that is still soft when fine-tuning starts.
    """
    window = _window(n, m, dense, finetune)
    length = window if decay is None else decay
    if not length > 0:
        raise ConfigError(f"decay must be a positive fraction of the run, got {decay}")
    if length > window + 1e-9:
        left = 1 - window / length
        raise ConfigError(f"the mask is still {left:.2g} when fine-tuning starts; train longer or lower finetune")
    soft = SoftMask(Linear(1.0, 0.0, dense, min(1.0, dense + length)), exact_grad)
    base = ste(n, m, layers=layers, layout=layout, tail=tail, select=select)
    return base.replace(name=f"mdgf-linear-{n}:{m}", family=soft)


def mdgf_exponential(
    n: int = 1,
    m: int = 16,
    efolds: float = 16.0,
    *,
    dense: float = 0.0,
    finetune: float = 0.1,
    exact_grad: bool = False,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    select: Select = Select(),
) -> Recipe:
    """MdGf-Exponential: b = exp(-beta tau) until fine-tuning, then 0.

    Args:
        efolds: beta times the steps between the dense phase and fine-tuning. The authors' 1e-4 a step over 350
            epochs of ImageNet makes about 11; 16 was best in small runs.
        finetune, exact_grad: as in `mdgf_linear`.
    Raises:
        ConfigError: dense + finetune >= 1, n == m, or finetune 0 with b above 1e-6 at the end.
    """
    window = _window(n, m, dense, finetune)
    fade = Fade(efolds, dense, dense + window)
    if finetune == 0 and math.exp(-efolds) > VISIBLE:
        raise ConfigError(
            f"without fine-tuning pruned weights still count {math.exp(-efolds):.2g} of their value at the end: "
            f"the exported network would differ; set finetune or efolds >= {-math.log(VISIBLE):.1f}"
        )
    base = ste(n, m, layers=layers, layout=layout, tail=tail, select=select)
    return base.replace(name=f"mdgf-exponential-{n}:{m}", family=SoftMask(fade, exact_grad))


def sdgf_stepwise(
    n: int = 1,
    m: int = 16,
    *,
    dense: float = 0.0,
    finetune: float = 0.7,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    select: Select = Select(),
) -> Recipe:
    """SdGf-Stepwise: (m-1):m, then m/2:m, m/4:m, ... n:m in equal frames. Arguments as in `mdgf_linear`."""
    return _structure("stepwise", stepwise_frames, n, m, dense, finetune, layers, layout, tail, select)


def sdgf_geometric(
    n: int = 1,
    m: int = 8,
    *,
    dense: float = 0.0,
    finetune: float = 0.7,
    layers: Layers = (),
    layout: str = "channels_last",
    tail: str = "error",
    select: Select = Select(),
) -> Recipe:
    """SdGf-Geometric: 8n:8m, 4n:4m, 2n:2m, n:m in equal frames: one density, ever smaller groups.

    Groups of 8m must divide the weight's rows, or `tail` says what happens to the rest. Arguments as in `mdgf_linear`.
    """
    return _structure("geometric", geometric_frames, n, m, dense, finetune, layers, layout, tail, select)


Frames = Callable[[int, int], list[tuple[int, int]]]


def stepwise_frames(n: int, m: int) -> list[tuple[int, int]]:
    """The (n, m) of all frames; where m / n is no power of two the last step is larger than a halving.

    >>> stepwise_frames(1, 8)
    [(7, 8), (4, 8), (2, 8), (1, 8)]
    """
    halvings = int(math.log2(m / n))
    return [(m - 1, m), *((max(n, m >> k), m) for k in range(1, halvings)), (n, m)][-(halvings + 1) :]


def geometric_frames(n: int, m: int) -> list[tuple[int, int]]:
    """The (n, m) of all frames.

    >>> geometric_frames(1, 8)
    [(8, 64), (4, 32), (2, 16), (1, 8)]
    """
    return [(n * k, m * k) for k in (8, 4, 2, 1)]


def _structure(
    kind: str,
    frames: Frames,
    n: int,
    m: int,
    dense: float,
    finetune: float,
    layers: Layers,
    layout: str,
    tail: str,
    select: Select,
) -> Recipe:
    def table(n: int, m: int) -> Steps:
        window, pairs = _window(n, m, dense, finetune), frames(n, m)
        begin = ((0.0, DENSE),) if dense > 0 else ()
        times = [dense + i * window / len(pairs) for i in range(len(pairs))]
        return Steps((*begin, *((t, NM(*pair, layout, tail)) for t, pair in zip(times, pairs, strict=True))))

    rows = tuple((glob, table(*pair)) for glob, pair in layers)
    return Recipe(f"sdgf-{kind}-{n}:{m}", select, table(n, m), rows, STE(), (EACH_STEP,))


def _window(n: int, m: int, dense: float, finetune: float) -> float:
    """The fraction of the run in which the decay happens."""
    NM(n, m)
    if n == m:
        raise ConfigError(f"{n}:{m} prunes nothing, so nothing can fade out; choose n < m")
    if dense < 0 or finetune < 0 or not dense + finetune < 1:
        raise ConfigError(f"dense={dense} and finetune={finetune}: fractions >= 0 of the run whose sum is below 1")
    return 1.0 - finetune - dense


def beta_for(final: float, steps: int) -> float:
    """The beta per step with which exp(-beta tau) falls from 1 to `final` in `steps`; beta * steps are its e-folds.

    Raises:
        ConfigError: final outside (0, 1) or steps < 1.
    """
    if not (0 < final < 1 and steps >= 1):
        raise ConfigError(f"final={final}, steps={steps}: need final in (0, 1) and at least one step")
    return -math.log(final) / steps


def linear_decay(beta: float, steps: int) -> float:
    """The fraction of a run of `steps` in which max(0, 1 - beta tau) reaches 0: `decay` of `mdgf_linear`.

    Raises:
        ConfigError: beta <= 0, or a run too short to reach 0 (the message says what would be left).
    """
    if not beta > 0:
        raise ConfigError(f"beta must be positive, got {beta}")
    if beta * steps < 1:
        raise ConfigError(f"beta={beta} leaves the mask at {1 - beta * steps:.2g} after {steps} steps; train longer")
    return 1 / beta / steps


class GradientNoise:
    """Variance of gradients and Adam's second moments of masked weights: the publication's account of its gain.

    Call it after `optimizer.step()` and before gradients are cleared. Means over layers of the variance over the
    entries of dL/dW, of the same for pruned entries only, and of `exp_avg_sq` (absent from SGD).

    Args:
        every: steps between two rows. last: rows that `summary` averages.
    """

    def __init__(self, sparsifier: Sparsifier, every: int = 25, last: int = 10) -> None:
        self._sparsifier, self.every, self.last = sparsifier, every, last
        self.rows: list[dict[str, float]] = []

    def __call__(self) -> None:
        sparsifier = self._sparsifier
        if sparsifier.step % self.every:
            return
        columns: dict[str, list[float]] = {}
        for name, mask in sparsifier.entry_masks.items():
            weight = master(sparsifier.model, name)
            if weight.grad is not None:
                for key, value in _noise(weight.grad, mask, sparsifier.optimizer.state.get(weight, {})).items():
                    columns.setdefault(key, []).append(value)
        means = {key: sum(values) / len(values) for key, values in columns.items()}
        self.rows.append({"step": float(sparsifier.step), **means})

    def summary(self) -> dict[str, float]:
        """Means of the last rows: "variance", "pruned_variance" and, with Adam, "second_moment"."""
        rows = self.rows[-self.last :]
        keys = set().union(*rows) - {"step"}
        return {key: sum(row[key] for row in rows) / len(rows) for key in sorted(keys)}


def _noise(gradient: Any, mask: Any, state: dict[str, Any]) -> dict[str, float]:
    pruned = gradient[~mask]
    out = {"variance": float(gradient.var(correction=0))}
    if pruned.numel():
        out["pruned_variance"] = float(pruned.var(correction=0))
    if "exp_avg_sq" in state:
        out["second_moment"] = float(state["exp_avg_sq"].mean())
    return out
