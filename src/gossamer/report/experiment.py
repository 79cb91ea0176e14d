"""One configured training and all that a report card states about it; the card of several seeds."""

from __future__ import annotations

import inspect
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from gossamer import __version__
from gossamer.data import Dataset, load
from gossamer.errors import ConfigError, ShapeError, unknown
from gossamer.metrics.calibration import ece, nll
from gossamer.models import build
from gossamer.recipes import RECIPES
from gossamer.report.card import Curve, Latency, ReportCard
from gossamer.report.measure import run_fields
from gossamer.runs.folder import RunFolder
from gossamer.runs.model_files import save_model
from gossamer.sparsify.patterns import NM, Block, Pattern
from gossamer.sparsify.recipe import NAMES, PARTS, Recipe, decode
from gossamer.training import Classification, LanguageModelling, Reconstruction, Regression, Task, fit
from gossamer.training.config import FREE, Config

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "regression": Regression,
    "language": LanguageModelling,
    "reconstruction": Reconstruction,
}


ROLES = {"dense": "dense", "random": "random_mask"}  # what a recipe stands for in a comparison; the others: "method"


def make_recipe(name: str, options: Mapping[str, Any]) -> Recipe:
    """A recipe by its name in RECIPES, or from a YAML file whose path ends in .yaml.

    Args:
        options: of the recipe's function, parts as in a recipe's YAML; and of any recipe `only` and `exclude` (patterns
            of weight names) and `pattern` (see `make_pattern`).
    Raises:
        ConfigError: unknown name or option, with the nearest known ones; a file that cannot be read.
    """
    chosen: dict[str, Any] = {key: tuple(options[key]) for key in ("only", "exclude") if options.get(key)}
    rest = {key: value for key, value in options.items() if key not in ("only", "exclude", "pattern")}
    recipe = _from_file(Path(name), rest) if name.endswith((".yaml", ".yml")) else _from_table(name, rest)
    if chosen:
        recipe = recipe.replace(select=replace(recipe.select, **chosen))
    if options.get("pattern") is not None:
        recipe = recipe.replace(pattern=make_pattern(options["pattern"]))
    return recipe


def _from_file(path: Path, options: Mapping[str, Any]) -> Recipe:
    if options:
        raise ConfigError(f"{path} is a whole recipe; {', '.join(options)} cannot be set beside it, edit the file")
    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error


def _from_table(name: str, options: Mapping[str, Any]) -> Recipe:
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    known = inspect.signature(RECIPES[name]).parameters
    for key in options:
        if key not in known:
            raise unknown(f"option of recipe {name!r}", key, [*known, "only", "exclude", "pattern"])
    values = {
        key: decode(value) if type(known[key].default) in NAMES and isinstance(value, str | dict) else value
        for key, value in options.items()
    }
    try:
        return RECIPES[name](**values)
    except TypeError as error:
        raise ConfigError(f"recipe {name!r} with the options {dict(options)}: {error}") from None


def make_pattern(value: str | Mapping[str, Any]) -> Pattern:
    """A pattern as users write it: "2:4", "block:4x1", or a part as in a recipe's YAML: "rows", {nm: {n: 1, m: 4}}.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, str) and (found := re.fullmatch(r"(\d+):(\d+)", value)):
        return NM(int(found[1]), int(found[2]))
    if isinstance(value, str) and (found := re.fullmatch(r"block:(\d+)x(\d+)", value)):
        return Block(int(found[1]), int(found[2]))
    names = [name for name, part in PARTS.items() if part.__module__ == Pattern.__module__]
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"pattern {value!r} is no text; YAML reads 2:4 as a number, so write it in quotes: '\"2:4\"'")
    name = value if isinstance(value, str) else next(iter(value), "")
    if name not in names:
        raise unknown("pattern", str(name), [*names, "N:M such as 2:4", "block:RxC such as block:4x1"])
    pattern: Pattern = decode(value if isinstance(value, str) else dict(value))
    return pattern


def make_parts(config: Config) -> tuple[Dataset, nn.Module, Recipe]:
    """Data, freshly initialised model and recipe of a configuration; the seed decides order and weights.

    Raises:
        ConfigError: unknown names and options, a recipe that would never update in so few steps. DataError: no data.
    """
    recipe = make_recipe(config.recipe.name, config.recipe.options)
    for update in recipe.updates:
        if update.when is not None:
            update.when.check(config.train.steps)
    data = load(config.data.name, **{"seed": config.train.seed, **config.data.options})
    if config.task not in (data.kind, "reconstruction"):
        raise ConfigError(
            f"data set {config.data.name!r} is for {data.kind}: set task={data.kind} (it is {config.task})"
        )
    torch.manual_seed(config.train.seed)
    options = dict(config.model.options)
    if ":" not in config.model.name:
        options = {"shape": data.shape, "classes": data.classes, **options}
    model = build(config.model.name, **options)
    check_inputs(model, data, config)
    return data, model, recipe


@torch.no_grad()
def check_inputs(model: nn.Module, data: Dataset, config: Config) -> None:
    """Try one sample; changes neither the model nor the random state.

    Raises:
        ShapeError: the model cannot take inputs of this shape.
    """
    training = {module: module.training for module in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):
            model.eval()(data.test.batch(0)[0][:1])
    except (RuntimeError, IndexError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ShapeError(
            f"model {config.model.name!r} cannot take an input of shape {tuple(data.shape)} of the data set "
            f"{config.data.name!r}: {reason}"
        ) from error
    finally:
        for module, mode in training.items():
            module.training = mode


def run(
    config: Config,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    trackers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Train as configured into a run folder, measure the result and keep the model's files there.

    Returns:
        the outcome: JSON values, also written to the folder as `result.json`; `card` makes a card of outcomes.
    """
    data, model, recipe = make_parts(config)
    arguments = config.model_dump(mode="json")
    opened = RunFolder.open(folder, arguments, resume=resume, overwrite=overwrite, free=FREE, keep=config.train.keep)
    if resume and (before := opened.result()) and "card" in before:
        return before
    task = TASKS[config.task](model)
    example = data.test.batch(0)[0][:1]
    measured: dict[str, Any] = {}
    result = fit(
        task,
        data,
        recipe,
        config.train,
        run=opened,
        resume=resume,
        on_end=lambda sparsifier: measured.update(run_fields(sparsifier, example.to(device_of(sparsifier.model)))),
        trackers=trackers,
        progress=progress,
    )
    outcome = outcome_of(config, task, data, result, measured)
    save_model(opened.path, task.model, task.masks, {"recipe": recipe.to_yaml()})
    opened.write_result(outcome)
    return outcome


def outcome_of(
    config: Config, task: Task, data: Dataset, result: Mapping[str, Any], measured: Mapping[str, Any]
) -> dict[str, Any]:
    """What is kept of a finished run as `result.json`: configuration, figures of the fit, card, calibration."""
    calibrated = calibration(task, data)
    timed = latency(task.model.cpu().eval(), data.test.batch(0)[0][:1])
    fields = {**measured, "latencies": [timed]}
    shown = ReportCard(method=config.recipe.name, model=config.model.name, data=config.data.name, **fields)
    return {
        "config": config.model_dump(mode="json"),
        "fit": dict(result),
        "card": shown.model_dump(mode="json"),
        "calibration": calibrated,
    }


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lies."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def calibration(task: Task, data: Dataset) -> dict[str, float]:
    """ECE and NLL on the test part, for classifiers."""
    if not isinstance(task, Classification):
        return {}
    logits, labels = predictions(task.model, data)
    return {
        "ece": ece(logits, labels),
        "nll": nll(logits, labels),
    }


@torch.no_grad()
def predictions(model: nn.Module, data: Dataset) -> tuple[Tensor, Tensor]:
    """(logits, labels) of the test part."""
    model.eval()
    pairs = [data.test.batch(step) for step in range(len(data.test))]
    logits = [model(pair[0].to(device_of(model))).cpu() for pair in pairs]
    return torch.cat(logits), torch.cat([pair[1] for pair in pairs])


@torch.no_grad()
def latency(model: nn.Module, example: Tensor, repeats: int = 30) -> Latency:
    """Time of one forward pass with torch's dense kernels, one thread: best of `repeats`, and their spread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            model(example)
            times.append((time.perf_counter() - started) * 1e3)
    finally:
        torch.set_num_threads(threads)
    return Latency(
        kernel="torch dense", hardware=hardware(), milliseconds=min(times), sd=stdev(times), batch=len(example)
    )


def card(outcomes: Sequence[Mapping[str, Any]], *, role: str = "method", command: str = "") -> ReportCard:
    """The card of runs that differ in the seed only; counts and costs are those of the first.

    Raises:
        ConfigError: no outcomes, or other differences.
    """
    if not outcomes:
        raise ConfigError("a card needs at least one finished run")
    configs = [_seedless(outcome["config"]) for outcome in outcomes]
    if any(config != configs[0] for config in configs):
        raise ConfigError("these runs differ in more than their seed, so they make no common card")
    config = Config(**outcomes[0]["config"])
    fits = [outcome["fit"] for outcome in outcomes]
    metric = TASKS[config.task].score
    tests = [f["test"] for f in fits]
    others = {name: [float(test[name]) for test in tests] for name in sorted(tests[0]) if name != metric}
    others |= {name: [o["calibration"][name] for o in outcomes] for name in outcomes[0]["calibration"]}
    first = ReportCard(**outcomes[0]["card"])
    updates: dict[str, Any] = {
        "method": config.recipe.name if role == "method" else role.replace("_", " "),
        "role": role,
        "command": command,
        "versions": {"gossamer": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": hardware(),
        "batch_size": config.data.options.get("batch_size", 128),
        "optimizer": f"{config.train.optim.name} lr {config.train.optim.lr:g} {config.train.optim.schedule}",
        "selection": "last",
        "sparsity_target": config.recipe.options.get("sparsity"),
        "training_seconds": [f["seconds"] for f in fits],
        "metric": metric,
        "higher_is_better": TASKS[config.task].larger,
        "seeds": [outcome["config"]["train"]["seed"] for outcome in outcomes],
        "values": [float(test[metric]) for test in tests],
        "other_metrics": others,
        "curves": _curves(outcomes, metric),
    }
    return ReportCard(**{**first.model_dump(), **updates})


def _seedless(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "train": {**config["train"], "seed": 0}}


def _curves(outcomes: Sequence[Mapping[str, Any]], metric: str) -> list[Curve]:
    """Validation metric of every seed and the density of the first."""
    curves = []
    for outcome in outcomes:
        rows = outcome["fit"]["curve"]
        if rows:
            steps = [row["step"] for row in rows]
            seed = outcome["config"]["train"]["seed"]
            values = [row[metric] for row in rows]
            curves.append(Curve(quantity=f"validation {metric}", seed=seed, steps=steps, values=values))
    rows = outcomes[0]["fit"]["history"]
    if len(rows) > 1:
        steps = [row["step"] for row in rows]
        curves.append(Curve(quantity="density", steps=steps, values=[row["density"] for row in rows]))
    return curves


def hardware() -> str:
    """Processor name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
