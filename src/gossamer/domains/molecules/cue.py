"""Products of a frozen network by cuEquivariance, which has CUDA kernels for them.

Its plain method was compared with ours on a CPU; its CUDA kernels have not been run by us.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from gossamer.errors import ConfigError, MissingExtra

from .irreps import block, three_j
from .network import SPHNet
from .product import PathProduct, SparseTensorProduct


def on_cuequivariance(model: SPHNet, method: str | None = None) -> SPHNet:
    """A copy of a frozen network whose products cuEquivariance computes.

    Args:
        model: after `freeze`, on the device that it is to run on.
        method: of `cuequivariance_torch.SegmentedPolynomial`; None takes "uniform_1d" on CUDA and "naive" elsewhere.
    Raises:
        MissingExtra: cuequivariance-torch is not installed. ConfigError: the network is not frozen.
    """
    fast, channels = copy.deepcopy(model), model.shape.channels
    for name, module in list(fast.named_modules()):
        if isinstance(module, SparseTensorProduct):
            raise ConfigError(f"{name} still chooses its paths; call freeze() first")
        if isinstance(module, PathProduct):
            parent, _, child = name.rpartition(".")
            shared = parent.endswith("convolution")  # directions have one channel
            setattr(fast.get_submodule(parent), child, CueProduct(module, channels, shared, method))
    return fast


class CueProduct(nn.Module):
    """A `PathProduct` as one segmented polynomial.

    Args:
        plain: the product to stand in for. channels: of the first operand and the result.
        shared: the second operand has one channel for all. method: as in `on_cuequivariance`.
    Raises:
        MissingExtra: cuequivariance-torch is not installed.
    """

    coefficients: Tensor

    def __init__(self, plain: PathProduct, channels: int, shared: bool = False, method: str | None = None) -> None:
        super().__init__()
        self.paths, self.channels = plain.paths, channels
        self.register_buffer("coefficients", plain.coefficients.detach().clone())
        self.kernel = _kernel(plain, channels, shared, method)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """As `PathProduct`."""
        scaled = (weights * self.coefficients[:, None]).expand(len(x), -1, -1)
        # components first, channels last: what its kernels read in one go
        operands = [scaled.flatten(1), x.transpose(1, 2).flatten(1), y.transpose(1, 2).flatten(1)]
        (found,) = self.kernel([operand.contiguous() for operand in operands])
        out: Tensor = found.unflatten(1, (-1, self.channels)).transpose(1, 2)
        return out


def _kernel(plain: PathProduct, channels: int, shared: bool, method: str | None) -> Any:
    try:
        import cuequivariance as cue
        import cuequivariance_torch as cuet
    except ImportError as error:
        raise MissingExtra("cuequivariance_torch", "molecules-cuda") from error
    table = cue.SegmentedTensorProduct.from_subscripts("u,u,,u" if shared else "u,u,u,u")
    widths = (len(plain.paths), plain.gather.shape[1], plain.second, plain.gather.shape[1])
    for operand, count in enumerate(widths):
        for _ in range(count):
            table.add_segment(operand, () if shared and operand == 2 else (channels,))
    for number, path in enumerate(plain.paths):
        starts = [block(degree).start for degree in path]
        symbol = three_j(*path)
        for place in symbol.nonzero().tolist():
            segments = [start + m for start, m in zip(starts, place, strict=True)]
            table.add_path(number, *segments, c=float(symbol[tuple(place)]))
    device, dtype = plain.coefficients.device, plain.coefficients.dtype
    polynomial = cue.SegmentedPolynomial.eval_last_operand(table)
    chosen = method or ("uniform_1d" if device.type == "cuda" else "naive")
    kernel: nn.Module = cuet.SegmentedPolynomial(polynomial, method=chosen, math_dtype=dtype)
    return kernel.to(device)
