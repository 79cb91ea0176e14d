"""The sparse autoencoder: one module for all kinds, transcoders and nested (Matryoshka) dictionaries included."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.autoencoders.jump import jump_relu
from gossamer.autoencoders.selection import (
    FeatureChoice,
    Gated,
    JumpReLU,
    MutualChoice,
    ReLU,
    Selection,
    TokenChoice,
    from_dict,
)
from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.kernels import codes
from gossamer.kernels.codes import SparseCode
from gossamer.runs.trees import check_same
from gossamer.sparsify.usage import Usage

VERSION = 1


class SparseAutoencoder(nn.Module):
    """Writes an activation vector as a sum of a few rows of a dictionary.

    With u = x scale_in - centre, pre = u encoder^T + b_enc, z = selected relu(pre): x is approximated by
    (z decoder + b_dec) / scale_out. The centre is b_dec for an autoencoder and 0 for a transcoder.

    Args:
        d: width of the activations. features: size of the dictionary, at least d as a rule.
        select: the kind (`selection.KINDS`).
        d_out: width of another activation to predict (a transcoder); None: the input itself.
        prefixes: sizes of nested dictionaries that must each do alone, the last one all features (Matryoshka).
        seed: of the decoder's random unit rows; the encoder begins equal to them.
    Raises:
        ConfigError: sizes, budgets or prefixes that cannot be.
    Source: Ayonrinde 2024, section 3; Gao et al. 2024 (initialisation); Bussmann et al. 2025 (prefixes).

    >>> sae = SparseAutoencoder(4, 8, TokenChoice(2))
    >>> sae(torch.randn(5, 3, 4)).shape
    torch.Size([5, 3, 4])
    """

    scale_in: Tensor
    scale_out: Tensor
    threshold: Tensor
    calibrated: Tensor
    strength: Tensor
    steps: Tensor
    law: Tensor

    def __init__(
        self,
        d: int,
        features: int,
        select: Selection = MutualChoice(),
        *,
        d_out: int | None = None,
        prefixes: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if d < 1 or features < 1 or (d_out is not None and d_out < 1):
            raise ConfigError(f"d={d}, features={features}, d_out={d_out}: all must be at least 1")
        if features < d:
            warnings.warn(f"{features} features for {d} dimensions: a dictionary is larger as a rule", stacklevel=2)
        select.check(features)
        self.d, self.features, self.select = d, features, select
        self.d_out = d if d_out is None else d_out
        self.transcodes = d_out is not None
        self.prefixes = _checked_prefixes(prefixes, features)
        rows = F.normalize(torch.randn(features, self.d_out, generator=torch.Generator().manual_seed(seed)), dim=1)
        self.decoder = nn.Parameter(rows)
        random_rows = torch.randn(features, d, generator=torch.Generator().manual_seed(seed + 1))
        self.encoder = nn.Parameter(F.normalize(random_rows, dim=1) if self.transcodes else rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(features))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        if isinstance(select, Gated):
            self.r_mag = nn.Parameter(torch.zeros(features))
            self.b_mag = nn.Parameter(torch.zeros(features))
        if isinstance(select, JumpReLU):
            self.log_threshold = nn.Parameter(torch.full((features,), select.threshold or 0.01).log())
        self._make_buffers()

    def _make_buffers(self) -> None:
        """Constants that are estimated and not learned; all of them travel with the weights."""
        self.usage = Usage(self.features)
        for name, value in (("scale_in", 1.0), ("scale_out", 1.0), ("strength", getattr(self.select, "strength", 0.0))):
            self.register_buffer(name, torch.tensor(float(value)))
        self.register_buffer("threshold", torch.zeros(self.features))
        self.register_buffer("calibrated", torch.zeros(self.features, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        choice = self.select if isinstance(self.select, FeatureChoice) and self.select.alpha is not None else None
        law = [torch.nan, 0.0] if choice is None else [float(choice.alpha or 0.0), choice.beta]
        self.register_buffer("law", torch.tensor(law, dtype=torch.float64))  # of Zipf budgets: alpha, beta

    # what it is

    def config(self) -> dict[str, Any]:
        """What builds this module again, as JSON values."""
        return {
            "version": VERSION,
            "d": self.d,
            "features": self.features,
            "select": self.select.as_dict(),
            "d_out": self.d_out if self.transcodes else None,
            "prefixes": list(self.prefixes) if self.prefixes else None,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SparseAutoencoder:
        """The module that `config` described, with fresh weights. Raises CheckpointError for another version."""
        if config.get("version") != VERSION:
            raise CheckpointError(f"sparse autoencoder of version {config.get('version')}; this reads {VERSION}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return cls(
                config["d"],
                config["features"],
                from_dict(config["select"]),
                d_out=config["d_out"],
                prefixes=config["prefixes"],
            )

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights and constants of a module of the same kind; nothing changes on an error.

        Raises:
            CheckpointError: other names or shapes, so of another architecture.
        """
        own = f"a {self.select.name!r} autoencoder from {self.d} to {self.features} features"
        try:
            check_same(state, self.state_dict(), own)
        except CheckpointError as error:
            raise CheckpointError(f"this is {own}, the checkpoint {_described(state)}: {error}") from error
        self.load_state_dict(dict(state))

    # encoding

    def normalised(self, x: Tensor) -> Tensor:
        """(tokens, d): x (..., d) flattened and scaled.

        Raises:
            ShapeError: another width. NumericsError: NaN or infinite activations.
        """
        if x.dim() == 0 or x.shape[-1] != self.d:
            raise ShapeError(f"the autoencoder takes activations (..., {self.d}), got {tuple(x.shape)}")
        flat = x.reshape(-1, self.d).to(self.encoder.dtype)
        if not bool(torch.isfinite(flat).all()):
            bad = (~torch.isfinite(flat)).any(1)
            raise NumericsError(
                f"{int(bad.sum())} of {len(flat)} activation vectors are NaN or infinite, the first is number "
                f"{int(bad.nonzero()[0])}; look at the model that made them"
            )
        return flat * self.scale_in

    def centred(self, flat: Tensor) -> Tensor:
        """What the encoder sees of `normalised` activations."""
        return flat if self.transcodes else flat - self.b_dec

    def pre(self, u: Tensor) -> Tensor:
        """(tokens, features): pre-activations of centred activations; of the gate for a gated autoencoder."""
        return F.linear(u, self.encoder, self.b_enc)

    def magnitudes(self, gate: Tensor) -> Tensor:
        """Pre-activations of the second path of a gated autoencoder, whose weights are the gate's, scaled."""
        return (gate - self.b_enc) * self.r_mag.exp() + self.b_mag

    def learned_threshold(self) -> Tensor:
        """(features,), of a JumpReLU autoencoder."""
        return self.log_threshold.exp()

    def select_mask(self, z: Tensor) -> Tensor:
        """bool: the entries of relu(pre) that the kind's own rule keeps, over the whole batch."""
        select = self.active_select()
        if select.couples and len(z) == 1:
            warnings.warn(f"{select.name!r} choice over a batch of one token; use thresholds", stacklevel=2)
        if isinstance(select, FeatureChoice):
            return select.mask(z, self.usage.ranks() if select.budgets == "zipf" else None)
        if isinstance(select, TokenChoice | MutualChoice):
            return select.mask(z)
        raise ConfigError(f"a {select.name!r} autoencoder does not rank activations")

    def active_select(self) -> Selection:
        """The kind, its Zipf law filled in where training has fitted one."""
        select = self.select
        if isinstance(select, FeatureChoice) and select.alpha is None and not bool(self.law[0].isnan()):
            return FeatureChoice(select.k, select.budgets, float(self.law[0]), float(self.law[1]))
        return select

    def encode(self, x: Tensor, *, batch: bool | None = None) -> Tensor:
        """Codes of activations, in the units of the scaled activations.

        Args:
            x: (..., d).
            batch: for mutual and feature choice: True selects over the batch, as in training; False takes each token
                alone, by thresholds. Default: as in training while the module is in training mode.
        Returns:
            (..., features), zero but for the active features.
        Raises:
            ConfigError: by thresholds, but there are none yet. ShapeError, NumericsError: as `normalised`.
        """
        flat = self.normalised(x)
        pre = self.pre(self.centred(flat))
        over_batch = self.training if batch is None else batch
        return self._activate(pre, over_batch).reshape(*x.shape[:-1], self.features)

    def _activate(self, pre: Tensor, over_batch: bool) -> Tensor:
        select = self.select
        if isinstance(select, Gated):
            return (pre > 0) * self.magnitudes(pre).relu()
        if isinstance(select, JumpReLU):
            return jump_relu(pre.relu(), self.learned_threshold(), select.bandwidth)
        if isinstance(select, ReLU):
            return pre.relu()
        z = pre.relu()
        if select.couples and not over_batch:
            return z * (z > self.thresholds())
        return z * self.select_mask(z)

    def thresholds(self) -> Tensor:
        """(features,), of mutual and feature choice: what an activation must exceed; infinite where never selected.

        Raises:
            ConfigError: neither training nor calibration has estimated any.
        """
        if not bool(self.calibrated.any()):
            raise ConfigError(
                f"a {self.select.name!r} autoencoder codes single tokens by thresholds, which are not known yet: train "
                "it, or call calibrate_threshold(data) first"
            )
        return self.threshold.masked_fill(~self.calibrated, torch.inf)

    def sparse_code(self, x: Tensor, *, batch: bool | None = None) -> SparseCode:
        """`encode` as a sparse code of (tokens, features); no gradient."""
        with torch.no_grad():
            return SparseCode.of(self.encode(x, batch=batch).reshape(-1, self.features))

    def decode(self, z: Tensor | SparseCode) -> Tensor:
        """The activations that a code stands for, (..., d_out); a sparse code gives (tokens, d_out)."""
        product = codes.decode(z, self.decoder) if isinstance(z, SparseCode) else z @ self.decoder
        return (product + self.b_dec) / self.scale_out

    def forward(self, x: Tensor, *, batch: bool | None = None) -> Tensor:
        """The reconstruction of x (..., d), or a transcoder's prediction: (..., d_out)."""
        return self.decode(self.encode(x, batch=batch))

    # estimated constants

    @torch.no_grad()
    def observe(self, code: SparseCode, rate: float = 0.01) -> None:
        """Take a training batch's selection into the usage and the thresholds.

        Args:
            rate: of the moving average of the smallest selected activation, for all features or, with feature choice,
                for each (0.01, as SAELens).
        """
        self.usage.update(torch.bincount(code.indices, minlength=self.features), len(code.offsets) - 1)
        if not self.select.couples or not len(code.values):
            return
        least = torch.full_like(self.threshold, torch.inf)
        if isinstance(self.select, FeatureChoice):
            least.scatter_reduce_(0, code.indices, code.values.detach().to(least), "amin")
        else:
            least.fill_(float(code.values.min()))
        seen = least.isfinite()
        moved = torch.where(self.calibrated, self.threshold.lerp(least, rate), least)
        self.threshold[seen] = moved[seen]
        self.calibrated |= seen

    @torch.no_grad()
    def calibrate_threshold(self, data: Iterable[Tensor]) -> None:
        """Set the thresholds so that on `data` as many activations exceed them as the selection would keep.

        Mutual choice gets one threshold, feature choice one for each feature.

        Args:
            data: batches of activations (..., d); all codes are held in memory, so some thousand tokens.
        Raises:
            ConfigError: a kind that needs no thresholds, or no data.
        """
        if not self.select.couples:
            raise ConfigError(f"a {self.select.name!r} autoencoder has no thresholds to calibrate")
        parts = [self.pre(self.centred(self.normalised(x))).relu() for x in data]
        if not parts:
            raise ConfigError("calibrate_threshold got no data")
        z = torch.cat(parts)
        mask = self.select_mask(z)
        kept, rest = z.masked_fill(~mask, torch.inf), z.masked_fill(mask, 0.0)
        if isinstance(self.select, FeatureChoice):
            kept, rest = kept.amin(0), rest.amax(0)
        else:
            kept, rest = kept.min().expand(self.features), rest.max().expand(self.features)
        self.threshold.copy_(torch.where(kept.isfinite(), (kept + rest) / 2, rest))
        self.calibrated.fill_(True)


def _described(state: Mapping[str, Tensor]) -> str:
    """What kind of autoencoder a state belongs to, as far as its names tell."""
    if "encoder" not in state or state["encoder"].dim() != 2:
        return "of no autoencoder"
    kind = "a 'gated'" if "r_mag" in state else "a 'jumprelu'" if "log_threshold" in state else "a ranking or 'relu'"
    features, d = state["encoder"].shape
    return f"of {kind} autoencoder from {d} to {features} features"


def _checked_prefixes(prefixes: Sequence[int] | None, features: int) -> tuple[int, ...] | None:
    if prefixes is None:
        return None
    sizes = tuple(int(size) for size in prefixes)
    rising = all(a < b for a, b in zip((0, *sizes), sizes, strict=False))
    if not sizes or not rising or sizes[-1] != features:
        raise ConfigError(f"prefixes {list(prefixes)} must increase from above 0 to all {features} features")
    return sizes
