"""Every model of the table: parameter counts, shapes, gradients, options."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gossamer.errors import ConfigError
from gossamer.models import MODELS, build

# Counts of the papers' networks (He et al. and others as published by the reference implementations), and of ours.
COUNTS = {
    "mlp": 75_010,
    "lenet-300-100": 266_610,
    "lenet-5": 61_706,
    "convnet": 24_058,
    "mobilenet-digits": 36_874,
    "vgg-19": 20_035_018,
    "resnet-20": 269_722,
    "resnet-32": 464_154,
    "resnet-44": 658_586,
    "resnet-56": 853_018,
    "resnet-110": 1_727_962,
    "wide-resnet": 36_479_194,
    "resnet-18": 11_689_512,
    "resnet-50": 25_557_032,
    "mobilenet-v1": 4_231_976,
    "mobilenet-v2": 3_504_872,
    "efficientnet-b0": 5_288_548,
    "vit-tiny": 208_074,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "llama": 230_976,
    "unet": 118_305,
}
IMAGENET = ("resnet-18", "resnet-50", "mobilenet-v1", "mobilenet-v2", "efficientnet-b0")
# One input at the smallest sensible size.
SHAPES = dict.fromkeys((*IMAGENET, "vgg-19", "wide-resnet", "vit-s16", "vit-b16"), (3, 32, 32)) | {
    name: (3, 16, 16) for name in MODELS if name.startswith("resnet-") and name not in IMAGENET
}
SMALLER = {"wide-resnet": {"depth": 10, "factor": 1}}


def example(name: str) -> tuple[nn.Module, Tensor, tuple[int, ...]]:
    """The model for 7 classes, a batch of two, and the shape of the result."""
    options = SMALLER.get(name, {})
    if name == "llama":
        return build(name, shape=(9,), classes=7), torch.randint(7, (2, 9)), (2, 9, 7)
    shape = SHAPES.get(name, (1, 16, 16))
    result = (2, 7, *shape[1:]) if name == "unet" else (2, 7)
    return build(name, shape=shape, classes=7, **options), torch.randn(2, *shape), result


def test_every_model_has_its_count() -> None:
    assert COUNTS.keys() == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("vit-b16", "resnet-110")])
def test_shapes_and_gradients(name: str) -> None:
    model, inputs, shape = example(name)
    logits = model(inputs)
    assert logits.shape == shape
    assert logits.isfinite().all()
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", ["mlp", "mobilenet-digits", "resnet-20", "vit-tiny", "llama", "unet"])
def test_a_sample_does_not_see_its_batch_in_evaluation(name: str) -> None:
    model, inputs, _ = example(name)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(inputs)[:1], model(inputs[:1]), atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet-digits", "resnet-20", "vit-tiny", "llama", "unet"])
def test_export_captures_the_whole_model(name: str) -> None:
    model, inputs, _ = example(name)
    model.eval()
    captured = torch.export.export(model, (inputs,)).module()
    assert torch.allclose(captured(inputs), model(inputs), atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet-digits", "resnet-20", "efficientnet-b0", "vit-tiny", "llama"])
def test_symbolic_tracing_works(name: str) -> None:
    model, inputs, _ = example(name)
    model.eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(inputs), model(inputs))


def test_full_size_shape_without_computing() -> None:
    with torch.device("meta"):
        model = build("resnet-50")
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


def pointwise(width: float) -> int:
    model = build("mobilenet-digits", width=width)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    return sum(conv.weight.numel() for conv in convs)


def test_digits_mobilenet_has_the_pointwise_weights_of_the_specification() -> None:
    assert [pointwise(width) for width in (1.0, 0.5)] == [31_232, 7_936]
    assert round(0.2 * pointwise(2.25)) == pytest.approx(31_338, abs=8)  # sparse and wide, 80 %: kept per layer


@pytest.mark.parametrize(
    ("name", "width", "count"), [("mobilenet-v1", 0.5, 1_331_592), ("mobilenet-v2", 0.5, 1_968_680)]
)
def test_width_multipliers_give_the_published_sizes(name: str, width: float, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, width=width).parameters()) == count


def test_width_sweep_of_the_mlp() -> None:
    model = build("mlp", hidden=(32, 32))
    assert [m.weight.shape for m in model.modules() if isinstance(m, nn.Linear)] == [(32, 144), (32, 32), (10, 32)]
    assert model.fc1.bias is None
    assert build("mlp", norm=False).fc1.bias is not None


def test_option_b_projects() -> None:
    plain, projecting = build("resnet-20"), build("resnet-20", option="B")
    extra = sum(p.numel() for p in projecting.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert projecting(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def make_linear(outputs: int = 3) -> nn.Module:
    return nn.Linear(2, outputs)


def test_import_path() -> None:
    assert isinstance(build("torch.nn:Linear", in_features=2, out_features=5), nn.Linear)
    assert build("torch.nn:Identity", anything=3) is not None  # takes any keyword


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {}, "did you mean 'resnet-20'"),
        ("mlp", {"hiden": (3,)}, "did you mean 'hidden'"),
        ("no.such.module:thing", {}, "cannot import model 'no.such.module:thing'"),
        ("torch.nn:NoSuchThing", {}, "NoSuchThing"),
        (":x", {}, "cannot import model ':x'"),
        ("math:pi", {}, "is a float, not a callable"),
        ("builtins:dict", {}, "returned a dict, not a torch.nn.Module"),
        ("torch.nn:Linear", {"in_features": 2}, "'torch.nn:Linear': missing a required argument: 'out_features'"),
        ("resnet-20", {"option": "C"}, "option='C'"),
        ("wide-resnet", {"depth": 20}, r"6n \+ 4"),
        ("vit-tiny", {"shape": (1, 12, 12), "patch": 5}, "patch=5 does not divide"),
        ("vit-tiny", {"heads": 3}, "do not divide"),
        ("llama", {"heads": 4, "kv_heads": 3}, "do not divide"),
        ("llama", {"heads": 5}, "do not divide"),
        ("mobilenet-digits", {"width": 0.001}, "without channels"),
        ("mlp", {"hidden": (0,)}, "must be >= 1"),
        ("lenet-5", {"shape": (1, 8, 8)}, "at least 12x12"),
        ("unet", {"channels": (4,)}, "at least two levels"),
    ],
)
def test_bad_requests_are_explained(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
