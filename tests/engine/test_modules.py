"""mode="modules": the same model with packed layers inside."""

import pytest
import torch
from torch import nn

import gossamer
from gossamer.engine.modules import PackedConv1x1, PackedLinear
from gossamer.errors import ConfigError
from gossamer.kernels import native
from gossamer.kernels.pack import pack_bitmap, pack_block, pack_csr16, pack_csr_panel
from gossamer.models.zoo import build

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.fixture
def wide(pruned):
    torch.manual_seed(0)
    return pruned(nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)), 0.95)


def same(found, wanted) -> bool:
    return torch.allclose(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 32])
def test_wide_layers_are_swapped_and_compute_the_same(wide, batch):
    x = torch.randn(batch, 256)
    with torch.no_grad():
        wanted = wide(x)
        assert gossamer.compile(wide, x, mode="modules") is wide
        assert any(isinstance(module, PackedLinear) for module in wide)
        assert same(wide(x), wanted)
    assert [entry.layer for entry in wide.gossamer_report.layers] == ["0", "2"]
    assert not any(module.training for module in wide.modules())  # so that it can be compiled or exported again


def test_a_vision_transformer(pruned):
    torch.manual_seed(0)
    model = pruned(build("vit-tiny", shape=(3, 32, 32), width=192), 0.95)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = model(x)
        gossamer.compile(model, x, mode="modules")
        assert same(model(x), wanted)
    assert any(entry.runs != "torch" for entry in model.gossamer_report.layers)


def test_dense_layers_stay(pruned):
    model = pruned(build("vit-tiny", shape=(1, 8, 8)), 0.0)
    before = {name: type(module) for name, module in model.named_modules()}
    gossamer.compile(model, torch.randn(1, 1, 8, 8), mode="modules")
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert all(entry.why for entry in model.gossamer_report.layers)


def test_keyword_arguments_as_example(wide):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = wide

        def forward(self, *, features):
            return self.inner(features)

    model = Named().eval()
    gossamer.compile(model, {"features": torch.randn(16, 256)}, mode="modules")
    assert len(model.gossamer_report.layers) == 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_whole_numbers_as_example(wide, wrapped):
    """Token numbers: the usual input of a language model."""
    model = nn.Sequential(nn.Embedding(50, 256), wide).eval()
    ids = torch.randint(0, 50, (4, 8))
    with torch.no_grad():
        wanted = model(ids)
        gossamer.compile(model, (ids,) if wrapped else ids, mode="modules")
        assert same(model(ids), wanted)
    assert any(entry.runs != "torch" for entry in model.gossamer_report.layers)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_other_floats_are_refused(wide, dtype):
    with pytest.raises(ConfigError, match="float32"):
        gossamer.compile(wide, torch.zeros(1, 256, dtype=dtype), mode="modules")


@pytest.mark.parametrize("pack", [pack_bitmap, pack_csr16, pack_block, pack_csr_panel])
def test_packed_linear_in_every_format(pack):
    torch.manual_seed(0)
    layer = nn.Linear(70, 33)
    layer.weight.data[torch.rand(33, 70) < 0.7] = 0
    x = torch.randn(3, 5, 70)
    assert same(PackedLinear(pack(layer.weight), layer.bias)(x), layer(x).detach())


def test_packed_convolution_and_its_state():
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 1)
    layer.weight.data[torch.rand(24, 16, 1, 1) < 0.7] = 0
    packed = PackedConv1x1(pack_block(layer.weight, 4), layer.bias)
    x = torch.randn(2, 16, 5, 7)
    assert same(packed(x), layer(x).detach())
    again = PackedConv1x1(pack_block(layer.weight * 0.5, 4), None if layer.bias is None else layer.bias * 0)
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again(x), packed(x))


@pytest.mark.slow
def test_torch_compile_keeps_the_layers_in_one_graph(wide):
    x = torch.randn(32, 256)
    gossamer.compile(wide, x, mode="modules")
    with torch.no_grad():
        assert same(torch.compile(wide, fullgraph=True, backend="aot_eager")(x), wide(x))


def test_threads_are_refused(wide):
    with pytest.raises(ConfigError, match=r"torch\.set_num_threads"):
        gossamer.compile(wide, torch.randn(1, 256), mode="modules", threads=2)


def test_a_model_that_is_one_layer_is_refused(pruned):
    layer = pruned(nn.Linear(1024, 1024), 0.95)
    with pytest.raises(ConfigError, match=r"compile torch\.nn\.Sequential\(model\)"):
        gossamer.compile(layer, torch.randn(1, 1024), mode="modules")


def test_an_example_that_does_not_fit_is_named(wide):
    with pytest.raises(ConfigError, match=r"shape \(1, 100\)\): in its layer '0'"):
        gossamer.compile(wide, torch.randn(1, 100), mode="modules")
    with pytest.raises(ConfigError, match=r"features: shape \(1, 256\)\): in its own code, TypeError"):
        gossamer.compile(wide, {"features": torch.randn(1, 256)}, mode="modules")
