"""gossamer.compile: the same outputs, the same bits, and refusals that say why."""

import threading
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import gossamer
from gossamer.engine import tune
from gossamer.errors import ConfigError, ShapeError
from gossamer.kernels import native
from gossamer.models.zoo import build

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


def relative(found, wanted) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))


def compiled(model, *shape, batch=1, **options):
    return gossamer.compile(model, torch.randn(batch, *shape), **options)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_digits_network_computes_what_torch_computes(digits, batch):
    plan = compiled(digits, 1, 16, 16)
    x = torch.randn(batch, 1, 16, 16)
    with torch.no_grad():
        assert relative(plan(x), digits(x)) < 1e-4
    times = plan.report().milliseconds
    assert times["torch eager"] > 1.5 * times["plan"]
    assert plan.report().speedup >= 1


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mobilenet-v1", (3, 32, 32)),
        ("resnet-20", (3, 32, 32)),
        ("lenet-5", (1, 28, 28)),
        ("mlp", (1, 8, 8)),
        ("vit-tiny", (3, 32, 32)),
        pytest.param("mobilenet-v2", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("resnet-18", (3, 32, 32), marks=pytest.mark.slow),
        pytest.param("efficientnet-b0", (3, 32, 32), marks=pytest.mark.slow),
    ],
)
def test_whole_networks(pruned, name, shape):
    torch.manual_seed(1)
    model = pruned(build(name, shape=shape))
    plan = compiled(model, *shape)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            wanted = model(x)
            assert relative(plan._fast(x, 1), wanted) < 1e-4  # also where torch is faster
            assert relative(plan(x), wanted) < 1e-4


@pytest.fixture(scope="module")
def plan(digits):
    return compiled(digits, 1, 16, 16)


def test_one_and_two_threads_give_the_same_bits(plan):
    x = torch.randn(5, 1, 16, 16)
    assert torch.equal(plan._fast(x, 1), plan._fast(x, 2))


def test_several_plans_in_several_threads(pruned, digits):
    plans = [compiled(digits, 1, 16, 16), compiled(pruned(build("mobilenet-digits"), 0.5), 1, 16, 16)]
    xs = [torch.randn(3, 1, 16, 16) for _ in range(4)]
    wanted = [[plan(x) for x in xs] for plan in plans]
    wrong = []

    def work(which: int) -> None:
        for _ in range(20):
            wrong.extend(i for i, x in enumerate(xs) if not torch.equal(plans[which](x), wanted[which][i]))

    workers = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_numpy_in_numpy_out(plan):
    x = torch.randn(2, 1, 16, 16)
    found = plan(x.numpy())
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, plan(x).numpy())


def test_inputs_in_any_memory_order(plan):
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(plan(x.transpose(2, 3).contiguous().transpose(2, 3)), plan(x))


def test_an_empty_batch_gives_an_empty_output(plan):
    assert plan(torch.empty(0, 1, 16, 16)).shape == (0, 10)


def test_later_changes_of_the_model_do_not_reach_the_plan(pruned, digits):
    model = pruned(build("mobilenet-digits"))
    plan = compiled(model, 1, 16, 16)
    x = torch.randn(1, 1, 16, 16)
    before = plan(x)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(plan(x), before)


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x - 1


def test_control_flow_that_depends_on_data_runs_through_torch():
    plan = compiled(Branches().eval(), 4)
    report = plan.report()
    assert report.runs == "torch eager"
    assert "trace" in report.breaks[0]
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        assert torch.equal(plan(x), Branches()(x))


class Odd(nn.Module):
    """An operator without kernel between two with one, and in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = torch.relu_(self.a(x))
        z = torch.cumsum(y, 1)
        z.mul_(0.5)
        return torch.softmax(self.b(z) + y, 1).flatten(1)


def test_an_unsupported_operator_runs_through_torch_and_is_reported(pruned):
    model = pruned(Odd(), 0.5)
    plan = compiled(model, 3, 12, 12)
    assert any("cumsum" in reason for reason in plan.report().breaks)
    for batch in (1, 4):
        x = torch.randn(batch, 3, 12, 12)
        with torch.no_grad():
            assert relative(plan._fast(x, 1), model(x)) < 1e-4
    with pytest.raises(ConfigError, match=r"cannot be saved.*cumsum"):
        plan.save("never")


def test_a_grouped_and_a_dilated_convolution_and_pools(pruned):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 8, (1, 3), padding="same"), nn.GELU(), nn.Flatten(),
        nn.Linear(8 * 3 * 4, 5),
    )  # fmt: skip
    model = pruned(model, 0.3)
    plan = compiled(model, 4, 12, 16, batch=2)
    assert not plan.report().breaks
    x = torch.randn(3, 4, 12, 16)
    with torch.no_grad():
        assert relative(plan._fast(x, 1), model(x)) < 1e-4


def test_a_training_model_is_refused(digits):
    with pytest.raises(ConfigError, match=r"training mode; call model.eval"):
        compiled(build("mobilenet-digits"), 1, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.float16])
def test_other_dtypes_are_refused(digits, plan, dtype):
    with pytest.raises(ConfigError, match="float32"):
        gossamer.compile(digits, torch.zeros(1, 1, 16, 16, dtype=dtype))
    with pytest.raises(ConfigError, match="float32"):
        plan(torch.zeros(1, 1, 16, 16, dtype=dtype))


def test_a_double_model_is_refused():
    with pytest.raises(ConfigError, match=r"fc1.weight is torch.float64"):
        compiled(build("mlp", shape=(1, 8, 8)).double().eval(), 1, 8, 8)


def test_other_shapes_are_refused(plan):
    for shape in ((1, 1, 15, 16), (1, 16, 16), (1, 3, 16, 16)):
        with pytest.raises(ShapeError, match=r"compiled for \(batch, 1, 16, 16\)"):
            plan(torch.zeros(shape))


def test_zero_threads_are_refused(digits):
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        compiled(digits, 1, 16, 16, threads=0)


def test_an_unknown_mode_is_refused(digits):
    with pytest.raises(ConfigError, match="did you mean 'plan'"):
        compiled(digits, 1, 16, 16, mode="plans")


def test_measurements_are_cached(digits, monkeypatch):
    compiled(digits, 1, 16, 16)
    monkeypatch.setattr(tune._Cache, "put", None)  # a second measurement would fail
    compiled(digits, 1, 16, 16)


def test_the_report_names_every_layer(plan):
    report = plan.report()
    text = str(report)
    for name in ("stem.conv", "blocks.0.depthwise.conv", "blocks.4.pointwise.conv", "head.fc", "torch eager"):
        assert name in text
    layers = {layer.layer: layer for layer in report.layers}
    assert layers["stem.conv"].why == "it has no zeros"
    assert layers["blocks.4.pointwise.conv"].density == pytest.approx(0.1, abs=0.01)
    assert all(layer.measured_us is not None for layer in report.layers)


def test_without_kernels_everything_runs_through_torch(digits):
    with native.using("none"):
        plan = compiled(digits, 1, 16, 16)
        x = torch.randn(2, 1, 16, 16)
        with torch.no_grad():
            assert torch.equal(plan(x), digits(x))
        assert "switched off" in plan.report().breaks[0]
        with pytest.raises(ConfigError, match="cannot be saved"):
            plan.save("never")


class InPlace(nn.Module):
    """In-place operations on what others still read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.first(x)
        self.act(y)
        z = self.second(y)
        y.mul_(2)
        return (z + y).mean((2, 3))


def test_in_place_operations(pruned):
    model = pruned(InPlace(), 0.3)
    plan = compiled(model, 3, 8, 8)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert relative(plan._fast(x.clone(), 1), model(x)) < 1e-4


def test_a_wrong_plan_never_runs(digits, monkeypatch):
    from gossamer.engine import compiler

    monkeypatch.setattr(compiler, "_problem", lambda wanted, found, most: "it is wrong")
    plan = compiled(digits, 1, 16, 16)
    assert plan.report().runs == "torch eager"
    assert "it is wrong" in plan.report().breaks[-1]


def test_a_fixed_batch_size_is_kept_and_named():
    """Code that fixes the batch size in a reshape."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).reshape(2, 4, 36).relu()

    model = Fixed().eval()
    plan = compiled(model, 3, 8, 8, batch=2)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert relative(plan(x), model(x)) < 1e-4
    with pytest.raises(ConfigError, match="fixes the batch size to 2"):
        plan(torch.randn(3, 3, 8, 8))


@pytest.mark.skipif(any(find_spec(p) is None for p in ("onnx", "onnxruntime")), reason="needs the extra export")
def test_onnx_runtime_is_a_rival_and_may_win(digits, monkeypatch):
    def race(runners, threads, least=5):
        return {name: 0.5 if name == "onnxruntime" else 1.0 for name in runners}

    monkeypatch.setattr(tune, "race", race)
    plan = compiled(digits, 1, 16, 16)
    assert plan.report().runs == "onnxruntime"
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        assert relative(plan(x), digits(x)) < 1e-4


@pytest.mark.parametrize("batch", [1, 5])
def test_a_normalisation_of_vectors_that_follows_no_product(batch):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in "ab")
            self.norm = nn.BatchNorm1d(12)

        def forward(self, x):
            return torch.relu(self.norm(torch.cat([part(x) for part in self.parts], 1)))

    model = Joined()
    model(torch.randn(50, 6))
    plan = compiled(model.eval(), 6, batch=batch)
    x = torch.randn(batch, 6)
    with torch.no_grad():
        assert relative(plan(x), model(x)) < 1e-5
    assert not any("please report" in line for line in plan.report().breaks)


class Squeezed(nn.Module):
    """Channels scaled by a gate that reads them all, as in EfficientNet and MobileNetV3."""

    def __init__(self, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.expand, self.deep = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.reduce, self.widen, self.project = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1), nn.Conv2d(24, 6, 1)
        self.act, self.gate = act, gate

    def forward(self, x):
        y = self.act(self.deep(self.act(self.expand(x))))
        y = y * self.gate(self.widen(self.act(self.reduce(nn.functional.adaptive_avg_pool2d(y, 1)))))
        return (self.project(y) + x).mean((2, 3))


@pytest.mark.parametrize(
    ("act", "gate"),
    [(nn.SiLU(), nn.Sigmoid()), (nn.SiLU(inplace=True), nn.Sigmoid()), (nn.Hardswish(), nn.Hardsigmoid())],
)
def test_squeeze_and_excitation_runs_natively(pruned, act, gate):
    torch.manual_seed(0)
    model = pruned(Squeezed(act, gate), 0.5)
    plan = compiled(model, 6, 9, 9)
    assert not plan.report().breaks
    assert "onnxruntime" in plan.report().milliseconds or not find_spec("onnxruntime")
    for batch in (1, 3):
        x = 3 * torch.randn(batch, 6, 9, 9)
        with torch.no_grad():
            assert relative(plan._fast(x, 1), model(x)) < 1e-5


def test_an_example_that_the_model_cannot_take_is_refused_with_the_layer(digits):
    with pytest.raises(
        ConfigError, match=r"shape \(1, 3, 16, 16\)\): in its layer 'stem.conv', .*1 channels, but got 3"
    ):
        compiled(digits, 3, 16, 16)


class Named(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 4), kind

    def forward(self, x):
        return self.kind(self.layer(x))


@pytest.mark.parametrize("kind", [lambda y: {"out": y}, lambda y: (y, y), lambda y: None])
def test_outputs_other_than_one_tensor_are_refused(kind):
    with pytest.raises(ConfigError, match=r"one output tensor.*Named returns a (dict|tuple|NoneType).*mode='modules'"):
        compiled(Named(kind).eval(), 4)


def test_what_is_no_model_is_named(digits):
    with pytest.raises(ConfigError, match=r"torch\.nn\.Module, got str"):
        compiled("model.safetensors", 4)
    with pytest.raises(ConfigError, match=r"token numbers.*mode='modules'"):
        gossamer.compile(digits, torch.zeros(1, 8, dtype=torch.int64))


def test_a_scripted_model_runs_through_torch():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripting deprecated
        scripted = torch.jit.script(model)
    plan = compiled(scripted, 4)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.allclose(plan(x), model(x), atol=1e-6)


def test_what_torch_prints_while_tracing_stays_away(capfd):
    compiled(Branches().eval(), 4)
    assert capfd.readouterr() == ("", "")
