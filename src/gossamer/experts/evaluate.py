"""Zero-shot classification and retrieval on embeddings, and what the routers of a model do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import NumericsError, ShapeError
from gossamer.experts.layer import MoE, moe_layers, routed
from gossamer.experts.losses import real_logits
from gossamer.experts.upcycling import active_parameters


def recall(
    first: Tensor, second: Tensor, owner: Tensor | None = None, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Retrieval in both directions: share of queries with a right answer among the k nearest by cosine.

    Args:
        first: (n, d) images. second: (m, d) texts.
        owner: (m,) the image of each text (five captions an image in COCO); None: text i belongs to image i.
    Returns:
        "first to second R@k" and "second to first R@k" for each k.
    Raises:
        ShapeError: no owner and different lengths. NumericsError: NaN embeddings.
    """
    if owner is None:
        if len(first) != len(second):
            raise ShapeError(f"{len(first)} and {len(second)} embeddings: say with owner= which belongs to which")
        owner = torch.arange(len(second))
    cosine = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T
    if not bool(torch.isfinite(cosine).all()):
        raise NumericsError("embeddings hold NaN or infinity")
    right = owner.unsqueeze(0) == torch.arange(len(first)).unsqueeze(1)  # (n, m)
    found = {}
    for k in ks:
        for name, score, truth in (("first to second", cosine, right), ("second to first", cosine.T, right.T)):
            best = score.topk(min(k, score.shape[1]), dim=1).indices
            found[f"{name} R@{k}"] = float(truth.gather(1, best).any(1).float().mean())
    return found


def zero_shot(images: Tensor, prompts: Tensor, labels: Tensor) -> float:
    """Accuracy of the class whose mean normalised prompt embedding is nearest (Radford et al. 2021, section 3.1.4).

    Args:
        images: (n, d). prompts: (classes, d), or (classes, templates, d). labels: (n,).
    """
    prompts = prompts.unsqueeze(1) if prompts.dim() == 2 else prompts
    classes = F.normalize(F.normalize(prompts.float(), dim=-1).mean(1), dim=-1)
    return float(((F.normalize(images.float(), dim=-1) @ classes.T).argmax(-1) == labels).float().mean())


@torch.no_grad()
def moe_report(model: nn.Module, forward: Callable[[nn.Module], Any]) -> dict[str, Any]:
    """What the expert layers do on some data.

    Args:
        forward: runs the model on the data, such as `lambda m: m(x)`. Padding that `masked` names is not counted.
    Returns:
        "active_parameters", "parameters", and by layer: "load" (share of pairs by expert), "dropped" (share of tokens),
        "entropy" (of the mean gate, 1 is uniform), "similarity" (mean cosine between the experts' weights).
    """
    mode = model.training
    model.eval()
    with routed(model) as plans:
        forward(model)
    model.train(mode)
    layers = {}
    for name, layer in moe_layers(model).items():
        seen = plans[name]
        counts = torch.stack([plan.counts for plan in seen]).sum(0).float()
        logits = torch.cat([real_logits(plan) for plan in seen])
        gate = logits.softmax(-1).mean(0)
        layers[name] = {
            "load": (counts / counts.sum().clamp(min=1)).tolist(),
            "dropped": float(sum(int(p.dropped.sum()) for p in seen) / max(1, len(logits))),
            "entropy": float(-(gate * gate.clamp(min=1e-12).log()).sum() / torch.tensor(float(len(gate))).log()),
            "similarity": weight_similarity(layer),
        }
    active, total = active_parameters(model)
    return {"active_parameters": active, "parameters": total, "layers": layers}


def weight_similarity(layer: MoE) -> float:
    """Mean cosine between the weights of different experts of a layer."""
    return similarity(torch.cat([p.detach().flatten(1) for p in layer.experts.parameters()], dim=1))


def similarity(vectors: Tensor) -> float:
    """Mean cosine between different rows (E, p)."""
    cosine = F.normalize(vectors.float(), dim=-1)
    cosine = cosine @ cosine.T
    n = len(cosine)
    return float((cosine.sum() - cosine.diagonal().sum()) / (n * (n - 1)))
