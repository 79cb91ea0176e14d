"""The one training loop: any task, any recipe, one process or several, saved and resumed to the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gossamer.errors import CheckpointError, ConfigError, DataError, GossamerError, NumericsError
from gossamer.runs.folder import RunFolder, State
from gossamer.runs.log import JsonLog, check_trackers
from gossamer.runs.progress import Progress
from gossamer.runs.rng import rng_state, seed_all, set_rng_state
from gossamer.runs.signals import Interrupted, StopSignals
from gossamer.runs.trees import load_model
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.training import distributed
from gossamer.training.config import FREE, TrainConfig
from gossamer.training.ema import EMA
from gossamer.training.optim import lr_factor, set_lr
from gossamer.training.task import Batch, Task

MAX_SKIPPED = 50  # steps that GradScaler may skip in a row; its scale has fallen by 2^50 then

Look = Callable[[Sparsifier], None]


class Batches(Protocol):
    """What the loop needs of data: `batch(step)` depends on the step alone (`gossamer.data.Batches` is one)."""

    def batch(self, step: int) -> Batch: ...

    def __len__(self) -> int: ...


class Data(Protocol):
    """Batches to train, to choose and to test on; `gossamer.data.Dataset` is one."""

    @property
    def train(self) -> Any: ...
    @property
    def val(self) -> Any: ...
    @property
    def test(self) -> Any: ...


def fit(
    task: Task,
    data: Data,
    recipe: Recipe,
    config: TrainConfig | None = None,
    *,
    run: RunFolder | str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_start: Look | None = None,
    on_end: Look | None = None,
    trackers: tuple[str, ...] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Train `task.model` by `recipe` and measure it. The model becomes a plain one with exact zeros.

    With a run folder, SIGINT and SIGTERM save a checkpoint and leave with 130 or 143, and a resumed run ends with the
    same bits (on a CPU) as one that was never stopped. The global random generators are seeded.

    Args:
        task: the model and what it is trained for. data: with `train`, `val` (may be None) and `test` (may be None);
            each process takes its share of every training batch.
        recipe: the method; `recipes.dense()` is ordinary training.
        config: how long and how; `TrainConfig()` where absent.
        run: where to log and to save: an open `RunFolder`, or a path, which is opened with `resume`, `overwrite`.
        on_start: called with the Sparsifier once masks are set; a checkpoint that is resumed then overwrites whatever
            it did to the model. on_end: called with it after the last step, while masks and
            optimiser are still there. trackers: names of experiment trackers beside the log.
        progress: show it on stderr.
    Returns:
        {"steps", "seconds", "density", "val", "test", "curve", "history"}; only "seconds" differs between two runs.
    Raises:
        NumericsError: the loss or a weight is NaN or infinite; the last checkpoint is from before that.
        ConfigError: unusable settings, changed arguments on resume. CheckpointError: damaged or foreign files.
        Interrupted: a signal came, and the state is saved.
    """
    config = config or TrainConfig()
    distributed.join(cpu=config.device == "cpu")
    if isinstance(run, str | Path):
        arguments = {"train": config.model_dump(mode="json"), "recipe": recipe.to_yaml()}
        options = {"resume": resume, "overwrite": overwrite, "free": FREE, "keep": config.keep}
        run = open_run(run, arguments, **options)
    loop = Loop(task, data, recipe, config, trackers, run.path if run is not None else None)
    try:
        if on_start is not None:
            on_start(loop.sparsifier)
        if resume and run is not None:
            loop.restore(run)
        if run is not None:
            return _run_in(run, loop, on_end, progress)
        loop.run(None, None, None, progress)
        return loop.finish(on_end)
    finally:
        loop.release()


def _run_in(run: RunFolder, loop: Loop, on_end: Look | None, progress: bool) -> dict[str, Any]:
    """Run the loop with a log, checkpoints, status and result in a folder."""
    with StopSignals() as stop, _log(run, loop.step) as log:
        _say(run, "running", loop.step)
        try:
            loop.run(run, log, stop, progress)
            result = loop.finish(on_end)
        except Interrupted as interruption:
            _say(run, "interrupted", loop.step, str(interruption))
            raise
        except Exception as error:
            _say(run, "failed", loop.step, str(error))
            raise
        if distributed.rank() == 0:
            run.write_result(result)
        _say(run, "done", loop.step)
    return result


def _say(run: RunFolder, state: State, step: int, reason: str = "") -> None:
    if distributed.rank() == 0:
        run.set_status(state, step, reason)


def open_run(path: str | Path, arguments: dict[str, Any], **options: Any) -> RunFolder:
    """`RunFolder.open(path, arguments, **options)` by the first process, for all of them; all raise what it raises."""
    run: RunFolder | None = None
    problem: GossamerError | None = None
    if distributed.rank() == 0:
        try:
            run = RunFolder.open(path, arguments, **options)
        except GossamerError as error:
            problem = error
    problem = distributed.gather(problem)[0]
    if problem is not None:
        raise problem
    return run or RunFolder(path, options.get("keep", 2))


def _log(run: RunFolder, step: int) -> Any:
    if distributed.rank():
        return nullcontext()
    log = JsonLog(run.log_path)
    log.rewind(step)
    return log


def _accelerator(config: TrainConfig, trackers: tuple[str, ...], folder: Path | None) -> Any:
    """Accelerate's handle. Its settings are global and fixed by the first use, so they are reset to ours."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch sees no GPU here; use device = 'cpu' or 'auto'")
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise ConfigError("precision = 'fp16' needs a GPU; use 'bf16' or 'no' on a CPU")
    AcceleratorState._reset_state()
    if not distributed.active():
        PartialState._reset_state()
    names = check_trackers(trackers)
    return Accelerator(cpu=cpu, mixed_precision=config.precision, log_with=names or None, project_dir=folder)


class _OnDevice:
    """The batches of a data set on a device, from the first on each time that it is iterated."""

    def __init__(self, batches: Any, device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self.batches)):
            yield tuple(tensor.to(self.device) for tensor in self.batches.batch(step))


class Loop:
    """The state of one training, and what one step of it is. `fit` is the way to use it."""

    def __init__(
        self,
        task: Task,
        data: Data,
        recipe: Recipe,
        config: TrainConfig,
        trackers: tuple[str, ...] = (),
        folder: Path | None = None,
    ) -> None:
        self.task, self.data, self.recipe, self.config = task, data, recipe, config
        self.accelerator = _accelerator(config, trackers, folder)
        self.device: torch.device = self.accelerator.device
        seed_all(config.seed + distributed.rank())
        task.model.to(self.device)
        self.optimizer = task.make_optimizer(config.optim)
        self.sparsifier = Sparsifier(
            task.model,
            self.optimizer,
            recipe,
            config.steps,
            data=_OnDevice(data.train, self.device),
            loss=task.loss,
            seed=config.seed,
        )
        self._forward = vars(task.model).get("forward")
        # After the Sparsifier, which may change the model that data parallelism then wraps.
        # The model stays where it is: moving it again would part its mask buffers from the Sparsifier's.
        self.model, self.stepper = self.accelerator.prepare(task.model, self.optimizer, device_placement=[False, False])
        self.ema = EMA(task.model, config.ema) if config.ema else None
        self.step = self.draws = self.skipped = 0  # optimiser steps, batches drawn, steps skipped in a row
        self.curve: list[dict[str, Any]] = []
        self.best = -float("inf")  # score
        self.seconds = 0.0
        if trackers:
            self.accelerator.init_trackers("gossamer", config={"recipe": recipe.name, "steps": config.steps})

    # running

    def run(self, run: RunFolder | None, log: JsonLog | None, stop: StopSignals | None, progress: bool) -> None:
        """All the steps that are left."""
        config = self.config
        shown = progress and distributed.rank() == 0
        with Progress(config.steps, self.recipe.name, shown=shown) as bar:
            bar.start_at(self.step)
            began = time.monotonic() - self.seconds
            self.task.model.train()
            while self.step < config.steps:
                loss = self.advance()
                self.seconds = time.monotonic() - began
                if self.skipped:
                    continue
                bar.update(self.step, loss=loss)
                if _due(self.step, config.log_every, config.steps):
                    self._write(log, {"loss": loss})
                score = None
                if _due(self.step, config.validate_every, config.steps) and self.data.val is not None:
                    score = self._validate(log)
                if run is not None:
                    self._keep(run, stop, score)

    def advance(self) -> float:
        """One optimiser step; returns the loss of this process's share."""
        set_lr(self.optimizer, lr_factor(self.step, self.config.steps, self.config.optim))
        loss = self._backward(self.data.train.batch(self.draws))
        self.draws += 1
        self.accelerator.unscale_gradients()
        self.sparsifier.after_backward()
        if self.config.clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.stepper.step()
        self.stepper.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:
            self._count_skip()
            return loss
        self.skipped = 0
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.task.model)
        return loss

    def _backward(self, batch: Batch) -> float:
        """Gradients of the mean loss over the whole batch: each process takes its share, piece by piece."""
        pieces = self.config.accumulate
        parts = _split(batch, distributed.world() * pieces)
        mine = parts[distributed.rank() * pieces :][:pieces]
        total = torch.zeros((), device=self.device)
        for number, piece in enumerate(mine, start=1):
            # Data parallelism takes the mean over the processes, hence their number.
            weight = len(piece[0]) * distributed.world() / len(batch[0])
            piece = tuple(tensor.to(self.device) for tensor in piece)
            sync = nullcontext() if number == pieces else self.accelerator.no_sync(self.model)
            with sync:
                with self.accelerator.autocast():
                    loss = self.task.loss(self.model, piece) * weight
                self.accelerator.backward(loss)
            total += loss.detach()
        value = float(total)
        if distributed.largest(int(value != value or abs(value) == float("inf")), self.device):
            raise NumericsError(
                f"the loss is {value} at step {self.step + 1} of {self.config.steps} (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.3g}); lower the learning rate, clip gradients, or check the "
                "data. The last checkpoint is from before this step"
            )
        return value

    def _count_skip(self) -> None:
        self.skipped += 1
        if self.skipped > MAX_SKIPPED:
            raise NumericsError(
                f"gradients overflow at step {self.step + 1}, {self.skipped} times in a row; "
                "lower the learning rate or use precision = 'bf16'"
            )

    def _keep(self, run: RunFolder, stop: StopSignals | None, score: float | None) -> None:
        """Save where that is due, where the score is the best so far, or where a signal reached any process."""
        config = self.config
        received = distributed.largest((stop and stop.received) or 0, self.device)
        stopping = received > 0 and self.step < config.steps
        best = score is not None and score > self.best
        if score is not None and best:
            self.best = score
        if stopping or best or _due(self.step, config.checkpoint_every, config.steps):
            self.save(run, score)
        if stopping:
            raise Interrupted(received)

    # measuring

    def _validate(self, log: JsonLog | None) -> float:
        """Measure on the validation part; the figures go to `curve` and to the log. Returns the score."""
        distributed.broadcast(self.task.model.buffers())
        masks = self.sparsifier.entry_masks
        averaged = self.ema.applied(self.task.model, masks) if self.ema else nullcontext()
        with averaged:
            measures = self.task.evaluate(_OnDevice(self.data.val, self.device))
        self.curve.append({"step": self.step, "density": self.sparsifier.density(), **measures})
        self._write(log, {"val": measures})
        return measures[self.task.score] * (1 if self.task.larger else -1)

    def _write(self, log: JsonLog | None, values: dict[str, Any]) -> None:
        record = {
            "step": self.step,
            **values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "density": self.sparsifier.density(),
            "seconds": round(self.seconds, 3),
        }
        if log is not None:
            log.write(record)
        if self.accelerator.trackers:
            flat = {key: value for key, value in record.items() if not isinstance(value, dict)}
            flat |= {f"val/{name}": value for name, value in values.get("val", {}).items()}
            self.accelerator.log(flat, step=self.step)

    def finish(self, on_end: Look | None = None) -> dict[str, Any]:
        """Make the model plain and measure it."""
        self._check_weights()
        distributed.check_equal(self.sparsifier.masks, "masks")
        distributed.broadcast(self.task.model.buffers())
        density, entry = self.sparsifier.density(), self.sparsifier.entry_masks
        self.task.masks = {name: mask.clone() for name, mask in entry.items()}
        if self.ema is not None:
            self.ema.copy_to(self.task.model, entry)
        if on_end is not None:
            on_end(self.sparsifier)
        self.release()
        self.task.model = self.sparsifier.finalize()
        if self.accelerator.trackers:
            self.accelerator.end_training()
        result: dict[str, Any] = {
            "recipe": self.recipe.name,
            "steps": self.step,
            "seconds": self.seconds,
            "density": density,
        }
        for part in ("val", "test"):
            batches = getattr(self.data, part)
            present = batches is not None
            result[part] = self.task.evaluate(_OnDevice(batches, self.device)) if present else None
        return result | {"curve": self.curve, "history": self.sparsifier.history}

    def release(self) -> None:
        """Take the mixed-precision wrapper off the model's forward."""
        for name in ("forward", "_original_forward"):
            vars(self.task.model).pop(name, None)
        if self._forward is not None:
            self.task.model.forward = self._forward

    def _check_weights(self) -> None:
        for name, parameter in self.task.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NumericsError(
                    f"{name} has NaN or infinite weights after step {self.step}; lower the learning rate or clip "
                    "gradients. The last checkpoint is from before that"
                )

    # saving

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs, as a tree of tensors and JSON values."""
        scaler = getattr(self.accelerator, "scaler", None)
        return {
            "model": dict(self.task.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "rng": distributed.gather(rng_state()),
            "loop": {
                "step": self.step,
                "draws": self.draws,
                "skipped": self.skipped,
                "seconds": self.seconds,
                "curve": self.curve,
            },
        }

    def save(self, run: RunFolder, score: float | None = None) -> None:
        """Write a checkpoint, after a look at what goes into it."""
        self._check_weights()
        distributed.check_equal(self.sparsifier.masks, "masks")
        state = self.state()
        if distributed.rank() == 0:
            run.save(self.step, state, {"recipe": self.recipe.name}, score)

    def restore(self, run: RunFolder) -> bool:
        """Go on from the newest checkpoint; False where there is none."""
        found = run.latest()
        if found is not None:
            self.load(found[0])
            self.best = run.best_score()
        return found is not None

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned. Raises CheckpointError where it is of another run."""
        try:
            load_model(self.task.model, state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sparsifier.load_state_dict(state["sparsifier"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            if state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            states = state["rng"]
            loop = state["loop"]
            self.step, self.draws, self.skipped = loop["step"], loop["draws"], loop["skipped"]
            self.seconds, self.curve = loop["seconds"], list(loop["curve"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the checkpoint is not of a training like this one: {error}") from error
        if len(states) != distributed.world():
            raise CheckpointError(
                f"the checkpoint is of {len(states)} processes, this run has {distributed.world()}; "
                "an exact resume needs the same number"
            )
        set_rng_state(states[distributed.rank()])


def _due(step: int, every: int, steps: int) -> bool:
    """Every so many steps, and at the last one; never where `every` is 0."""
    return every > 0 and (step % every == 0 or step == steps)


def _split(batch: tuple[Tensor, ...], pieces: int) -> list[Batch]:
    """The batch in `pieces` parts whose sizes differ by at most one sample."""
    if pieces == 1:
        return [batch]
    if len(batch[0]) < pieces:
        raise DataError(f"a batch of {len(batch[0])} samples cannot be split into {pieces} pieces")
    return list(zip(*(tensor.tensor_split(pieces) for tensor in batch), strict=True))
