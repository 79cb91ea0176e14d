"""Padding in a batch of texts: routed nowhere and counted nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gossamer.experts.layer import moe_layers


@contextmanager
def masked(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """While it is entered, the expert layers of a model get this mask (B, length), False for padding.

    Padding then takes no room in an expert, no work, and no part in balance losses and reports; the layers add nothing
    to it. Raises ConfigError for a model without expert layers.

    >>> import torch
    >>> from gossamer.experts import Experts, MoE, TopK, routed
    >>> layer = MoE(Experts(4, 8, 16), TopK(2))
    >>> with routed(layer) as plans, masked(layer, torch.tensor([[True, True, False]])):
    ...     y = layer(torch.randn(1, 3, 8))
    >>> int(plans[""][0].counts.sum())
    4
    """

    def tell(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return given[:1], {**named, "mask": mask}

    handles = [layer.register_forward_pre_hook(tell, with_kwargs=True) for layer in moe_layers(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def until_end(ids: Tensor, end: int) -> Tensor:
    """(B, length) bool: tokens up to the first `end`, itself included; all where there is none.

    CLIP reads a text's embedding there, and later tokens do not reach it. Old configurations say 2 and mean the largest
    number (as transformers reads them).
    """
    last = ids == end if end != 2 else ids == ids.amax(-1, keepdim=True)
    return last.cumsum(-1) - last.long() < 1
