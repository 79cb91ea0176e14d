"""The report card: all that a run must state to be comparable, as one flat record that travels as JSON.

A card is one arm (one method, all its seeds). A `Comparison` is a list of cards with the dense control. Fractions are
fractions (0.9, not 90), FLOPs count 2 per multiply-accumulate, times are milliseconds, sizes bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gossamer.errors import ConfigError, DataError
from gossamer.maths.statistics import Estimate, t_interval
from gossamer.report.taxonomy import Taxonomy
from gossamer.runs.files import write_text


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


T = TypeVar("T", bound=_Record)


class Layer(_Record):
    """One weight tensor: `kept` of `numel` entries survive; FLOPs are of one dense sample."""

    name: str
    shape: list[int]
    numel: int = Field(ge=0)
    kept: int = Field(ge=0)
    flops: int = Field(default=0, ge=0)

    @property
    def density(self) -> float:
        """Kept fraction; 1 for an empty tensor."""
        return self.kept / self.numel if self.numel else 1.0

    @model_validator(mode="after")
    def _kept_fits(self) -> Layer:
        if self.kept > self.numel:
            raise ValueError(f"layer {self.name!r} keeps {self.kept} of {self.numel} weights")
        return self


class Curve(_Record):
    """One quantity over the optimiser steps of one seed, such as the test accuracy or the training loss."""

    quantity: str
    seed: int = 0
    steps: list[int]
    values: list[float]

    @model_validator(mode="after")
    def _same_length(self) -> Curve:
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.quantity!r}: {len(self.steps)} steps and {len(self.values)} values")
        return self


class Latency(_Record):
    """A measured time of one forward pass: of which kernels, on which machine."""

    kernel: str
    hardware: str
    milliseconds: float = Field(gt=0)
    sd: float | None = Field(default=None, ge=0)
    batch: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)


class Executed(_Record):
    """One layer of a compiled network: how it runs, and its time beside the best dense candidate."""

    layer: str
    kind: str
    runs: str
    density: float | None = Field(default=None, ge=0, le=1)
    dense_us: float | None = Field(default=None, ge=0)
    measured_us: float | None = Field(default=None, ge=0)
    why: str = ""


class ReportCard(_Record):
    """One method on one model and one data set, over all its seeds.

    Only `method`, `model` and `data` are required; what is absent is shown as absent and may raise a lint finding.
    """

    format: Literal[1] = 1
    method: str = Field(min_length=1, description="name of the recipe or procedure")
    role: Literal["method", "dense", "small_dense", "random_mask"] = Field(
        default="method", description="what the arm stands for in a comparison"
    )
    taxonomy: Taxonomy = Taxonomy()
    taxonomy_contradictions: list[str] = Field(default=[], description="what `taxonomy.verify` found")
    recipe: str = Field(default="", description="the recipe as YAML")

    model: str = Field(min_length=1)
    data: str = Field(min_length=1)
    data_licence: str = ""
    command: str = Field(default="", description="the command that reproduces this card")
    versions: dict[str, str] = {}
    hardware: str = ""

    # budget and protocol
    steps: int | None = Field(default=None, ge=1, description="optimiser steps, search and fine-tuning included")
    epochs_multiplier: float = Field(default=1.0, gt=0, description="declared extension of training (xM)")
    batch_size: int | None = Field(default=None, ge=1)
    optimizer: str = ""
    augmentation: str = ""
    selection: Literal["last", "validation", "test", ""] = Field(
        default="", description="where the reported model was chosen"
    )
    search_rounds: int = Field(default=0, ge=0, description="trainings spent to find the mask (IMP)")
    search_flops: float | None = Field(default=None, ge=0, description="training FLOPs of that search")

    # sparsity
    sparsity_target: float | None = Field(default=None, ge=0, lt=1)
    sparsity_scope: Literal["prunable", "weights", "all", ""] = ""
    sparsity_prunable: float | None = Field(default=None, ge=0, le=1)
    sparsity_weights: float | None = Field(default=None, ge=0, le=1)
    sparsity_all: float | None = Field(default=None, ge=0, le=1)
    layers: list[Layer] = []
    nnz_by_mask: int | None = Field(default=None, ge=0)
    nnz_by_value: int | None = Field(default=None, ge=0)
    masked_nonzero: int = Field(default=0, ge=0, description="masked weights that were not 0 after a step")
    masked_momentum: int = Field(default=0, ge=0, description="masked entries with a non-zero optimiser buffer")

    # behaviour of the mask
    peak_density: float | None = Field(default=None, ge=0, le=1)
    dense_gradient_steps: int = Field(default=0, ge=0)
    itop_rate: float | None = Field(default=None, ge=0, le=1)
    mask_flips: int | None = Field(default=None, ge=0)
    t_mask_fixed: float | None = Field(default=None, ge=0, le=1)
    has_batchnorm: bool = False
    trained_after_mask: bool = Field(default=True, description="weights were trained after the last mask change")
    batchnorm_recalibrated: bool = False

    # cost
    inference_flops: float | None = Field(default=None, ge=0, description="per sample, weighted by density")
    inference_flops_dense: float | None = Field(default=None, ge=0)
    training_flops: float | None = Field(default=None, ge=0, description="per sample over the run, theoretical")
    training_flops_dense: float | None = Field(default=None, ge=0)
    training_flops_executed: float | None = Field(default=None, ge=0, description="what was really computed")
    training_seconds: list[float] = []
    bytes_by_format: dict[str, int] = {}
    latencies: list[Latency] = []
    execution: list[Executed] = Field(default=[], description="layers of the compiled network")
    speedup_claimed: float | None = Field(default=None, gt=0)

    # quality
    metric: str = "accuracy"
    higher_is_better: bool = True
    seeds: list[int] = []
    values: list[float] = Field(default=[], description="the metric of each seed, in the order of `seeds`")
    other_metrics: dict[str, list[float]] = Field(default={}, description="by name (ece, nll, ...): per seed")
    curves: list[Curve] = []

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ, got {seeds}")
        return seeds

    @model_validator(mode="after")
    def _one_value_per_seed(self) -> ReportCard:
        lists = {self.metric: self.values, **self.other_metrics}
        for name, values in lists.items():
            if self.seeds and values and len(values) != len(self.seeds):
                raise ValueError(f"{name}: {len(values)} values for {len(self.seeds)} seeds")
        return self

    @property
    def estimate(self) -> Estimate | None:
        """Mean, sd and 95 % interval of the metric over seeds; None where nothing was measured."""
        return t_interval(self.values) if self.values else None

    def other(self, name: str) -> Estimate | None:
        """The same for one of `other_metrics`."""
        return t_interval(self.other_metrics[name]) if self.other_metrics.get(name) else None

    @property
    def inference_ratio(self) -> float | None:
        """Inference FLOPs relative to dense."""
        return _ratio(self.inference_flops, self.inference_flops_dense)

    @property
    def training_ratio(self) -> float | None:
        """Theoretical training FLOPs relative to dense."""
        return _ratio(self.training_flops, self.training_flops_dense)

    def to_json(self) -> str:
        """JSON with the fields in the order of this class; the same card gives the same bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ReportCard:
        """Raises DataError naming the first bad field."""
        return _parse(cls, text)

    def save(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> ReportCard:
        """Raises DataError: the file is missing, damaged or no card."""
        return cls.from_json(_read(path))


class Comparison(_Record):
    """Several cards on one model and data set; `control` names the method that the others are compared with."""

    format: Literal[1] = 1
    title: str = "Comparison"
    command: str = ""
    control: str = "dense"
    cards: list[ReportCard] = Field(min_length=1)

    @model_validator(mode="after")
    def _comparable(self) -> Comparison:
        data = sorted({card.data for card in self.cards})
        if len(data) > 1:
            raise ValueError(f"cards of different data sets cannot be compared: {', '.join(data)}")
        methods = [card.method for card in self.cards]
        if len(set(methods)) != len(methods):
            raise ValueError(f"methods must have different names, got {methods}")
        return self

    @property
    def dense(self) -> ReportCard | None:
        """The control's card, if it is among the cards."""
        return next((card for card in self.cards if card.method == self.control), None)

    def to_json(self) -> str:
        """JSON in the order of the fields; the same comparison gives the same bytes."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Raises DataError naming the first bad field."""
        return _parse(cls, text)

    def save(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Comparison:
        """Raises DataError: the file is missing, damaged or no comparison."""
        return cls.from_json(_read(path))


def comparison(cards: list[ReportCard], **fields: Any) -> Comparison:
    """A comparison of `cards`. Raises ConfigError: different data sets, or two cards of one method."""
    try:
        return Comparison(cards=cards, **fields)
    except ValidationError as error:
        raise ConfigError(_first(error)) from error


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _parse(kind: type[T], text: str) -> T:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"no valid {kind.__name__}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
