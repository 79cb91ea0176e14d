"""What a file of weights holds, tensor by tensor: counts, and the pattern of the zeros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gossamer.errors import GossamerError
from gossamer.sparsify.accounting import FORMATS, memory
from gossamer.sparsify.patterns import NM, Block, Cols, Pattern, Rows

# The first that fits is named, so the narrow ones come first.
PATTERNS: dict[str, Pattern] = {
    **{f"{n}:{m}": NM(n, m) for n, m in ((1, 2), (1, 4), (2, 4), (1, 8), (2, 8), (4, 8), (1, 16), (2, 16))},
    "rows": Rows(),
    "cols": Cols(),
    **{f"block {r}x{c}": Block(r, c) for r, c in ((32, 32), (16, 16), (8, 8), (4, 4), (16, 1), (8, 1), (4, 1), (1, 4))},
}


@dataclass(frozen=True)
class TensorRow:
    """One tensor. `pattern` is None for tensors of one dimension and for integers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    nonzero: int
    pattern: str | None

    @property
    def density(self) -> float:
        """Fraction of non-zeros; 1 for an empty tensor."""
        return self.nonzero / self.numel if self.numel else 1.0


def pattern_of(tensor: Tensor) -> str:
    """The narrowest of PATTERNS that the zeros of a tensor follow exactly; "dense", "all zero" or "unstructured".

    >>> import torch
    >>> pattern_of(torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 1.0]]))
    '1:2'
    """
    mask = tensor != 0
    if bool(mask.all()):
        return "dense"
    if not bool(mask.any()):
        return "all zero"
    for name, pattern in PATTERNS.items():
        try:
            pattern.check(mask)
        except GossamerError:
            continue
        return name
    return "unstructured"


def rows(tensors: Mapping[str, Tensor]) -> list[TensorRow]:
    """One row per tensor, in the order of the file."""
    return [
        TensorRow(
            name,
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            value.numel(),
            int(value.count_nonzero()),
            pattern_of(value) if value.ndim >= 2 and value.is_floating_point() else None,
        )
        for name, value in tensors.items()
    ]


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of all tensors in each storage format."""
    bag = nn.Module()
    for name, value in tensors.items():
        key = name.replace(".", "/")
        if value.is_floating_point():
            bag.register_parameter(key, nn.Parameter(value, requires_grad=False))
        else:
            bag.register_buffer(key, value)
    return {name: memory(bag, None, name).total for name in FORMATS}
