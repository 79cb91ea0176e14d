"""Tasks: measures over uneven batches equal those over all samples at once."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_toys import Parts, toy_config, toy_data, toy_model

from gossamer import recipes
from gossamer.data.dataset import Batches
from gossamer.errors import DataError
from gossamer.training import Classification, LanguageModelling, OptimConfig, Reconstruction, Regression, Task, fit


def test_classification_measures():
    data, model = toy_data(batch_size=7), toy_model()
    measured = Classification(model, smoothing=0.1).evaluate(data.test)
    assert model.training
    assert model[3].training
    model.eval()
    inputs, labels = data.test.tensors()
    with torch.no_grad():
        logits = model(inputs)
    assert measured["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert measured["accuracy"] == float((logits.argmax(1) == labels).double().mean())


def test_modes_come_back_one_by_one():
    model = toy_model()
    model[1].eval()  # frozen statistics
    Classification(model).evaluate(toy_data().test)
    assert (model.training, model[1].training, model[3].training) == (True, False, True)


def test_regression_and_reconstruction_measures():
    x, y = torch.randn(10, 4), torch.randn(10, 2)
    net = nn.Linear(4, 2)
    measured = Regression(net).evaluate(Batches([x, y], 3))
    assert measured["loss"] == pytest.approx(float(F.mse_loss(net(x), y).detach()), rel=1e-6)
    assert measured["mae"] == pytest.approx(float((net(x) - y).abs().mean().detach()), rel=1e-6)
    auto = nn.Linear(4, 4)
    measured = Reconstruction(auto).evaluate(Batches([x], 3))
    error = float(F.mse_loss(auto(x), x).detach())
    assert measured["loss"] == pytest.approx(error, rel=1e-6)
    assert measured["psnr"] == pytest.approx(10 * math.log10(1 / error), rel=1e-6)


def test_language_measures_leave_out_what_is_masked():
    tokens, following = torch.randint(5, (4, 6)), torch.randint(5, (4, 6))
    following[0, :3] = -100
    net = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    measured = LanguageModelling(net).evaluate(Batches([tokens, following], 3))
    expected = float(F.cross_entropy(net(tokens).flatten(0, 1), following.flatten()).detach())
    assert measured["loss"] == pytest.approx(expected, rel=1e-6)
    assert measured["perplexity"] == pytest.approx(math.exp(expected), rel=1e-6)


def train(task: Task, train: Batches, test: Batches) -> dict:
    config = toy_config("adam", steps=150, validate_every=0, optim=OptimConfig(name="adam", lr=0.01))
    return fit(task, Parts(train, None, test), recipes.gmp(sparsity=0.5, every=5), config)


def test_every_task_learns_while_it_is_pruned():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=draw)
    plan = torch.randn(6, 2, generator=draw)
    batches = Batches([x, x @ plan], 16, shuffle=True), Batches([x, x @ plan], 16)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    before = Regression(net).evaluate(batches[1])["loss"]
    assert train(Regression(net), *batches)["test"]["loss"] < 0.2 * before

    auto = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    before = Reconstruction(auto).evaluate(batches[1])["psnr"]
    assert train(Reconstruction(auto), *batches)["test"]["psnr"] > before + 5

    chain = torch.arange(20).repeat(8, 1).add(torch.arange(8)[:, None]) % 5  # each token follows from the one before
    text = Batches([chain[:, :-1], chain[:, 1:]], 4, shuffle=True)
    model = nn.Sequential(nn.Embedding(5, 16), nn.Linear(16, 5))
    assert train(LanguageModelling(model), text, text)["test"]["perplexity"] < 1.2


def test_a_teacher_teaches_and_does_not_learn():
    teacher = toy_model(seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    task = Classification(toy_model(), teacher=teacher, imitate=1.0)
    batch = toy_data().train.batch(0)
    task.model.eval()
    own = {name: value.clone() for name, value in task.model.state_dict().items()}
    assert float(task.loss(task.model, batch).detach()) > 0
    task.model.load_state_dict(before)
    assert float(task.loss(task.model, batch).detach()) == pytest.approx(0, abs=1e-6)
    task.model.load_state_dict(own)
    fit(task, toy_data(), recipes.dense(), toy_config())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_nothing_to_evaluate_and_no_loss_are_named():
    with pytest.raises(DataError, match="nothing to evaluate on"):
        Classification(toy_model()).evaluate([])
    with pytest.raises(TypeError, match=r"Task does not define loss\(model, batch\)"):
        Task(toy_model()).loss(nn.Identity(), ())
