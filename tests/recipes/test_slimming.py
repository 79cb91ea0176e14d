"""Slimming: identities of the sparsity training, exact surgery, counts after removal, resume, full-size starts."""

import shutil

import pytest
import torch
from torch import nn

from gossamer import recipes
from gossamer.data import Batches
from gossamer.data.dataset import Dataset
from gossamer.errors import ConfigError, MaskError, ShapeError
from gossamer.models import build
from gossamer.recipes.slimming import (
    cifar_resnet,
    cost,
    imagenet_resnet50,
    mask_sparsity,
    network_slimming,
    prune_channels,
    slimming,
)
from gossamer.sparsify.channels import Choice, Ratio, Threshold, channel_graph
from gossamer.training import Classification, Memory, OptimConfig, TrainConfig, run_stages


def samples(seed):
    x = torch.randn(192, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return [x, x.mean((2, 3)).argmax(1)]


DATA = Dataset(Batches(samples(0), 64, shuffle=True), None, Batches(samples(2), 64), 3, (3, 8, 8))
OPTIM = OptimConfig(name="nesterov", lr=0.05)
TRAIN = TrainConfig(steps=8, device="cpu", checkpoint_every=4, optim=OPTIM)
SHORT = TrainConfig(steps=4, device="cpu", checkpoint_every=2, optim=OPTIM)
EXAMPLE = torch.zeros(1, 3, 8, 8)
HALF = Choice(rule=Ratio(0.5))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    )


def slim(stages, run=None, **options):
    task = Classification(network())
    memory = run_stages(stages, task, DATA, run, **options)
    return task.model, memory


def parts(**options):
    return mask_sparsity(TRAIN, EXAMPLE, finetune=SHORT, **{"lam": 0.01, "choice": HALF, **options})


def same(one, two):
    pairs = zip(one.state_dict().items(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for (_, a), b in pairs)


def test_the_whole_procedure_halves_every_layer():
    model, memory = slim(parts())
    assert (model[0].out_channels, model[3].in_channels, model[3].out_channels, model[8].in_features) == (4, 4, 6, 6)
    assert {name: int(mask.sum()) for name, mask in memory.values["channels"].items()} == {"0": 4, "3": 6}
    assert list(memory.results) == ["dense", "search", "sparse", "finetune"]


def test_all_channels_masked_is_network_slimming_bit_for_bit():
    """The stage "sparse" of MaskSparsity with every channel chosen, against slimming from the same weights."""
    everything = {"0": torch.zeros(8, dtype=torch.bool), "3": torch.zeros(12, dtype=torch.bool)}
    stages = parts()
    own, other = network(), network()
    task = Classification(own)
    memory = Memory(values={"channels": everything, "dense": dict(network().state_dict())})
    run_stages([stages[2]], task, DATA, memory=memory)
    task = Classification(other)
    search = network_slimming(TRAIN, EXAMPLE, finetune=SHORT, lam=0.01, choice=HALF)[1]
    run_stages([search], task, DATA)
    assert same(own, other)


@pytest.mark.parametrize("lam", [0.0, 0.05])
def test_nothing_masked_or_no_strength_is_plain_training_bit_for_bit(lam):
    whole = {"0": torch.ones(8, dtype=torch.bool), "3": torch.ones(12, dtype=torch.bool)}
    if lam == 0.0:
        whole["0"][:3] = False
    stages = mask_sparsity(TRAIN, EXAMPLE, finetune=SHORT, lam=lam, masks=whole)
    penalised, _ = slim(stages[:3])
    plain = Classification(network())
    run_stages([recipes.train_prune_finetune(0.5, TRAIN, TRAIN)[0]], plain, DATA)
    again = run_stages([stages[2]], plain, DATA, memory=Memory(values={"channels": whole, "dense": _copy(plain)}))
    assert same(penalised, plain.model)
    assert again.results["sparse"]["steps"] == 8


def _copy(task):
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def test_only_the_scales_that_go_shrink():
    model, memory = slim(parts(lam=10.0, search_lam=0.01, proximal=True)[:3])
    for layer, norm in (("0", model[1]), ("3", model[4])):
        kept = memory.values["channels"][layer]
        assert not norm.weight.detach()[~kept].any()  # the proximal step ends in exact zeros
        assert norm.weight.detach()[kept].abs().min() > 0.5
    everywhere, _ = slim(network_slimming(TRAIN, EXAMPLE, finetune=SHORT, lam=10.0, proximal=True)[:2])
    assert not everywhere[1].weight.detach().any()


@pytest.mark.parametrize("fold", [True, False])
def test_removal_of_silent_channels_changes_nothing(fold):
    """Scales and shifts exactly 0: the same outputs, in float64; with shifts only where constants are folded."""
    surgery = mask_sparsity(TRAIN, EXAMPLE.double(), finetune=SHORT, fold=fold)[-2].surgery
    for shift, equal in ((0.0, True), (1.5, fold)):
        model = network().double().eval()
        kept = {"0": torch.arange(8) % 2 == 0, "3": torch.arange(12) % 3 > 0}
        for norm, mask in ((model[1], kept["0"]), (model[4], kept["3"])):
            norm.weight.data[~mask] = 0.0
            norm.bias.data[~mask] = shift
        x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        before = model(x)
        small = surgery(model, Memory(values={"channels": kept}))
        assert bool((small(x) - before).abs().max() < 1e-12) == equal


def test_counts_after_removal_are_those_of_a_small_network():
    model, _ = slim(parts())
    before, after = cost(network(), EXAMPLE), cost(model, EXAMPLE)
    fresh = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )
    expected = cost(fresh, EXAMPLE)
    assert after.flops == expected.flops == after.torch_flops == expected.torch_flops
    assert before.flops == before.torch_flops == 2 * (36 * 27 * 8 + 16 * 72 * 12 + 36)
    assert after.flops == 2 * (36 * 27 * 4 + 16 * 36 * 6 + 18)
    assert after.parameters == sum(p.numel() for p in model.parameters()) < before.parameters
    assert after.milliseconds > 0


@pytest.mark.parametrize("score", ["l1", "fpgm"])
def test_other_scores_need_no_search(score):
    model, memory = slim(parts(choice=Choice(score, Ratio(0.25))))
    assert "search" not in memory.results
    assert (model[0].out_channels, model[3].out_channels) == (6, 9)


def test_baselines_end_in_the_same_shapes():
    given = {"0": torch.arange(8) < 4, "3": torch.arange(12) < 6}
    for stages in (
        network_slimming(TRAIN, EXAMPLE, finetune=SHORT, lam=0.01, choice=HALF),
        prune_channels(TRAIN, EXAMPLE, finetune=SHORT, choice=Choice("l1", Ratio(0.5))),
        prune_channels(TRAIN, EXAMPLE, finetune=SHORT, masks=given),
        parts(masks=given),
    ):
        model, _ = slim(stages)
        assert (model[0].out_channels, model[8].in_features) == (4, 6)


@pytest.mark.parametrize("stopped", ["02-sparse", "04-finetune"])
def test_a_resumed_procedure_has_the_same_bits(tmp_path, stopped):
    whole, _ = slim(parts())
    slim(parts(), tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        if path.name[:2].isdigit() and path.name >= stopped:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again, memory = slim(parts(), tmp_path / "a", resume=True)
    assert same(whole, again)
    assert set(memory.values["channels"]) == {"0", "3"}


def test_a_trained_model_skips_the_dense_stage():
    stages = parts(pretrained=True)
    model, memory = slim(stages)
    assert "dense" not in memory.results
    assert model[0].out_channels == 4


def test_bad_procedures():
    with pytest.raises(ConfigError, match="must not be negative"):
        parts(lam=-1.0)
    with pytest.raises(ConfigError, match="must not be negative"):
        slimming(-1.0)
    with pytest.raises(ConfigError, match="infinite"):
        parts(lam=float("inf"))
    with pytest.raises(MaskError, match="all 8 channels of 0"):
        slim(parts(masks={"0": torch.zeros(8, dtype=torch.bool)}))
    with pytest.raises(ShapeError, match="0 needs a bool mask"):
        slim(parts(masks={"0": torch.ones(7, dtype=torch.bool)}))
    with pytest.raises(ConfigError, match="8 cannot be changed: it is an output"):
        slim(parts(masks={"8": torch.ones(3, dtype=torch.bool)}))
    kept, _ = slim(parts(choice=Choice(rule=Threshold(100.0))))
    assert (kept[0].out_channels, kept[3].out_channels) == (1, 1)  # the least of every layer


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("resnet-56", (3, 32, 32)), ("resnet-50", (3, 64, 64))])
def test_full_size_configurations_start(name, shape):
    """Two steps a stage on random images, every layer cut by half."""
    options = cifar_resnet() if name == "resnet-56" else imagenet_resnet50()
    options |= {"choice": HALF, "example": torch.zeros(1, *shape)}
    for key in ("train", "finetune"):
        options[key] = options[key].model_copy(update={"steps": 2, "device": "cpu"})
    x = torch.randn(8, *shape)
    data = Dataset(Batches([x, torch.arange(8) % 4], 4), None, None, 4, shape)
    task = Classification(build(name, classes=4))
    before = cost(task.model, options["example"], 1)
    run_stages(mask_sparsity(**options), task, data)
    after = cost(task.model, options["example"], 1)
    assert after.flops < 0.7 * before.flops
    assert after.flops == pytest.approx(after.torch_flops)
    assert len(channel_graph(task.model, options["example"]).groups) > 20
