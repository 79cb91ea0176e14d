"""The common part of the sparse coding estimators: a scikit-learn transformer around a model and EM."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ...data.dataset import generator
from ...errors import ConfigError, unknown
from .anneal import Anneal, Settings
from .checks import check_counts, check_saturated, check_training, read, remark, to_batch
from .em import Run, batches, log_likelihood, moments, part, run
from .model import Batch, Model, Moments, Params
from .posterior import Posterior, adapted, posterior_of
from .reducer import Reducer, reducer
from .states import StateSpace

Array = NDArray[np.float64]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
LEARN = ("W", "prior", "sigma")


@dataclass(kw_only=True, eq=False, repr=False)  # scikit-learn compares and prints estimators itself
class SparseCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A probabilistic sparse coding model learned by truncated EM.

    Args:
        n_components: H, number of dictionary columns.
        n_candidates, max_active: H' and gamma of Expectation Truncation, gamma <= H' <= H; None takes the model's
            default, or H where that is less. With both H, EM is exact.
        steps: EM steps at most.
        anneal: an `Anneal` or a mapping of its arguments; None takes the model's default.
        restarts: runs from different random parameters, of which the likeliest is kept.
        learn: which of "W", "prior", "sigma" to learn; the others stay as `init` gives them.
        init: first values of parameters by name (those of `params_`), in place of random ones.
        tol: stop early when the mean log-likelihood rises by less, once annealing is over; 0 never does.
        missing: take NaN as missing values (linear models).
        random_state: seed or numpy generator of initial parameters and noise.
        device: "cpu", "cuda", "auto" or another torch device. dtype: "float64" or "float32".
        distributed: X holds this process's share of the data; all processes of torch.distributed's group call `fit`,
            `score` and `fit_transform` together, with equal arguments, and end with equal parameters.

    Attributes (after fit):
        components_: (H, D) the dictionary, as scikit-learn holds it; `W_` is its transpose.
        params_: all parameters by name, tensors. sigma_: the noise. prior_: probability of a unit's being active.
        log_likelihood_: mean lower bound of log p(y). history_: per step log_likelihood, points, T. n_iter_: steps.
        saturated_: share of points whose most probable state has max_active units.
    Raises (by fit):
        ConfigError: an argument out of range or of unknown name. DataError: NaN, infinity, no variation, wrong shape.
        NumericsError: the likelihood overflowed.
    """

    _candidates, _active = 8, 5  # defaults of n_candidates and max_active
    _positive = False
    _hottest = 2.0  # temperature of the first step

    n_components: int = field(default=8, kw_only=False)
    n_candidates: int | None = None
    max_active: int | None = None
    steps: int = 100
    anneal: Anneal | Mapping[str, Any] | None = None
    restarts: int = 1
    learn: Sequence[str] = LEARN
    init: Mapping[str, Any] | None = None
    tol: float = 0.0
    missing: bool = False
    random_state: Any = None
    device: str = "cpu"
    dtype: str = "float64"
    distributed: bool = False

    @abstractmethod
    def _make(self, space: StateSpace, learn: frozenset[str]) -> Model:
        """The model over these states."""

    def _values(self) -> tuple[float, ...]:
        """Non-zero values of a latent."""
        return (1.0,)

    def _annealing(self, data: Moments) -> Anneal:
        """The default: T falls to 1 over 80 % of the steps; noise on W, at first an eighth of the data's deviation.

        Hotter starts than 2 melt the columns of small dictionaries into one, from which EM does not come back; the
        noise is what the published examples do without (measured on bars of 3 x 3 and 5 x 5 pixels).
        """
        noise = ((0, data.sd / 8), (0.6, 0.0))
        return Anneal(T=((0, self._hottest), (0.8, 1.0)), ncut=((0, 0.0), (2 / 3, 1.0)), W_noise=noise)

    # ------------------------------------------------------------------ learning

    def fit(self, X: Any, y: Any = None) -> SparseCoder:
        """Learn from X (n, D). Returns self."""
        check_counts(n_components=self.n_components, steps=self.steps, restarts=self.restarts)
        model, like = self._model(), self._like()
        matrix = read(self, X, reset=True)
        over = reducer(self.distributed)
        data = to_batch(matrix, self.missing, like)
        known = moments(data, over)
        check_training(known, self.n_components, self._positive, data.y)
        given = self._annealing(known) if self.anneal is None else Anneal.of(self.anneal)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        best = max(
            (self._run(model, data, given, known, over, seed, restart) for restart in range(self.restarts)),
            key=lambda found: found.log_likelihood,
        )
        self._keep(best)
        full = torch.from_numpy(posterior_of(model, best.params, data, 1).saturated).to(like)
        sums = over.sum({"full": full.sum(), "points": like.new_tensor(float(len(full)))})
        self.saturated_ = float(sums["full"] / sums["points"])
        check_saturated(self.saturated_, self._truncation()[1], self.n_components)
        return self

    def _run(
        self, model: Model, data: Batch, anneal: Anneal, known: Moments, over: Reducer, seed: int, restart: int
    ) -> Run:
        random = generator(seed, restart)
        params = self._start(model, model.initial(known, random))
        return run(model, data, self.steps, anneal, random, over, params, self.tol)

    def _start(self, model: Model, params: Params) -> Params:
        """Random parameters, with those of `init` in their place."""
        for name, value in (self.init or {}).items():
            if name not in params:
                raise unknown("parameter", name, params)
            wanted = params[name]
            tensor = torch.as_tensor(value).to(wanted)
            if tensor.shape != wanted.shape or not bool(torch.isfinite(tensor).all()):
                raise ConfigError(
                    f"init of {name} must be finite and of shape {tuple(wanted.shape)}, got {tuple(tensor.shape)}"
                )
            self._check_init(name, tensor)
            params[name] = model.bounded(name, tensor, tensor)
            if name == "W" and not torch.equal(params[name], tensor):
                remark(f"{int((params[name] != tensor).sum())} values of the initial W were moved into its bounds")
        return params

    def _check_init(self, name: str, value: Tensor) -> None:
        if name == "sigma" and value.ndim < 2 and not bool((value > 0).all()):
            raise ConfigError(f"init of sigma must be positive, got {value.tolist()}")
        if name == "prior" and not (bool((value > 0).all()) and abs(float(value.sum()) - 1) < 1e-6):
            raise ConfigError(f"init of prior must be positive and sum to 1, got {value.tolist()}")
        if name == "pi" and not bool(((value > 0) & (value < 1)).all()):
            raise ConfigError(f"init of pi must lie between 0 and 1, got {value.tolist()}")

    def _keep(self, best: Run) -> None:
        self.params_ = best.params
        self.components_ = best.params["W"].T.double().cpu().numpy()
        self.W_ = self.components_.T
        sigma = best.params["sigma"].double().cpu()
        self.sigma_ = float(sigma) if sigma.ndim == 0 else sigma.numpy()
        self.prior_ = self._prior(best.params)
        self.log_likelihood_ = best.log_likelihood
        self.history_ = best.history
        self.n_iter_ = best.steps
        self._n_features_out = self.n_components

    @staticmethod
    def _prior(params: Params) -> Any:
        """Probability of a unit's being active: a number, or one for each unit."""
        pi = params["pi"].double().cpu()
        return float(pi) if pi.ndim == 0 else pi.numpy()

    # ------------------------------------------------------------------ the model

    def _like(self) -> Tensor:
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            return torch.empty(0, dtype=DTYPES[self.dtype], device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"cannot use the device {self.device!r}: {error}") from error

    def _truncation(self) -> tuple[int, int]:
        candidates = min(self._candidates, self.n_components) if self.n_candidates is None else self.n_candidates
        active = min(self._active, candidates) if self.max_active is None else self.max_active
        return candidates, active

    def _model(self, truncation: tuple[int, int] | None = None) -> Model:
        candidates, active = truncation or self._truncation()
        check_counts(n_candidates=candidates, max_active=active)
        for name in self.learn:
            if name not in LEARN:
                raise unknown("part to learn", name, LEARN)
        space = StateSpace(self.n_components, candidates, active, self._values(), self._like())
        model = self._make(space, frozenset(self.learn))
        if self.missing and not model.missing:
            raise ConfigError(f"{type(self).__name__} cannot learn from missing values; the linear models can")
        model.missing = self.missing
        return model

    def _ready(self, X: Any) -> tuple[Model, Batch]:
        check_is_fitted(self)
        return self._model(), to_batch(read(self, X, reset=False), self.missing, self._like())

    # ------------------------------------------------------------------ inference

    def transform(self, X: Any) -> Array:
        """Posterior mean of the latents, (n, H)."""
        model, data = self._ready(X)
        return self._collect(model, data, lambda found: model.codes(found))

    def reconstruct(self, X: Any) -> Array:
        """Posterior mean of the data without noise, (n, D); missing values are filled in."""
        model, data = self._ready(X)
        return self._collect(model, data, lambda found: model.reconstruct(self.params_, found))

    def _collect(self, model: Model, data: Batch, read_: Any) -> Array:
        parts = [
            read_(model.infer(self.params_, part(data, where), Settings())).double().cpu()
            for where in batches(model, data)
        ]
        collected: Array = torch.cat(parts).numpy()
        return collected

    def posterior(
        self, X: Any, top_k: int = 10, adaptive: bool = False, limits: tuple[int, int] | None = None
    ) -> Posterior:
        """The most probable states of each point, their probabilities, and unit marginals.

        Args:
            top_k: number of states. adaptive: infer saturated points again with wider truncation.
            limits: largest (n_candidates, max_active) of that; by default min(H, H' + 4), min(H, gamma + 4).
        Raises:
            DataError: the states of a wider truncation do not fit into memory.
        """
        check_counts(top_k=top_k)
        model, data = self._ready(X)
        found = posterior_of(model, self.params_, data, top_k)
        if not adaptive:
            return found
        h, (candidates, active) = self.n_components, self._truncation()
        most = limits or (min(h, candidates + 4), min(h, active + 4))
        if not (candidates <= most[0] <= h and active <= most[1] <= most[0]):
            raise ConfigError(f"limits {most} must lie between {(candidates, active)} and {(h, h)}")
        return adapted(lambda c, a: self._model((c, a)), found, self.params_, data, top_k, most)

    def score_samples(self, X: Any) -> Array:
        """Lower bound of log p(y) of each point, (n,)."""
        model, data = self._ready(X)
        return self._collect(model, data, lambda found: found.evidence)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean lower bound of log p(y) in nats."""
        model, data = self._ready(X)
        return log_likelihood(model, self.params_, data, reducer(self.distributed))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[Array, Array]:
        """Data (n, D) and latents (n, H) drawn from the learned model, whatever the truncation."""
        check_is_fitted(self)
        check_counts(n_samples=n_samples)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        y, s = self._model().sample(self.params_, n_samples, generator(seed))
        return y.double().cpu().numpy(), s.double().cpu().numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing
        return tags
