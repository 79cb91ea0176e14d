"""Losses beyond torch's own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gossamer.errors import ConfigError, ShapeError


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        logits: (..., classes). labels: (...), integers; -100 is left out of the mean. smoothing: in [0, 1).
    """
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=smoothing)


def distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(teacher || student) of the softened outputs, mean over samples (Hinton et al. 2015, section 2).

    Args:
        student, teacher: logits (..., classes). No gradient flows to the teacher. temperature: > 0.
    """
    _positive(temperature)
    if student.shape != teacher.shape:
        raise ShapeError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape")
    log_p = F.log_softmax(student.flatten(0, -2) / temperature, dim=-1)
    log_q = F.log_softmax(teacher.detach().flatten(0, -2) / temperature, dim=-1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature**2


def contrastive(left: Tensor, right: Tensor, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE: row i of `left` belongs to row i of `right` (Radford et al. 2021, figure 3).

    Args:
        left, right: embeddings (batch, dim), normalised here. temperature: > 0.
    """
    _positive(temperature)
    if left.shape != right.shape or left.ndim != 2:
        raise ShapeError(f"needs two (batch, dim) embeddings, got {tuple(left.shape)} and {tuple(right.shape)}")
    similarity = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T / temperature
    partner = torch.arange(len(left), device=left.device)
    return (F.cross_entropy(similarity, partner) + F.cross_entropy(similarity.T, partner)) / 2


def pseudo_label(strong: Tensor, weak: Tensor, threshold: float = 0.95) -> Tensor:
    """Cross entropy against the model's own confident labels, 0 for the others (Sohn et al. 2020, eq. 4).

    Args:
        strong: logits (batch, classes) of the strongly augmented samples, which learn.
        weak: logits of the same samples weakly augmented, which give the labels; no gradient flows to them.
        threshold: least probability of a label that is used. The mean is over all samples, used or not.
    """
    confidence, label = weak.detach().softmax(dim=-1).max(dim=-1)
    loss = F.cross_entropy(strong, label, reduction="none")
    return (loss * (confidence >= threshold)).mean()


def _positive(temperature: float) -> None:
    if temperature <= 0:
        raise ConfigError(f"temperature must be positive, got {temperature}")
