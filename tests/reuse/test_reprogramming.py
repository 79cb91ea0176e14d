"""Prompts, label maps and probes: exact checks, what stays frozen, bad input."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import CheckpointError, ConfigError, DataError, ShapeError
from gossamer.metrics.calibration import ece
from gossamer.models import build
from gossamer.reuse.reprogramming import (
    LabelMapping,
    Target,
    VisualPrompt,
    few_shot,
    greedy,
    hungarian,
    linear_probe,
    pictures,
    reprogram,
    transfer_report,
    write_page,
)
from gossamer.reuse.reprogramming.study import Sources, TransferStudy, coloured, target


@pytest.mark.parametrize(("side", "inner"), [(16, 8), (17, 8), (9, 4)])
def test_the_picture_is_untouched_and_the_border_does_not_see_it(side, inner):
    prompt = VisualPrompt((3, side, side), inner)
    with torch.no_grad():
        prompt.theta.normal_()
    x, other = torch.rand(2, 3, inner, inner), torch.rand(2, 3, inner, inner)
    shown = prompt(x)
    before, after = (side - inner + 1) // 2, (side - inner) // 2
    assert before + inner + after == side
    middle = shown[:, :, before : side - after, before : side - after]
    assert torch.equal(middle, x)
    outside = prompt.mask.bool().expand(3, -1, -1)
    assert torch.equal(shown[:, outside], prompt(other)[:, outside])
    assert torch.equal(shown[0][outside], torch.sigmoid(prompt.theta)[outside])
    shown.sum().backward()
    assert bool((prompt.theta.grad[~outside] == 0).all())
    assert bool((prompt.theta.grad[outside] != 0).all())


def test_an_untrained_border_is_grey_and_the_source_is_normalised():
    prompt = VisualPrompt((1, 8, 8), 4, mean=[0.5], std=[0.25])
    assert prompt(torch.full((1, 1, 4, 4), 0.75))[0, 0, 0, 0] == 0.0
    assert prompt(torch.full((1, 1, 4, 4), 0.75))[0, 0, 4, 4] == 1.0


def test_a_frame_lies_on_the_whole_picture():
    prompt = VisualPrompt((1, 8, 8), 2, mode="frame")
    assert int(prompt.mask.sum()) == 64 - 16
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(prompt(x), x)  # zeros at first
    with torch.no_grad():
        prompt.theta.fill_(1.0)
    assert torch.equal(prompt(x)[0, 0, 3:5, 3:5], x[0, 0, 3:5, 3:5])
    assert prompt(x)[0, 0, 0, 0] == x[0, 0, 0, 0] + 1


@settings(deadline=None)
@given(sources=st.integers(2, 12), data=st.data())
def test_maps_are_one_to_one(sources, data):
    targets = data.draw(st.integers(1, sources))
    per_class = data.draw(st.integers(1, sources // targets))
    table = torch.randint(
        0, 20, (sources, targets), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    )
    for rule in (greedy, hungarian):
        found = rule(table, per_class)
        assert found.shape == (targets, per_class)
        assert len(set(found.flatten().tolist())) == targets * per_class


def test_greedy_and_the_largest_total():
    table = torch.tensor([[9, 8], [8, 0]])
    assert greedy(table).flatten().tolist() == [0, 1]
    assert hungarian(table).flatten().tolist() == [1, 0]
    easy = torch.tensor([[1, 7, 0], [6, 0, 0], [0, 0, 5], [1, 1, 1]])
    assert torch.equal(greedy(easy), hungarian(easy))
    assert greedy(easy).flatten().tolist() == [1, 0, 2]
    assert greedy(torch.zeros(3, 2)).flatten().tolist() == [0, 1]  # ties: lowest row, column


class Identity(nn.Module):
    """A perfect source: the mean of column c of the picture in the middle is the logit of class c."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(10 * torch.eye(4))

    def forward(self, x):
        return self.head(x[:, 0, 2:6, 2:6].mean(1))


def one_hot_pictures(count):
    y = torch.arange(count) % 4
    return torch.eye(4)[y][:, None, None].expand(-1, 1, 4, -1).contiguous(), y


@pytest.mark.parametrize("kind", ["frequency", "iterative"])
def test_a_perfect_source_is_mapped_by_identity(kind):
    x, y = one_hot_pictures(40)
    net = reprogram(Identity(), x, y, VisualPrompt((1, 8, 8), 4), LabelMapping(kind), epochs=2)
    assert net.labels.flatten().tolist() == [0, 1, 2, 3]
    assert bool((net(x).argmax(1) == y).all())


def test_nothing_of_the_source_moves():
    torch.manual_seed(0)
    source = build("convnet", shape=(1, 16, 16), classes=12).train()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    x, y = torch.randn(30, 1, 8, 8), torch.arange(30) % 5
    net = reprogram(source, x, y, VisualPrompt((1, 16, 16), 8), epochs=3, lr=0.1)
    linear_probe(source, torch.randn(30, 1, 16, 16), y, epochs=2)
    net.train()
    net(x)
    for name, value in source.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not source.training
    assert bool((net.prompt.theta != 0).any())


def test_a_random_map_stays_and_an_iterative_one_follows():
    calls = []

    class Watched(LabelMapping):
        def make(self, *given, **named):
            calls.append(self.kind)
            return super().make(*given, **named)

    x, y = one_hot_pictures(16)
    for kind in ("random", "frequency", "iterative"):
        reprogram(Identity(), x, y, VisualPrompt((1, 8, 8), 4), Watched(kind), epochs=3)
    assert calls == ["random", "frequency", "iterative", "iterative", "iterative"]


def test_the_probe_is_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(200, 1, 4, 4)
    y = (x.flatten(1)[:, :3] + 0.5 * torch.randn(200, 3)).argmax(1)
    decay = 0.01
    probe = linear_probe(source, x, y, epochs=400, lr=0.03, batch=200, decay=decay)
    features = source[:3](x).detach().numpy()
    # Adam's coupled decay acts on the bias as well: a column of ones under the same penalty
    padded = np.hstack([features, np.ones((200, 1))])
    wanted = LogisticRegression(C=1 / (decay * 200), fit_intercept=False, tol=1e-8, max_iter=5000).fit(
        padded, y.numpy()
    )
    with torch.no_grad():
        ours = nn.functional.cross_entropy(probe(x), y) + decay / 2 * sum(
            p.square().sum() for p in probe.head.parameters()
        )
    logits = torch.tensor(padded @ wanted.coef_.T)
    theirs = nn.functional.cross_entropy(logits, y) + decay / 2 * float((wanted.coef_**2).sum())
    assert float(ours) == pytest.approx(float(theirs), abs=1e-3)


def test_calibration_is_measured_over_the_whole_test_set():
    confident = torch.tensor([[100.0, 0.0]] * 10)
    labels = torch.tensor([0] * 7 + [1] * 3)
    assert ece(confident, labels) == pytest.approx(0.3)


def test_the_report_and_its_page(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need the report extra")
    torch.manual_seed(0)
    models = {"dense": build("mlp", shape=(1, 8, 8), hidden=(20,), classes=6)}
    models["90 %"] = build("mlp", shape=(1, 8, 8), hidden=(20,), classes=6)
    x, y = torch.randn(40, 1, 4, 4), torch.arange(40) % 3
    target = Target(
        "toy", (x, y), (x, y), lambda: VisualPrompt((1, 8, 8), 4), lambda p: nn.functional.interpolate(p, (8, 8))
    )
    rows = transfer_report(
        models,
        [target],
        shots=(None, 5),
        seeds=(0, 1),
        upstream={"dense": 0.9},
        prompting={"epochs": 1},
        probing={"epochs": 1},
    )
    assert len(rows) == 2 * 2 * 2 * 2
    assert {row.upstream for row in rows if row.model == "dense"} == {0.9}
    page = write_page(tmp_path / "transfer.html", rows).read_text()
    shown = json.loads(re.search(r'<script type="application/json" id="record">(.*?)</script>', page).group(1))
    assert shown == [row.as_json() for row in rows]
    assert "http" not in re.sub(r'xmlns[:\w]*="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.S)


def test_few_shots_are_balanced_and_seeded():
    labels = torch.tensor([0] * 10 + [1] * 3 + [2] * 5)
    picked = few_shot(labels, 3, seed=1)
    assert labels[picked].bincount().tolist() == [3, 3, 3]
    assert torch.equal(picked, few_shot(labels, 3, seed=1))
    assert len(few_shot(labels, None)) == 18


PROMPT = VisualPrompt((1, 8, 8), 4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: VisualPrompt((1, 8, 8), 8), ConfigError, "a picture of 8 leaves no border in an input of 8 x 8"),
        (lambda: VisualPrompt((1, 8, 8), 5, mode="frame"), ConfigError, "a frame of 5 is wider than half"),
        (lambda: VisualPrompt((1, 8, 8), 4, mode="grow"), ConfigError, "'expand' or 'frame'"),
        (lambda: VisualPrompt((1, 8, 8), 4, bound="relu"), ConfigError, "bound of a prompt"),
        (lambda: VisualPrompt((3, 8, 8), 4, mean=[0.5]), ShapeError, "3 channels need as many"),
        (lambda: PROMPT(torch.zeros(2, 3, 4, 4)), ShapeError, r"pictures \(B, 1, h, w\), got \(2, 3, 4, 4\)"),
        (
            lambda: greedy(torch.zeros(3, 2), 2),
            ConfigError,
            "not enough source labels: 2 targets with 2 each need 4 of 3",
        ),
        (lambda: LabelMapping("often"), ConfigError, "kind of a label mapping"),
        (lambda: few_shot(torch.tensor([0, 0, 1]), 2), DataError, "class 1 has 1 samples, 2 shots"),
        (lambda: few_shot(torch.tensor([0, 0, 2]), 1), DataError, "class 1 has 0 samples"),
        (lambda: few_shot(torch.tensor([0]), 0), ConfigError, "shots must be at least 1"),
        (lambda: linear_probe(nn.ReLU(), torch.zeros(2, 1), torch.zeros(2).long()), ConfigError, "no linear layer"),
        (lambda: transfer_report({}, [], shots=(None,)), ConfigError, "at least one model"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_pictures_change_their_colours_for_a_source():
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(coloured(grey, 3), grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(coloured(grey.expand(-1, 3, -1, -1), 1), grey)
    with pytest.raises(ShapeError, match="4 channels cannot be shown to a network of 3"):
        coloured(torch.rand(2, 4, 4, 4), 3)


def test_a_target_gets_the_moments_of_its_source():
    torch.manual_seed(0)
    study = TransferStudy(target="digits", limit=300)
    found = Sources({}, {}, {}, (1, 16, 16), centre=0.3, width=0.2)
    posed = target(study, found, 0)
    assert len(posed.train[1]) == 300
    with torch.no_grad():
        shown = posed.prompt()(posed.train[0])
    inside = shown[:, :, 3:14, 3:14]  # 5/7 of 16 is 11
    assert float(inside.mean()) == pytest.approx(0.3, abs=0.02)
    assert posed.prepare(posed.train[0]).shape == (300, 1, 16, 16)
    assert float(posed.prepare(posed.train[0]).mean()) == pytest.approx(0.3, abs=0.02)


def test_what_the_sources_see_is_kept_and_drawn(tmp_path):
    train, test = ((torch.rand(n, 1, 4, 4), torch.arange(n) % 2) for n in (8, 4))
    posed = Target("t", train, test, lambda: VisualPrompt((1, 8, 8), 4))
    task, made = pictures.watched(posed)
    models = {
        "dense": nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        "90 %": nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
    }
    transfer_report(models, [task], shots=(None, 2), ways=("prompt",), prompting={"epochs": 9})
    keys = [(shots, name) for shots in (None, 2) for name in models]
    seen = pictures.inputs(made, posed.test[0][:1], keys)
    assert len({tuple(value.flatten().tolist()) for value in seen.values()}) == 4  # trained, each for itself
    assert all(torch.equal(value[:, 2:6, 2:6], posed.test[0][0]) for value in seen.values())
    pictures.save(tmp_path, seen)
    again = pictures.load(tmp_path)
    assert set(again) == set(keys)
    assert all(torch.equal(again[key], seen[key]) for key in keys)
    assert pictures.draw(seen)[:8] == b"\x89PNG\r\n\x1a\n"
    assert pictures.load(tmp_path / "nowhere") == {}
    (tmp_path / pictures.FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"prompts.safetensors cannot be read"):
        pictures.load(tmp_path)
