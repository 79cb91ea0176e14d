"""A trained ResNet-20, pruned once, with recalibrated batch statistics, compiled."""

import pytest
import torch

import gossamer
from gossamer.data.images import image_files
from gossamer.data.locate import find
from gossamer.errors import DataError, MissingExtra
from gossamer.kernels import native
from gossamer.models.weights import pretrained_resnet
from gossamer.sparsify.averaging import recalibrate_bn

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def trained():
    try:
        model = pretrained_resnet(20)
        images = image_files(find("cifar10-jpeg", "test-10k.zip") / "test-10k.zip", 32).first(20)
    except (DataError, MissingExtra) as error:
        pytest.skip(str(error))
    x, labels = images.in_memory().tensors
    x = (x.float() / 255 if x.dtype == torch.uint8 else x - MEAN.view(3, 1, 1)) / DEVIATION.view(3, 1, 1)
    return model, x, labels


@pytest.fixture
def compiled(trained):
    """The network at 70 % sparsity with recalibrated statistics, its plan, and what both say."""
    model, x, labels = trained
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name != "conv1":
            weight = module.weight.data
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(0.7 * weight.numel())).values] = 0
    recalibrate_bn(model, [x[::2]])
    plan = gossamer.compile(model.eval(), x[:1])
    with torch.no_grad():
        wanted = model(x)
        found = plan(x)
    return plan, found, wanted, labels


def test_same_predictions(compiled):
    _, found, wanted, labels = compiled
    assert torch.equal(found.argmax(1), wanted.argmax(1))
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert float((wanted.argmax(1) == labels).float().mean()) > 0.3  # chance is 0.1


@pytest.mark.slow  # a measured time decides
def test_faster(compiled):
    plan = compiled[0]
    times = plan.report().milliseconds
    assert times["torch eager"] > 1.5 * times["plan"]
    assert times[plan.report().runs] == min(times.values())
