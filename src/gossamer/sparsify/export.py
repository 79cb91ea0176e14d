"""Masks made permanent, and masked models as plain tensors: dense with exact zeros, CSR, bitmap, 2:4."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import CheckpointError, ConfigError, MaskError
from ..kernels.bitmap import pack, unpack
from .accounting.parameters import unique_weights
from .estimators import uninstall
from .patterns import NM

Masks = Mapping[str, Tensor]


@torch.no_grad()
def make_permanent(model: nn.Module, masks: Masks) -> nn.Module:
    """Write exact zeros outside the masks, in place, and take parametrisations of masked weights off.

    Args:
        masks: parameter name -> bool mask of its shape.
    Raises:
        ConfigError: a mask of no parameter. ShapeError: a mask that does not fit.
    """
    unique_weights(model, masks)
    for name, mask in masks.items():
        path, _, attr = name.rpartition(".")
        module = model.get_submodule(path)
        if parametrize.is_parametrized(module, attr):
            uninstall(model, name)
        weight = getattr(module, attr)
        weight.masked_fill_(~mask.to(weight.device), 0)
    return model


def _split(model: nn.Module, masks: Masks) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """(tensors that stay as they are, name -> (weight, mask) of masked ones)."""
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ConfigError("a parametrised model cannot be exported; call finalize() or make_permanent() first")
    unique_weights(model, masks)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    masked = {name: (state.pop(name), mask.to(torch.bool)) for name, mask in masks.items()}
    return state, masked


def export_dense(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """A state dict with exact zeros outside the masks; it shares no memory with the model."""
    state, masked = _split(model, masks)
    zeros = {name: w.masked_fill(~mask.to(w.device), 0) for name, (w, mask) in masked.items()}
    return {name: zeros[name] if name in zeros else state[name].clone() for name in model.state_dict()}


def export_csr(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Masked weights as compressed rows of the matrix (out, everything else).

    Returns:
        for each masked weight NAME: NAME.values (kept,), NAME.columns (kept,) int32, NAME.rows (out + 1,) int32,
        NAME.shape int64; all other tensors under their own names.
    """
    state, masked = _split(model, masks)
    out = {name: value.clone() for name, value in state.items()}
    for name, (weight, mask) in masked.items():
        matrix = mask.reshape(mask.shape[0], -1)
        counts = torch.cat([torch.zeros(1, dtype=torch.long, device=mask.device), matrix.sum(1).cumsum(0)])
        out |= {
            f"{name}.values": weight.reshape(matrix.shape)[matrix.to(weight.device)],
            f"{name}.columns": matrix.nonzero()[:, 1].int(),
            f"{name}.rows": counts.int(),
            f"{name}.shape": torch.tensor(weight.shape),
        }
    return out


def export_bitmap(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Masked weights as their survivors and one bit for every entry; the smallest form from 3 to 95 % zeros.

    Returns:
        for each masked weight NAME: NAME.values (kept,), NAME.bits (..., ceil(last / 8)) uint8 as `kernels.bitmap`
        packs them, NAME.shape int64; all other tensors under their own names.
    """
    state, masked = _split(model, masks)
    out = {name: value.clone() for name, value in state.items()}
    for name, (weight, mask) in masked.items():
        out |= {
            f"{name}.values": weight[mask.to(weight.device)],
            f"{name}.bits": pack(mask),
            f"{name}.shape": torch.tensor(weight.shape),
        }
    return out


@torch.no_grad()
def to_semi_structured(model: nn.Module, masks: Masks) -> dict[str, str]:
    """Masks made permanent, and 2:4 weights of Linear layers as torch's semi-structured tensors, in place.

    The model is then for inference on its CUDA device, in half precision. What cannot be converted stays dense with
    zeros: `export_two_four` and `export_bitmap` store it on any device.

    Args:
        masks: parameter name -> bool mask of its shape.
    Returns:
        name of each weight that stayed dense -> why.
    """
    make_permanent(model, masks)
    refused = {}
    for name, mask in masks.items():
        path, _, attr = name.rpartition(".")
        module = model.get_submodule(path)
        reason = _why_dense(module, getattr(module, attr), mask)
        if reason is None:
            try:
                packed = torch.sparse.to_sparse_semi_structured(getattr(module, attr).detach())
                setattr(module, attr, nn.Parameter(packed, requires_grad=False))
            except (RuntimeError, ValueError) as error:  # sizes that this device's kernels do not take
                reason = str(error).partition("\n")[0]
        if reason is not None:
            refused[name] = reason
    return refused


def _why_dense(module: nn.Module, weight: Tensor, mask: Tensor) -> str | None:
    """What stands in the way of torch's 2:4 kernels, or None."""
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__}: only Linear layers have 2:4 kernels"
    if not weight.is_cuda:
        return f"on {weight.device.type}: 2:4 kernels need a CUDA device"
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"{weight.dtype}: 2:4 kernels take float16 and bfloat16; call model.half() first"
    try:
        NM(2, 4).check(mask)
    except ValueError as error:
        return str(error)
    return None


def export_two_four(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """2:4 masked weights, groups along the inputs (channels last for convolutions).

    Returns:
        for each masked weight NAME: NAME.values (rows, inputs / 2), NAME.places (rows, ceil(inputs / 8)) uint8 with
        two bits for the place of each value inside its group of four, lowest bits first, and NAME.shape int64, where
        a row is one output at one kernel position; all other tensors under their own names.
    Raises:
        MaskError: a mask that is not 2:4 (the weight is named).
    """
    state, masked = _split(model, masks)
    out = {name: value.clone() for name, value in state.items()}
    for name, (weight, mask) in masked.items():
        try:
            NM(2, 4).check(mask)
        except ValueError as error:
            raise MaskError(f"{name} cannot be stored as 2:4: {error}") from error
        rows = weight.movedim(1, -1).reshape(-1, weight.shape[1])
        kept = mask.movedim(1, -1).reshape(rows.shape).to(rows.device)
        places = kept.nonzero()[:, 1].reshape(len(rows), -1) % 4
        spare = torch.nn.functional.pad(places, (0, -places.shape[1] % 4)).reshape(len(rows), -1, 4)
        shifts = torch.tensor([1, 4, 16, 64], device=rows.device)
        out |= {
            f"{name}.values": rows[kept].reshape(len(rows), -1),
            f"{name}.places": (spare * shifts).sum(2).to(torch.uint8),
            f"{name}.shape": torch.tensor(weight.shape),
        }
    return out


def densify(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dense state dict that `export_csr`, `export_bitmap` or `export_two_four` stored.

    Raises:
        CheckpointError: parts that are missing or do not fit (the weight is named).
    """
    names = [key.removesuffix(".values") for key in tensors if key.endswith(".values") and _has_shape(tensors, key)]
    parts = {f"{name}.{part}" for name in names for part in ("values", "columns", "rows", "bits", "places", "shape")}
    out = {name: value.clone() for name, value in tensors.items() if name not in parts}
    for name in names:
        try:
            dense = _from(tensors, name)
        except (KeyError, RuntimeError, IndexError, ValueError) as error:
            raise CheckpointError(f"sparse storage of {name} is damaged: {error}") from error
        out[name] = dense
    return out


def _has_shape(tensors: Mapping[str, Tensor], key: str) -> bool:
    return key.removesuffix("values") + "shape" in tensors


def _from(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if f"{name}.bits" in tensors:
        mask = unpack(tensors[f"{name}.bits"], tensors[f"{name}.shape"].tolist())
        dense = tensors[f"{name}.values"].new_zeros(mask.shape)
        dense[mask] = tensors[f"{name}.values"]
        return dense
    return _from_csr(tensors, name) if f"{name}.rows" in tensors else _from_two_four(tensors, name)


def _from_csr(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    shape = tensors[f"{name}.shape"].tolist()
    counts = tensors[f"{name}.rows"].long().diff()
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    dense = tensors[f"{name}.values"].new_zeros(shape[0], max(1, torch.Size(shape[1:]).numel()))
    dense[row, tensors[f"{name}.columns"].long()] = tensors[f"{name}.values"]
    return dense.reshape(shape)


def _from_two_four(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    shape, values = tensors[f"{name}.shape"].tolist(), tensors[f"{name}.values"]
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=values.device)
    places = ((tensors[f"{name}.places"][:, :, None] >> shifts) & 3).flatten(1)[:, : values.shape[1]]
    groups = torch.arange(values.shape[1], device=values.device) // 2 * 4
    dense = values.new_zeros(len(values), shape[1]).scatter(1, groups + places.long(), values)
    return dense.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()
