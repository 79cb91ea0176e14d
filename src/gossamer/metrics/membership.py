"""Membership inference: can training samples be told from unseen ones by the model's output alone?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import DataError
from gossamer.metrics.classification import check
from gossamer.metrics.ood import auroc

# Every score below is oriented alike: larger means more likely a member.


def loss_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the cross-entropy of each sample (n,), float64 (Yeom et al. 2018)."""
    check(logits, labels)
    return -F.cross_entropy(logits.double(), labels.long(), reduction="none")


def entropy_score(logits: Tensor) -> Tensor:
    """Minus the entropy of the predicted distribution (n,), in nats; needs no label (Salem et al. 2019)."""
    logp = logits.double().log_softmax(1)
    negative: Tensor = (logp.exp() * logp.clamp(min=-1e300)).sum(1)  # 0 * -inf is 0 here
    return negative


def modified_entropy_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the modified entropy (n,): 0 for a sure and right answer, -inf for a sure and wrong one.

    -(1 - p_y) log p_y - sum over i != y of p_i log(1 - p_i).  Source: Song and Mittal 2021, equation 5.
    """
    check(logits, labels)
    logp = logits.double().log_softmax(1)
    p = logp.exp()
    others: Tensor = torch.special.xlog1py(p, -p)  # p_i log(1 - p_i)
    index = labels.long()[:, None]
    of_label = -torch.expm1(logp.gather(1, index))[:, 0] * logp.gather(1, index)[:, 0]
    return of_label + others.scatter(1, index, 0.0).sum(1)


@dataclass(frozen=True)
class Attack:
    """A fitted threshold attack. `balanced_accuracy` 0.5 is chance on the fitting data, `auroc` too."""

    threshold: float
    balanced_accuracy: float
    auroc: float

    def members(self, scores: Tensor) -> Tensor:
        """Bool (n,): which samples the attack takes for members."""
        return scores >= self.threshold


def threshold_attack(members: Tensor, others: Tensor) -> Attack:
    """The threshold on a score that best separates known members from known non-members.

    Args:
        members, others: scores (n,), (m,) of shadow samples, at least one each; larger means member.
    Returns:
        the attack whose balanced accuracy on these samples is largest; of equal ones the highest threshold.
    Raises:
        DataError: no samples of one kind. NumericsError: NaN.
    """
    if not members.numel() or not others.numel():
        raise DataError("a membership attack needs both members and non-members to fit on")
    area = auroc(members, others)
    cuts = torch.cat([members, others]).sort(descending=True).values
    caught = (len(members) - torch.searchsorted(members.sort().values, cuts)) / len(members)
    wrong = (len(others) - torch.searchsorted(others.sort().values, cuts)) / len(others)
    balanced = (caught.double() + 1 - wrong.double()) / 2
    best = int(balanced.argmax())
    return Attack(float(cuts[best]), float(balanced[best]), area)
