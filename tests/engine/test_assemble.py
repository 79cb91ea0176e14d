"""Joined steps and depthwise kernels against torch, over odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.engine import assemble as module
from gossamer.engine.assemble import Choice, assemble, join_pairs
from gossamer.engine.capture import capture
from gossamer.engine.executor import Executor
from gossamer.engine.fuse import fuse
from gossamer.engine.packing import BF16, FORMATS, Packer
from gossamer.kernels import native

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, residual: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if residual else None

    def forward(self, x):
        y = torch.relu(self.depthwise(x))
        return torch.relu(self.pointwise(y) + self.shortcut(x)) if self.shortcut else self.pointwise(y)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from([3, 5]), stride=st.sampled_from([1, 2]), height=st.integers(5, 40), width=st.integers(5, 70),
    inputs=st.integers(2, 20), outputs=st.integers(1, 20), residual=st.booleans(), kind=st.sampled_from([*FORMATS]),
)  # fmt: skip
def test_joined_and_separate_steps(kernel, stride, height, width, inputs, outputs, residual, kind):
    torch.manual_seed(0)
    model = Separable(inputs, outputs, kernel, stride, residual).eval()
    model.pointwise.weight.data[torch.rand_like(model.pointwise.weight) < 0.6] = 0
    x = torch.randn(3, inputs, height, width)
    with torch.no_grad():
        graph = capture(model, x)
        fuse(graph)
        choices = {id(node): Choice(kind) for node in graph.nodes}
        before, module._LEAST_JOINED = module._LEAST_JOINED, 0
        try:
            assert len(join_pairs(graph, choices)) == 1
            joined = Executor(graph, assemble(graph, choices, Packer(), join=True))
        finally:
            module._LEAST_JOINED = before
        separate = Executor(graph, assemble(graph, choices, Packer()))
        wanted = model(x)
        for executor in (joined, separate):
            near = 3e-2 * float(wanted.abs().max()) if kind in BF16 else 1e-4
            assert torch.allclose(executor(x, 1), wanted, atol=near)
            assert torch.equal(executor(x, 1), executor(x, 2))
    assert len(joined.assembly.tables.steps) == len(separate.assembly.tables.steps) - 1
