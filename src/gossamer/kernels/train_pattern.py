"""The packed pattern of a sparse weight in training, and moving numbers in and out of it.

A pattern lists the non-zeros of a mask twice, by output for the forward pass and by input for the backward pass, in one
int32 buffer (csrc/train/layout.hpp). The values of a layer are a flat float32 vector in the pattern's own order.

    >>> mask = torch.tensor([[True, False, True], [False, True, False]])
    >>> pattern = pack_pattern(mask)
    >>> values = gather(pattern, torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    >>> sorted(values.tolist())
    [1.0, 3.0, 5.0]
    >>> scatter_(pattern, values, torch.zeros(2, 3))
    tensor([[1., 0., 3.],
            [0., 5., 0.]])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gossamer.errors import MaskError, ShapeError
from gossamer.kernels import native

MAGIC, VERSION, HEADER = 0x4753504C, 1, 16
_GRAIN = 64
_MOST_PANEL = 256  # kMostPanel in layout.hpp
_PER_ROW = 10  # non-zeros that a row should have in a panel, so that visiting it pays


class Geometry(NamedTuple):
    """Rows of a block and columns of a panel, of the two halves; multiples of 64."""

    forward_block: int
    forward_panel: int
    backward_block: int
    backward_panel: int


@dataclass(frozen=True)
class Pattern:
    """Where a weight (outputs, inputs) is not zero.

    Args:
        words: (n,) int32 on the CPU.
        outputs, inputs: shape of the weight.
        nonzeros: length of its values.
        geometry: how the words are arranged.
    """

    words: Tensor
    outputs: int
    inputs: int
    nonzeros: int
    geometry: Geometry


def geometry_of(outputs: int, inputs: int, density: float) -> Geometry:
    """Blocks and panels for a weight of this shape and density: sparser rows get wider panels, up to the cache."""
    panel = min(max(_GRAIN, _up(int(_PER_ROW / max(density, 1e-6)))), _MOST_PANEL)
    return Geometry(_block(outputs), panel, _block(inputs), panel)


def _up(count: int) -> int:
    return -(-count // _GRAIN) * _GRAIN


def _block(rows: int) -> int:
    """Blocks are what threads share out: four or more of them, large enough to use a panel often."""
    return min(max(_up(-(-rows // 4)), 128), 512)


def pack_pattern(mask: Tensor, geometry: Geometry | None = None) -> Pattern:
    """The pattern of a mask.

    Args:
        mask: (outputs, inputs) bool on the CPU, at least 1 x 1 and below 2^31 non-zeros.
        geometry: that of an earlier pattern, so that `transfer` can move values from it; default: by density.
    Raises:
        MaskError: not bool, or not on the CPU.
        ShapeError: not a matrix, or empty.
    """
    if mask.dtype is not torch.bool or not mask.is_cpu:
        raise MaskError(f"a pattern needs a bool mask on the CPU, got {mask.dtype} on {mask.device}")
    if mask.dim() != 2 or mask.numel() == 0:
        raise ShapeError(f"a pattern needs a mask (outputs, inputs), got shape {tuple(mask.shape)}")
    mask = mask.contiguous()
    nonzeros = int(mask.count_nonzero())
    if nonzeros >= 2**31:
        raise MaskError(f"a pattern holds fewer than 2^31 non-zeros, this mask has {nonzeros}")
    outputs, inputs = mask.shape
    geometry = geometry or geometry_of(outputs, inputs, nonzeros / mask.numel())
    extension = native.extension()
    if extension is None:
        words = pack_reference(mask, geometry)
    else:
        size = extension.train_pattern_words(outputs, inputs, nonzeros, *geometry)
        words = torch.empty(size, dtype=torch.int32)
        extension.train_pack(words.data_ptr(), mask.data_ptr(), outputs, inputs, nonzeros, *geometry, native.threads())
    return Pattern(words, outputs, inputs, nonzeros, geometry)


def pack_reference(mask: Tensor, geometry: Geometry) -> Tensor:
    """The words of `pack_pattern` in plain torch, equal bit for bit."""
    (outputs, inputs), nonzeros = mask.shape, int(mask.count_nonzero())
    o, i = mask.nonzero(as_tuple=True)
    forward, to_forward = _half(o, i, outputs, inputs, geometry.forward_block, geometry.forward_panel)
    backward, to_backward = _half(i, o, inputs, outputs, geometry.backward_block, geometry.backward_panel)
    place = torch.empty_like(to_backward)
    place[to_backward] = torch.arange(nonzeros)
    header = torch.zeros(HEADER, dtype=torch.int32)
    header[:9] = torch.tensor([MAGIC, VERSION, outputs, inputs, nonzeros, *geometry])
    return torch.cat([header, forward, place[to_forward].to(torch.int32), backward])


def _half(rows: Tensor, columns: Tensor, height: int, width: int, block: int, panel: int) -> tuple[Tensor, Tensor]:
    """One half as int32 words, and the order in which it lists the non-zeros."""
    panels, blocks = -(-width // panel), -(-height // block)
    first = rows // block * block
    tall = (height - first).clamp(max=block)
    cell = first * panels + columns // panel * tall + rows - first  # place in `counts`
    order = (cell * width + columns).argsort()
    counts = torch.bincount(cell, minlength=height * panels)
    starts = torch.zeros(blocks + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(rows // block, minlength=blocks).cumsum(0)
    parts = [starts.to(torch.int32), _halves(counts), _halves((columns % panel)[order])]
    return torch.cat(parts), order


def _halves(numbers: Tensor) -> Tensor:
    """Numbers below 2^16 as uint16, two in an int32 word."""
    padded = torch.nn.functional.pad(numbers, (0, numbers.numel() % 2)).view(-1, 2)
    word = padded[:, 0] + (padded[:, 1] << 16)
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def positions(pattern: Pattern) -> tuple[Tensor, Tensor]:
    """(output, input) of every value, as two int64 vectors."""
    _, _, block, panel = pattern.geometry
    height, width = pattern.inputs, pattern.outputs
    panels = -(-width // panel)
    tail = pattern.words[-_words(pattern.nonzeros) :] if pattern.nonzeros else pattern.words[:0]
    before = pattern.words[: pattern.words.numel() - tail.numel()]
    counts = _unhalve(before[-_words(height * panels) :], height * panels)
    cell = torch.arange(height * panels).repeat_interleave(counts)
    first = cell // (block * panels) * block
    tall = (height - first).clamp(max=block)
    inside = cell - first * panels
    outputs = inside // tall * panel + _unhalve(tail, pattern.nonzeros)
    return outputs, first + inside % tall


def _words(halves: int) -> int:
    return (halves + 1) // 2


def _unhalve(words: Tensor, count: int) -> Tensor:
    wide = words.to(torch.int64)
    return torch.stack([wide & 0xFFFF, (wide >> 16) & 0xFFFF], 1).flatten()[:count]


def gather(pattern: Pattern, dense: Tensor) -> Tensor:
    """The entries of `dense` (outputs, inputs) at the pattern, as its values."""
    _check_dense(pattern, dense)
    extension = _native_for(dense)
    if extension is None:
        return dense[positions(pattern)].clone()
    dense = dense.contiguous()
    values = torch.empty(pattern.nonzeros)
    extension.train_gather(*_buffer(pattern), dense.data_ptr(), values.data_ptr(), native.threads())
    return values


def scatter_(pattern: Pattern, values: Tensor, dense: Tensor) -> Tensor:
    """Write the values into `dense` (outputs, inputs) at the pattern; the rest of it stays. Returns `dense`."""
    _check_dense(pattern, dense)
    _check_values(pattern, values)
    extension = _native_for(dense)
    if extension is None or not dense.is_contiguous() or values.dtype is not torch.float32:
        dense.detach()[positions(pattern)] = values.detach().to(dense.dtype)
        return dense
    values = values.contiguous()
    extension.train_scatter(*_buffer(pattern), values.data_ptr(), dense.data_ptr(), native.threads())
    torch.autograd.graph.increment_version(dense)
    return dense


def transfer(last: Pattern, values: Tensor, new: Pattern) -> Tensor:
    """Values of pattern `new`: those of `last` where both have the entry, else 0.

    Args:
        values: (last.nonzeros,), any dtype; float32 on the CPU is merged row by row without a dense copy.
    """
    _check_values(last, values)
    extension = _native_for(values)
    if extension is None or last.geometry != new.geometry:
        dense = scatter_(last, values, values.new_zeros(new.outputs, new.inputs))
        return gather(new, dense)
    values = values.contiguous()
    moved = torch.empty(new.nonzeros)
    extension.train_transfer(*_buffer(last), values.data_ptr(), *_buffer(new), moved.data_ptr(), native.threads())
    return moved


def _native_for(tensor: Tensor) -> Any:
    return native.extension() if tensor.dtype is torch.float32 and tensor.is_cpu else None


def _buffer(pattern: Pattern) -> tuple[int, int]:
    return pattern.words.data_ptr(), pattern.words.numel()


def _check_dense(pattern: Pattern, dense: Tensor) -> None:
    if tuple(dense.shape) != (pattern.outputs, pattern.inputs):
        raise ShapeError(
            f"the pattern is of a weight ({pattern.outputs}, {pattern.inputs}), but the tensor is {tuple(dense.shape)}"
        )


def _check_values(pattern: Pattern, values: Tensor) -> None:
    if tuple(values.shape) != (pattern.nonzeros,):
        raise ShapeError(f"the pattern has {pattern.nonzeros} values, but the tensor is {tuple(values.shape)}")
