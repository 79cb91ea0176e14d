"""Zero what a mask prunes, in place: one pass over all tensors of a model.

NaN and infinity under a False become exact zeros too, which multiplying by a mask cannot do.

    >>> weight = torch.tensor([1.0, float("nan"), 3.0])
    >>> apply_mask_(weight, torch.tensor([True, False, True]))
    tensor([1., 0., 3.])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from gossamer.errors import MaskError, ShapeError
from gossamer.kernels import native

_NATIVE_SIZES = (2, 4, 8)


def apply_mask_(tensor: Tensor, mask: Tensor) -> Tensor:
    """Set `tensor` to zero where `mask` is False, in place, outside of autograd; returns `tensor`.

    Args:
        tensor: any shape, dtype and device.
        mask: bool of the same shape and device.
    Raises:
        MaskError: the mask is not bool, or on another device.
        ShapeError: the shapes differ.
    """
    apply_masks_([tensor], [mask])
    return tensor


def apply_masks_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """`apply_mask_` for each pair; much cheaper than one call per tensor."""
    if len(tensors) != len(masks):
        raise MaskError(f"{len(tensors)} tensors need as many masks, got {len(masks)}")
    for position, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        _check(tensor, mask, position)
    if torch.compiler.is_compiling():
        _apply_masks_op(list(tensors), list(masks))
    else:
        _apply(tensors, masks)
        torch.autograd.graph.increment_version(tensors)


def _check(tensor: Tensor, mask: Tensor, position: int) -> None:
    if mask.dtype is not torch.bool:
        raise MaskError(f"mask {position} must be bool (True = kept), got {mask.dtype}")
    if mask.shape != tensor.shape:
        raise ShapeError(f"mask {position} has shape {tuple(mask.shape)}, but its tensor has {tuple(tensor.shape)}")
    if mask.device != tensor.device:
        raise MaskError(f"mask {position} is on {mask.device}, but its tensor is on {tensor.device}")


def _apply(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    extension = native.extension()
    pairs = []
    for tensor, mask in zip(tensors, masks, strict=True):
        if extension is not None and _is_plain(tensor, mask):
            pairs.append((tensor, mask))
        else:
            _apply_reference(tensor, mask)
    if pairs:
        extension.zero_unmasked(
            [tensor.data_ptr() for tensor, _ in pairs],
            [mask.data_ptr() for _, mask in pairs],
            [tensor.numel() for tensor, _ in pairs],
            [tensor.element_size() for tensor, _ in pairs],
            native.threads(),
        )


def _is_plain(tensor: Tensor, mask: Tensor) -> bool:
    """Both lie in memory in the same order without gaps, so that one loop fits."""
    return (
        type(tensor) in (Tensor, Parameter)
        and type(mask) is Tensor
        and tensor.is_cpu
        and tensor.element_size() in _NATIVE_SIZES
        and not tensor.is_neg()
        and not tensor.is_conj()
        and _same_dense_layout(tensor, mask)
    )


def _same_dense_layout(tensor: Tensor, mask: Tensor) -> bool:
    if tensor.is_contiguous() and mask.is_contiguous():
        return True
    channels_last = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
    return (
        tensor.dim() in (4, 5)
        and tensor.is_contiguous(memory_format=channels_last)
        and mask.is_contiguous(memory_format=channels_last)
    )


def _apply_reference(tensor: Tensor, mask: Tensor) -> None:
    """`apply_mask_` in plain torch, on any device."""
    with torch.no_grad():
        tensor.masked_fill_(~mask, 0)


@torch.library.custom_op("gossamer::apply_masks_", mutates_args=("tensors",))
def _apply_masks_op(tensors: list[Tensor], masks: list[Tensor]) -> None:
    _apply(tensors, masks)


@_apply_masks_op.register_fake
def _(tensors: list[Tensor], masks: list[Tensor]) -> None:
    return None
