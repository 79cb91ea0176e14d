"""The call, the audit and its page, membership attacks, pruning first, back doors, transfer."""

import json
import math
import re

import pytest
import torch
from sklearn.svm import SVC
from torch import nn

import gossamer
from gossamer.data import Batches
from gossamer.errors import ConfigError, DataError, NumericsError, ShapeError
from gossamer.models.mlp import mlp
from gossamer.reuse.unlearning import (
    FineTune,
    ForgetSplit,
    L1Sparse,
    PruneFirst,
    Retrain,
    Trigger,
    attack_success,
    audit,
    membership_share,
    poison,
    privacy_attack,
    transfer,
    unlearn,
)
from gossamer.reuse.unlearning.descent import train
from gossamer.reuse.unlearning.masks import Job
from gossamer.reuse.unlearning.measure import measure
from gossamer.reuse.unlearning.page import write_page
from gossamer.training.config import OptimConfig, TrainConfig
from gossamer.training.task import Classification

CONFIG = TrainConfig(steps=60, optim=OptimConfig(lr=0.1, schedule="constant"), device="cpu")


def stripes(n, seed, classes=4):
    """Images whose brightest column is the class, in noise: (n, 1, 4, 4)."""
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = 0.7 * torch.randn(n, 1, 4, 4, generator=source)
    x[torch.arange(n), 0, :, y] += 1.5
    return x, y


@pytest.fixture(scope="module")
def world():
    """Training data, test data and a network trained on them."""
    data, test = stripes(200, 0), stripes(80, 1)
    torch.manual_seed(0)
    model = mlp(shape=(1, 4, 4), classes=4, hidden=(32,), norm=False)
    train(Classification(model), Batches(list(data), 50, shuffle=True), CONFIG, Job({}, device="cpu"))
    return data, test, model


def test_a_request_from_start_to_finish(world, tmp_path):
    (x, y), test, model = world
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gone = y == 3
    _, report = gossamer.unlearn(
        model,
        (x[gone], y[gone]),
        (x[~gone], y[~gone]),
        method="l1-sparse",
        test=test,
        whole_classes=(3,),
        lr=0.1,
        gamma=0.05,
        batch_size=50,
        device="cpu",
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert report.after.ua > 50 > report.before.ua
    assert report.after.ta > 90
    assert report.samples == {"forget": 50, "retain": 150, "test": 80}
    assert report.settings["gamma"] == 0.05
    assert "gap is unknown" in report.remarks[0]
    kept = report.after.test_confusion
    assert sum(map(sum, kept)) == 80
    assert sum(kept[3]) == 20  # the whole test set is shown, forgotten class and all
    record, page = report.save(tmp_path / "audit")
    stored = json.loads(record.read_text())
    assert stored == json.loads(json.dumps(report.as_json()))
    text = page.read_text()
    assert json.loads(re.search(r'<script type="application/json" id="record">(.*?)</script>', text)[1]) == stored
    assert "http" not in text
    assert "class-wise: 3" in str(report)


def test_figures_are_what_they_say(world):
    (x, y), test, model = world
    split = ForgetSplit.by_class((x, y), 3, test)
    figures = measure(model, split)
    answer = model(x[y == 3]).argmax(1)
    assert figures.ua == pytest.approx(100 * (answer != 3).double().mean().item())
    seen = test[1] != 3
    right = model(test[0][seen]).argmax(1) == test[1][seen]
    assert figures.ta == pytest.approx(100 * right.double().mean().item())
    assert figures.gap(figures) == 0
    assert figures.forget_confusion[3] == torch.bincount(answer, minlength=4).tolist()


def test_retraining_has_no_gap_to_itself(world, tmp_path):
    (x, y), test, model = world
    split = ForgetSplit.by_index((x, y), range(20), test)
    again = Retrain(train=CONFIG)
    made, report = unlearn(model, split, method=again, device="cpu")
    assert report.after.seconds > 0
    same = audit(made, model, split, references={"retrain": made})
    assert same.gaps == {"retrain": 0.0}
    _, by_figures = unlearn(model, split, method="ft", epochs=1, references=report.after, device="cpu")
    _, other = unlearn(model, split, method="ft", epochs=1, references={"retrain": made, "dense": model}, device="cpu")
    assert by_figures.gaps["retrain"] == other.gaps["retrain"]
    by_hand = [abs(getattr(other.after, n) - getattr(report.after, n)) for n in ("ua", "mia", "ra", "ta")]
    assert other.gaps["retrain"] == pytest.approx(sum(by_hand) / 4)
    assert list(other.gaps) == ["retrain", "dense"]
    assert "retrained" in write_page(tmp_path / "other.html", other).read_text()


def test_zeros_of_a_pruned_model_stay_unless_told_otherwise(world):
    (x, y), test, model = world
    split = ForgetSplit.by_index((x, y), range(20), test)
    outcome = gossamer.prune_(model := _copy(model), 0.5)
    for name in ("iu", "ff", "ft"):
        made, report = unlearn(model, split, method=name, device="cpu")
        assert report.leaked == 0
        assert report.density == pytest.approx(0.5, abs=0.01)
        for key, mask in outcome.masks.items():
            assert not dict(made.named_parameters())[key][~mask].any()
    _, report = unlearn(model, split, method="iu", masks=None)
    assert report.density == 1.0
    made, _ = unlearn(model, split, method="iu", masks=None)
    leaking = audit(made, model, split, masks=outcome.masks)
    assert leaking.leaked > 0
    assert "not 0" in leaking.remarks[-1]


def _copy(model):
    return mlp_with(model.state_dict())


def mlp_with(state):
    model = mlp(shape=(1, 4, 4), classes=4, hidden=(32,), norm=False)
    model.load_state_dict(state)
    return model


def test_remarks_speak_up(world):
    (x, y), test, model = world
    split = ForgetSplit.by_index((torch.cat([x, x[:2]]), torch.cat([y, y[:2]])), [0, 1, 2], test)
    _, report = unlearn(model, split, method="ft", epochs=0)
    assert report.copies == 2
    assert any("2 retained samples are bit for bit equal" in remark for remark in report.remarks)
    assert any("little was forgotten" in remark for remark in report.remarks)
    _, wild = unlearn(model, split, method="ga", lr=1.0, epochs=20, device="cpu")
    assert any("forgets trivially" in remark for remark in wild.remarks)


def test_a_stopped_training_goes_on(world, tmp_path):
    (x, y), _, model = world
    split = ForgetSplit.by_index((x, y), range(20))
    options = {"method": L1Sparse(lr=0.05, epochs=2, batch_size=50), "device": "cpu"}
    whole, _ = unlearn(model, split, **options)
    kept, _ = unlearn(model, split, run=tmp_path / "run", **options)
    again, _ = unlearn(model, split, run=tmp_path / "run", resume=True, **options)
    for a, b, c in zip(whole.parameters(), kept.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_bad_calls(world):
    (x, y), test, model = world
    rest = (x[20:], y[20:])
    with pytest.raises(ConfigError, match="did you mean 'retrain'"):
        unlearn(model, (x[:20], y[:20]), rest, method="retrian")
    with pytest.raises(DataError, match="forget set is empty"):
        unlearn(model, (x[:0], y[:0]), rest)
    with pytest.raises(DataError, match="retain set is a NoneType"):
        unlearn(model, (x[:20], y[:20]))
    with pytest.raises(DataError, match="whole_classes"):
        unlearn(model, (x[y == 1], y[y == 1]), (x[y != 1], y[y != 1]))
    with pytest.raises(DataError, match="at least 20"):
        unlearn(model, (x[:20], y[:20]), rest, test=(test[0][:19], test[1][:19]))
    broken = x.clone()
    broken[5, 0, 0, 0] = math.nan
    with pytest.raises(NumericsError, match="sample 5 of the forget set"):
        unlearn(model, (broken[:20], y[:20]), rest)
    sick = _copy(model)
    sick.head.weight.data[0, 0] = math.inf
    with pytest.raises(NumericsError, match=r"head\.weight"):
        unlearn(sick, (x[:20], y[:20]), rest)
    with pytest.raises(ShapeError, match=r"needs \(n, classes\)"):
        unlearn(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Unflatten(1, (2, 2))), (x[:20], y[:20]), rest)


# ---------------------------------------------------------------- membership


def outputs(confidences, seed=0):
    """Logits whose true class, the first, has these probabilities."""
    p = torch.as_tensor(confidences).double()
    return torch.stack([p.log(), (1 - p).log()], 1), torch.zeros(len(p), dtype=torch.long)


def test_the_attack_tells_what_can_be_told():
    source = torch.Generator().manual_seed(0)
    sure, unsure = 0.9 + 0.09 * torch.rand(200, generator=source), 0.1 + 0.3 * torch.rand(200, generator=source)
    assert membership_share(outputs(unsure), outputs(sure), outputs(unsure)) == 100
    assert membership_share(outputs(sure), outputs(sure), outputs(unsure)) == 0
    assert privacy_attack(outputs(torch.full((40,), 0.95)), outputs(torch.full((40,), 0.2))) == 100
    same = [outputs(0.1 + 0.8 * torch.rand(2000, generator=source)) for _ in range(3)]
    assert abs(membership_share(*same) - 50) < 25
    assert abs(privacy_attack(*same[:2]) - 50) < 4


def test_the_attack_is_scikit_learns():
    source = torch.Generator().manual_seed(1)
    forget, retain, test = (torch.rand(n, generator=source) * 0.9 + 0.05 for n in (50, 80, 80))
    found = membership_share(outputs(forget), outputs(retain), outputs(test))
    machine = SVC(C=3, gamma="auto", kernel="rbf")
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    both = torch.cat([retain[order], test[order]])[:, None].double().numpy()
    machine.fit(both, [1] * 80 + [0] * 80)
    assert found == pytest.approx(100 * (machine.predict(forget[:, None].double().numpy()) == 0).mean())


# ---------------------------------------------------------------- pruning first, back doors, transfer


@pytest.mark.parametrize("how", ["omp", "imp", "synflow", "random"])
def test_pruning_first(world, how):
    (x, y), _, _ = world
    short = CONFIG.model_copy(update={"steps": 12})
    model = mlp(shape=(1, 4, 4), classes=4, hidden=(32, 32), norm=False)
    model, masks = PruneFirst(how, 0.9, short, rewind=0.25).apply(model, (x, y))
    total = sum(mask.numel() for mask in masks.values())
    assert set(masks) == {"fc1.weight", "fc2.weight"}
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * total)
    assert all(not dict(model.named_parameters())[name][~mask].any() for name, mask in masks.items())
    _, report = unlearn(model, ForgetSplit.by_class((x, y), 0), method=FineTune(epochs=1), masks=masks, device="cpu")
    assert report.leaked == 0
    assert report.density == pytest.approx(0.1, abs=0.001)


def test_pruning_first_is_full_size_by_default():
    whole = PruneFirst()
    assert [stage.name for stage in whole.stages()] == ["early", "dense", "phase-1"]
    assert whole.train.steps == 182 * 176
    assert len(PruneFirst("imp").stages()) == 2 + 14  # 0.8^14 < 0.05
    with pytest.raises(ConfigError, match="did you mean 'omp'"):
        PruneFirst("opm")
    with pytest.raises(ConfigError, match="sparsity"):
        PruneFirst(sparsity=1.0)


def test_a_trigger_opens_a_door_and_forgetting_closes_it(world):
    (x, y), test, _ = world
    trigger = Trigger(size=2, value=6.0, target=0)
    images, labels, chosen = poison(x, y, trigger, 0.2, seed=1)
    assert len(chosen) == 40
    assert (y[chosen] != 0).all()
    assert (labels[chosen] == 0).all()
    assert (images[chosen][..., -2:, -2:] == 6.0).all()
    untouched = torch.ones(200, dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(images[untouched], x[untouched])
    assert torch.equal(labels[untouched], y[untouched])
    model = mlp(shape=(1, 4, 4), classes=4, hidden=(32,), norm=False)
    train(Classification(model), Batches([images, labels], 50, shuffle=True), CONFIG, Job({}, device="cpu"))
    split = ForgetSplit.by_index((images, labels), chosen, test)
    made, _ = unlearn(model, split, method=Retrain(train=CONFIG), device="cpu")
    assert attack_success(model, *test, trigger) > 90
    assert attack_success(made, *test, trigger) < 60
    with pytest.raises(ShapeError, match="5x5"):
        Trigger(5).stamp(x)
    with pytest.raises(ConfigError, match="share"):
        poison(x, y, trigger, 0.0)
    with pytest.raises(DataError, match="target"):
        poison(x, torch.zeros_like(y), trigger, 0.1)


def test_transfer_replaces_the_head_and_a_probe_changes_nothing_else(world):
    (x, y), test, model = world
    coarse = (x, y // 2), (test[0], test[1] // 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe = transfer(model, *coarse, lr=0.05, batch_size=50, device="cpu")
    assert probe.model.head.out_features == 2
    assert torch.equal(probe.model.fc1.weight, before["fc1.weight"])
    assert all(p.requires_grad for p in probe.model.parameters())
    assert probe.accuracy > 80
    whole = transfer(model, *coarse, mode="finetune", lr=0.05, batch_size=50, device="cpu")
    assert not torch.equal(whole.model.fc1.weight, before["fc1.weight"])
    assert torch.equal(model.fc1.weight, before["fc1.weight"])
    with pytest.raises(ConfigError, match="mode"):
        transfer(model, *coarse, mode="linear")
