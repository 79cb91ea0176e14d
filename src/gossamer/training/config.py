"""The configuration of a run: YAML, `a.b=c` overrides, checks with nearest names, JSON schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gossamer.errors import ConfigError, unknown


class Section(BaseModel):
    """Values that cannot be changed once made; a key that is no setting is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _readable(type(self), error) from None

    # Pydantic then fills nested sections without this method, so that an error carries the whole path.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


class OptimConfig(Section):
    """The optimiser and the learning rate over the run.

    Attributes:
        lr: the highest learning rate; `schedule` and `warmup` (a fraction of the run) scale it.
        momentum: of sgd, nesterov and rmsprop. betas: of adam and adamw.
        milestones, gamma: of the schedule "step": at each fraction of the run the rate is multiplied by gamma.
        final: of "cosine" and "linear": the last rate as a fraction of the first.
        warmup_shape: "linear" or "cosine" (half a cosine, flat at both ends).
        hold: fraction of the time after the warm-up during which the highest rate is kept.
        begin: the run is the last part of a longer schedule, from this fraction of it on (learning-rate rewinding).
    """

    name: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop"] = "sgd"
    lr: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)
    schedule: Literal["cosine", "step", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0)
    final: float = Field(default=0.0, ge=0)
    warmup_shape: Literal["linear", "cosine"] = "linear"
    hold: float = Field(default=0.0, ge=0, lt=1)
    begin: float = Field(default=0.0, ge=0, lt=1)


class TrainConfig(Section):
    """One training.

    Attributes:
        steps: optimiser steps. seed: of everything random in the training, save the order of the data.
        accumulate: pieces into which each batch is split; gradients are summed over them.
        clip: largest norm of the gradient, after masking; None does not clip.
        precision: "fp16" needs a GPU. ema: decay of an average of the weights that is then used instead of them.
        validate_every, checkpoint_every, log_every: in steps; 0 never.
        keep: newest checkpoints that stay. device: "auto" takes a GPU where there is one.
    """

    steps: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)
    optim: OptimConfig = OptimConfig()
    accumulate: int = Field(default=1, ge=1)
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = Field(default=None, gt=0, lt=1)
    validate_every: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=200, ge=0)
    log_every: int = Field(default=20, ge=0)
    keep: int = Field(default=2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class DataPart(Section):
    """A data set by its name in `data.DATASETS`, and the options of its loader."""

    name: str = "digits"
    options: dict[str, Any] = {}


class ModelPart(Section):
    """A model by its name in `models.MODELS` or its import path, and the options of its builder."""

    name: str = "mlp"
    options: dict[str, Any] = {}


class RecipePart(Section):
    """A method by its name in `recipes.RECIPES`, and its options."""

    name: str = "dense"
    options: dict[str, Any] = {}


class Config(Section):
    """A whole run, as the command line reads it."""

    task: Literal["classification", "regression", "language", "reconstruction"] = "classification"
    data: DataPart = DataPart()
    model: ModelPart = ModelPart()
    recipe: RecipePart = RecipePart()
    train: TrainConfig = TrainConfig()


# Settings that change no bit of the outcome, so that a resumed run may change them.
FREE = ("train.checkpoint_every", "train.log_every", "train.keep")

S = TypeVar("S", bound=Section)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), kind: type[S] | None = None) -> S:
    """Read a YAML file, apply overrides such as `train.optim.lr=0.05` (values are YAML), check everything.

    Args:
        path: None starts from the defaults. kind: the section to build; `Config` by default.
    Raises:
        ConfigError: no such file, bad YAML, an unknown key (with the nearest ones), a value out of range.
    """
    values = _read(Path(path)) if path is not None else {}
    for override in overrides:
        _override(values, override)
    return (kind or Config)(**values)  # type: ignore[return-value]


def with_overrides(config: S, overrides: Sequence[str]) -> S:
    """A copy of a configuration with overrides applied. Raises ConfigError as `load_config` does."""
    values = config.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    return type(config)(**values)


def json_schema() -> dict[str, Any]:
    """The JSON schema of `Config`, for editors."""
    return Config.model_json_schema()


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no plain YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} must be a mapping of settings")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not all(key.split(".")):
        raise ConfigError(f"an override has the form a.b=value, not {override!r}")
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"cannot set {key}: {name} is a value, not a section")
    try:
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"cannot read the value of {key}: {text!r}") from error


def _readable(section: type[Section], error: ValidationError) -> ConfigError:
    """The first finding of pydantic in our words."""
    finding = error.errors(include_url=False)[0]
    path = [str(part) for part in finding["loc"]]
    key, value = ".".join(path), finding.get("input")
    if finding["type"] == "extra_forbidden":
        return unknown("setting", key, [".".join([*path[:-1], name]) for name in _fields(section, path[:-1])])
    if finding["type"] == "literal_error":
        expected = str(finding["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return unknown(f"value of {key}", str(value), expected)
    return ConfigError(f"{key} = {value!r}: {finding['msg']}")


def _fields(section: type[Section], path: Sequence[str]) -> Mapping[str, Any]:
    """The settings of the section that lies at `path` inside `section`."""
    fields: Mapping[str, Any] = section.model_fields
    for name in path:
        fields = fields[name].annotation.model_fields
    return fields
