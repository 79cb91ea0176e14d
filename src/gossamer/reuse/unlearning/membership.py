"""Whether a model still betrays what it was trained on: the paper's attack, and threshold attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import DataError
from ...metrics.membership import entropy_score, loss_score, modified_entropy_score, threshold_attack
from ...metrics.ood import auroc

LEAST = 20  # samples of each kind that an attack is fitted on at least
LARGEST = 1_000  # and at most: a support vector machine takes more than the square of it

Outputs = tuple[Tensor, Tensor]  # logits (n, classes), labels (n,)


def confidence(outputs: Outputs) -> Tensor:
    """Probability of the true class, (n, 1) float64."""
    logits, labels = outputs
    return logits.double().softmax(1).gather(1, labels[:, None])


def membership_share(forget: Outputs, retain: Outputs, test: Outputs, seed: int = 0) -> float:
    """MIA-efficacy: percentage of the forget set that an attack takes for samples never seen in training.

    The attack is a support vector machine (RBF, C = 3, gamma = 1 / features) on the confidence of the true class. It
    learns from equally many retained (members) and test samples (non-members), drawn by `seed`: as many as there are,
    at most 1000 of each. (The authors take all 10,000, which takes minutes; one feature needs fewer.)

    Raises:
        DataError: fewer than 20 retained or test samples.
    Source: Jia et al. 2023, the released SVC_MIA with the feature "confidence".
    """
    from sklearn.svm import SVC  # slow to import, and only needed here

    count = min(len(retain[1]), len(test[1]), LARGEST)
    if count < LEAST:
        raise DataError(
            f"the membership attack needs at least {LEAST} retained and {LEAST} test samples, got {len(retain[1])} "
            f"and {len(test[1])}; pass more, or no test set to leave it out"
        )
    known = [confidence(_draw(part, count, seed)) for part in (retain, test)]
    machine = SVC(C=3.0, kernel="rbf", gamma="auto")
    machine.fit(torch.cat(known).numpy(), [1] * count + [0] * count)
    return 100 * float((machine.predict(confidence(forget).numpy()) == 0).mean())


def _draw(outputs: Outputs, count: int, seed: int) -> Outputs:
    which = torch.randperm(len(outputs[1]), generator=torch.Generator().manual_seed(seed))[:count]
    return outputs[0][which], outputs[1][which]


def forget_against_test(forget: Outputs, test: Outputs) -> dict[str, float]:
    """How well a threshold tells the forget set from the test set: area under the curve in %, 50 is not at all.

    Large values betray that the samples were trained on; small ones, that forgetting them left a mark.
    """
    return {
        "loss": 100 * auroc(loss_score(*forget), loss_score(*test)),
        "entropy": 100 * auroc(entropy_score(forget[0]), entropy_score(test[0])),
        "modified entropy": 100
        * auroc(_finite(modified_entropy_score(*forget)), _finite(modified_entropy_score(*test))),
    }


def _finite(scores: Tensor) -> Tensor:
    return scores.clamp(min=torch.finfo(scores.dtype).min)


def privacy_attack(retain: Outputs, test: Outputs, seed: int = 0) -> float:
    """Balanced accuracy in % of telling retained from test samples: the threshold is fitted on half of each.

    50 is chance: the model does not betray its training samples. Source: Jia et al. 2023, "training privacy".
    """
    halves = []
    for logits, labels in (retain, test):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        scores = _finite(modified_entropy_score(logits, labels))[order]
        halves.append(scores.tensor_split(2))
    (shadow_in, target_in), (shadow_out, target_out) = halves
    attack = threshold_attack(shadow_in, shadow_out)
    hits = attack.members(target_in).double().mean() + (~attack.members(target_out)).double().mean()
    return 100 * float(hits) / 2
