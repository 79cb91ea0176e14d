"""Training of sparse autoencoders in the house's loop: exact resume, run folders, signals, logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from gossamer.autoencoders.budgets import fit_zipf
from gossamer.autoencoders.losses import Aux, AuxK, follow_budget, nested_error, penalised, revival
from gossamer.autoencoders.model import SparseAutoencoder
from gossamer.autoencoders.revival import resample
from gossamer.autoencoders.selection import FeatureChoice, JumpReLU, MutualChoice, Selection, TokenChoice
from gossamer.autoencoders.start import start_from
from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import codes
from gossamer.kernels.codes import SparseCode
from gossamer.runs.folder import RunFolder
from gossamer.sparsify.recipe import Recipe
from gossamer.training import distributed
from gossamer.training.config import FREE, OptimConfig, TrainConfig
from gossamer.training.loop import fit, open_run
from gossamer.training.optim import make_optimizer
from gossamer.training.task import Batch, Task

FASTER = 3.0  # learning rate of JumpReLU's thresholds over that of weights
_ZIPF, _AUX = FeatureChoice(budgets="zipf"), AuxK()


@dataclass(frozen=True)
class Switch:
    """Change the selection at the fraction `at` of the training: mutual choice first learns the densities.

    Source: after Ayonrinde 2024; the fraction is ours.
    """

    at: float = 0.7
    to: Selection = _ZIPF

    def __post_init__(self) -> None:
        if not 0 < self.at < 1 or not self.to.chooses:
            raise ConfigError(f"switch at={self.at} to {self.to.name!r}: need 0 < at < 1 and a kind that ranks")


@dataclass(frozen=True)
class Plan:
    """How an autoencoder is trained beside `TrainConfig`.

    Args:
        aux: loss that revives features. switch: another selection for the last part of the training.
        centre: where b_dec begins: "median" (geometric, of the first batch), "mean" or "zero".
        normalise: scale inputs so that their mean squared norm is their width.
        dense_until: fraction of the training in which k falls from half the features to k; 0: never.
        resample_every: steps after which dead features are made anew from badly explained tokens; 0: never.
        window: tokens without activation after which a feature is dead for `resample_every`.
        threshold_rate: of the moving average behind the thresholds.
    """

    aux: Aux | None = _AUX
    switch: Switch | None = None
    centre: Literal["median", "mean", "zero"] = "median"
    normalise: bool = True
    dense_until: float = 0.0
    resample_every: int = 0
    window: int = 1_000_000
    threshold_rate: float = 0.01

    def __post_init__(self) -> None:
        if not (0 <= self.dense_until < 1 and self.resample_every >= 0 and self.window >= 1):
            raise ConfigError(f"cannot plan a training with {self}")

    def as_dict(self) -> dict[str, Any]:
        record = asdict(self)
        record["aux"] = None if self.aux is None else {"kind": type(self.aux).__name__, **asdict(self.aux)}
        record["switch"] = None if self.switch is None else {"at": self.switch.at, "to": self.switch.to.as_dict()}
        return record


def optimiser(features: int, steps: int, lr: float | None = None, warmup: int = 1000) -> OptimConfig:
    """Adam with a warm-up and a linear fall in the last fifth.

    Args:
        lr: None: 2e-4 / sqrt(features / 2^14), as dictionary_learning. warmup: in steps; at most a tenth of them.
    """
    share = min(warmup / steps, 0.1)
    rate = 2e-4 / (features / 2**14) ** 0.5 if lr is None else lr
    return OptimConfig(
        name="adam", lr=rate, weight_decay=0.0, schedule="linear", warmup=share, hold=(0.8 - share) / (1 - share)
    )


class Autoencoding(Task):
    """Batches (activations,) or, for a transcoder, (activations, target activations)."""

    def __init__(self, sae: SparseAutoencoder, plan: Plan, config: TrainConfig) -> None:
        super().__init__(sae)
        self.sae, self.plan, self.config = sae, plan, config
        self.first = sae.select
        self._last: tuple[SparseCode, Tensor, Tensor] | None = None  # code, centred inputs, residual

    def make_optimizer(self, config: OptimConfig) -> Optimizer:
        if distributed.world() > 1:
            raise ConfigError("a sparse autoencoder is trained by one process: its selection needs the whole batch")
        made = make_optimizer(self._groups(config.lr), config)
        made.register_step_pre_hook(lambda optimizer, *_: self._before(optimizer))
        made.register_step_post_hook(lambda optimizer, *_: self._after(optimizer))
        return made

    def _groups(self, lr: float) -> list[dict[str, Any]]:
        """Weights, and the thresholds of JumpReLU, which learn faster."""
        named = dict(self.sae.named_parameters())
        threshold = named.pop("log_threshold", None)
        fast = [] if threshold is None else [{"params": [threshold], "lr": FASTER * lr}]
        return [{"params": list(named.values())}, *fast]

    # one step

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        x = batch[0]
        if not x.is_floating_point() or x.dtype is torch.float16:
            raise ConfigError(f"cannot train on activations of {x.dtype}; give float32 ones")
        sae = self.sae
        self._choose()
        flat = sae.normalised(x)
        target = flat if not sae.transcodes else _target(batch, sae)
        u = sae.centred(flat)
        if sae.select.chooses:
            error, output, code = self._chosen(u, target)
        else:
            error, output, z = penalised(sae, u, target, int(sae.steps) / self.config.steps)
            code = SparseCode.of(z.detach(), z.detach() > 0)
        residual = (target - output).detach()
        self._last = (code, u.detach(), residual)
        if self.plan.aux is None or not sae.training:
            return error
        weights = self.plan.aux.weights(sae)
        return error + self.plan.aux.weight * revival(sae, u, residual, weights, self.plan.aux.k)

    def _chosen(self, u: Tensor, target: Tensor) -> tuple[Tensor, Tensor, SparseCode]:
        """Loss through the chosen entries alone: only the first product runs over the whole dictionary."""
        sae = self.sae
        with torch.no_grad():
            pre = sae.pre(u)
            mask = sae.select_mask(pre.relu())
        code = codes.encode(u, sae.encoder, sae.b_enc, pre, mask)
        error, output = nested_error(sae, code, target)
        return error, output, code.with_values(code.values.detach())

    def _choose(self) -> None:
        """The selection of this step, a function of the steps done alone."""
        step, steps, plan = int(self.sae.steps), self.config.steps, self.plan
        select = self.first
        if plan.switch is not None and step >= round(plan.switch.at * steps):
            select = plan.switch.to
            if isinstance(select, FeatureChoice) and select.budgets == "zipf" and bool(self.sae.law[0].isnan()):
                self._fit_law(select)
        until = round(plan.dense_until * steps)
        if step < until and isinstance(select, TokenChoice | MutualChoice | FeatureChoice):
            k = select.k + (self.sae.features / 2 - select.k) * (1 - step / until)
            select = replace(select, k=round(k))
        self.sae.select = select

    def _fit_law(self, select: FeatureChoice) -> None:
        law = fit_zipf(self.sae.usage.density)
        alpha, beta = (law.alpha, law.beta) if select.alpha is None else (select.alpha, select.beta)
        self.sae.law.copy_(torch.tensor([alpha, beta]))

    @torch.no_grad()
    def _before(self, optimizer: Optimizer) -> None:
        """Take the part of the decoder's gradient that only changes lengths away."""
        grad = self.sae.decoder.grad
        if grad is not None:
            rows = F.normalize(self.sae.decoder, dim=1)
            grad.sub_((grad * rows).sum(1, keepdim=True) * rows)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer) -> None:
        sae, plan = self.sae, self.plan
        sae.decoder.copy_(F.normalize(sae.decoder, dim=1))
        if self._last is None:
            return
        code, u, residual = self._last
        sae.observe(code, plan.threshold_rate)
        follow_budget(sae, len(code.values) / len(u), max(0.02, 10 / self.config.steps))
        sae.steps += 1
        due = plan.resample_every and int(sae.steps) % plan.resample_every == 0
        if due and int(sae.steps) < 0.8 * self.config.steps:
            resample(sae, optimizer, u, residual, sae.usage.dead(plan.window))

    # measuring

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Mapping[str, Tensor], int]:
        sae, x = self.sae, batch[0]
        couples = sae.select.couples and not bool(sae.calibrated.any())
        z = sae.encode(x, batch=couples)
        target = sae.normalised(x) if not sae.transcodes else _target(batch, sae)
        error = (z @ sae.decoder + sae.b_dec - target).square().sum()
        return {"loss": error, "l0": (z != 0).sum()}, len(z)


def _target(batch: Batch, sae: SparseAutoencoder) -> Tensor:
    if len(batch) < 2 or batch[1].shape[-1] != sae.d_out or batch[1].shape[:-1] != batch[0].shape[:-1]:
        got = tuple(batch[1].shape) if len(batch) > 1 else "none"
        raise ShapeError(f"a transcoder to {sae.d_out} dimensions needs a target for every activation, got {got}")
    return batch[1].reshape(-1, sae.d_out).to(sae.decoder.dtype) * sae.scale_out


@dataclass(frozen=True)
class _Data:
    train: Any
    val: Any = None
    test: Any = None


def train(
    sae: SparseAutoencoder,
    data: Any,
    config: TrainConfig | None = None,
    plan: Plan = Plan(),
    *,
    test: Any = None,
    run: str | Path | RunFolder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Train an autoencoder in place; it ends in evaluation mode.

    Args:
        data: activations by the step: `batch(step)` gives ((B, d),) or, for a transcoder, ((B, d), (B, d_out)). An
            `ActivationStore` and `gossamer.data.Batches` do.
        config: steps, seed, optimiser; None: 1000 steps of `optimiser`. Its order of the data is the data's own.
        test: batches to measure the mean squared error and the L0 on at the end.
        run: folder to log and save into; a resumed run ends with the same bits on a CPU.
    Returns:
        the result of `fit`: {"steps", "seconds", "test", ...}.
    Raises:
        ConfigError: budgets that the batches do not allow, less than float32, several processes, changed arguments.
        NumericsError: activations, loss or weights that are not finite. Interrupted: a signal came, all is saved.
    """
    if not hasattr(data, "batch"):
        raise ConfigError(
            f"a {type(data).__name__} gives no batches by the step; wrap activations: gossamer.data.Batches([x], 256), "
            "or collect them into an ActivationStore"
        )
    config = config or TrainConfig(steps=1000, optim=optimiser(sae.features, 1000), clip=1.0)
    if config.precision != "no":
        raise ConfigError("bfloat16 and float16 training lose the small activations; use precision = 'no'")
    _check_kinds(sae, plan)
    start_from(sae, data.batch(0), plan.centre, plan.normalise)
    if isinstance(run, str | Path):
        arguments = {"train": config.model_dump(mode="json"), "plan": plan.as_dict(), "sae": sae.config()}
        run = open_run(run, arguments, resume=resume, overwrite=overwrite, free=FREE, keep=config.keep)
    task = Autoencoding(sae, plan, config)
    result = fit(
        task, _Data(data, test=test), Recipe(name=sae.select.name), config, run=run, resume=resume, progress=progress
    )
    task._choose()
    sae.eval()
    return result


def _check_kinds(sae: SparseAutoencoder, plan: Plan) -> None:
    if plan.switch is None:
        return
    if not sae.select.chooses or isinstance(sae.select, JumpReLU):
        raise ConfigError(f"cannot switch from {sae.select.name!r}: only kinds that rank activations can be switched")
    plan.switch.to.check(sae.features)
