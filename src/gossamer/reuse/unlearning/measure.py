"""What a model does with the forgotten, the retained and the unseen samples."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ...data.dataset import Batches
from ...errors import NumericsError, ShapeError
from ...metrics.classification import accuracy, confusion
from .membership import Outputs, forget_against_test, membership_share, privacy_attack
from .samplewise import evaluating
from .split import CHUNK, ForgetSplit, plain

FIGURES = ("ua", "mia", "ra", "ta")


@dataclass(frozen=True)
class Figures:
    """The paper's measures, in percent; None where there was no test set.

    Attributes:
        ua: unlearning accuracy, 100 - accuracy on the forget set. mia: `membership_share`. ra: accuracy on the retain
            set. ta: accuracy on the test set, without classes that were forgotten wholly.
        seconds: run time of the method (RTE); None where nothing was run.
        attacks: `forget_against_test`. privacy: `privacy_attack`.
        forget_confusion, test_confusion: counts, row = true class, column = answer; the test set with all its classes.
    """

    ua: float
    ra: float
    mia: float | None = None
    ta: float | None = None
    seconds: float | None = None
    attacks: dict[str, float] = field(default_factory=dict)
    privacy: float | None = None
    forget_confusion: list[list[int]] = field(default_factory=list)
    test_confusion: list[list[int]] = field(default_factory=list)

    def gap(self, other: Figures) -> float:
        """Mean distance to another model's UA, MIA, RA and TA in points (of those that both have)."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in FIGURES]
        distances = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        return sum(distances) / len(distances)

    def as_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


@torch.no_grad()
def outputs_of(model: nn.Module, part: Batches, name: str) -> Outputs:
    """Logits and labels of all samples, on the CPU, in evaluation mode.

    Raises:
        NumericsError: NaN in the inputs or in the answers. ShapeError: not one row of logits per sample.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits, labels = [], []
    with evaluating(model):
        for number, (x, y) in enumerate(plain(part)):
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                bad = int((~torch.isfinite(x.flatten(1)).all(1)).nonzero()[0])
                raise NumericsError(f"sample {number * CHUNK + bad} of the {name} set holds NaN or infinite inputs")
            answer = model(x.to(device)).cpu()
            if answer.ndim != 2 or len(answer) != len(y):
                raise ShapeError(f"the model answers {tuple(answer.shape)} for {len(y)} samples; needs (n, classes)")
            logits.append(answer)
            labels.append(y.long())
    found = torch.cat(logits), torch.cat(labels)
    if not bool(torch.isfinite(found[0]).all()):
        raise NumericsError(f"the model answers NaN or infinity on the {name} set; unlearning diverged or never began")
    return found


def measure(model: nn.Module, split: ForgetSplit, seconds: float | None = None, seed: int = 0) -> Figures:
    """All figures of a model. seed: of the samples that the membership attack learns from."""
    forget = outputs_of(model, split.forget, "forget")
    retain = outputs_of(model, split.retain, "retain")
    figures: dict[str, Any] = {
        "ua": 100 - 100 * accuracy(*forget),
        "ra": 100 * accuracy(*retain),
        "seconds": seconds,
        "forget_confusion": confusion(*forget).tolist(),
    }
    if split.test is not None:
        everything = outputs_of(model, split.test, "test")
        stays = ~torch.isin(everything[1], torch.tensor(split.whole_classes, dtype=torch.long))
        test = everything[0][stays], everything[1][stays]
        figures |= {
            "ta": 100 * accuracy(*test),
            "mia": membership_share(forget, retain, test, seed),
            "attacks": forget_against_test(forget, test),
            "privacy": privacy_attack(retain, test, seed),
            "test_confusion": confusion(*everything).tolist(),
        }
    return Figures(**figures)


def check_weights(model: nn.Module) -> None:
    """Raises NumericsError naming the first parameter or buffer with NaN or infinity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NumericsError(f"{name} holds NaN or infinite values; load a sound model")


def digests(part: Batches) -> list[bytes]:
    """A hash of every sample's stored input (not augmented), to recognise it."""
    return [
        hashlib.blake2b(row.numpy().tobytes(), digest_size=16).digest()
        for indices in torch.arange(part.samples).split(CHUNK)
        for row in part.source[indices][0].contiguous()
    ]
