"""Sparse layers under the ordinary Sparsifier: the run of masked dense layers, without dense work."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gossamer.engine.compiler import compile
from gossamer.engine.sparse_linear import SPARSE, SparseLinear, sparsify_linears
from gossamer.errors import ConfigError, MaskError, ShapeError
from gossamer.kernels import native
from gossamer.maths.schedules import Constant, Every
from gossamer.recipes.dynamic import rigl, set_
from gossamer.recipes.gradual import gmp
from gossamer.recipes.static import random
from gossamer.sparsify.allocation import Uniform
from gossamer.sparsify.estimators import STE
from gossamer.sparsify.recipe import Recipe
from gossamer.sparsify.scores import GradientEMA, Magnitude, Random
from gossamer.sparsify.sparsifier import Sparsifier
from gossamer.sparsify.updates import GrowTo, PruneGrow, PruneTo, SetTo
from gossamer.training.ema import EMA

needs_kernels = pytest.mark.skipif(native.extension() is None, reason="sparse layers need the compiled kernels")
pytestmark = needs_kernels

IN, WIDTH, CLASSES = 40, 96, 5
SGD = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3)  # noqa: E731
ADAM = lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=1e-2)  # noqa: E731
FUSED = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True)  # noqa: E731
RECIPES = {
    "static": lambda: random(0.8, allocation="uniform"),
    "set": lambda: set_(0.8, every=7, allocation=Uniform()),
    "rigl": lambda: rigl(0.8, every=7, allocation=Uniform()),
}


def network() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(IN, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip
    for module in model[::2]:
        nn.init.normal_(module.weight, std=(2 / (0.2 * module.in_features)) ** 0.5)  # signals survive 80 % zeros
    return model


def batch(step: int, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, IN, generator=generator)
    return x, (x[:, :CLASSES] + 0.3 * torch.randn(size, CLASSES, generator=generator)).argmax(1)


def start(recipe: Recipe, optimiser=SGD, sparse: bool = True, steps: int = 60):
    model = network()
    optimizer = optimiser(model.parameters())
    sparsifier = Sparsifier(model, optimizer, recipe, steps)
    if sparse:
        sparsify_linears(sparsifier)
    return model, optimizer, sparsifier


def train(model, optimizer, steps: range, clip: float | None = None, sparsifier=None) -> list[float]:
    losses = []
    for step in steps:
        x, y = batch(step % 4)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            sparsifier.after_backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def layers(model: nn.Module) -> list[SparseLinear]:
    return [m for m in model.modules() if isinstance(m, SparseLinear)]


# ---------------------------------------------------------------- the same run


@pytest.mark.parametrize("optimiser", [SGD, ADAM, FUSED], ids=["sgd", "adamw", "fused"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_sixty_steps_are_those_of_masked_dense_training(recipe, optimiser):
    runs = {}
    for sparse in (False, True):
        model, optimizer, sparsifier = start(RECIPES[recipe](), optimiser, sparse)
        assert len(layers(model)) == 4 * sparse
        losses = train(model, optimizer, range(60))
        runs[sparse] = losses, sparsifier, sparsifier.finalize().state_dict()
    assert runs[True][0] == pytest.approx(runs[False][0], abs=1e-4)
    assert runs[True][0][-1] < 0.8 * runs[True][0][0]
    for name, mask in runs[False][1].masks.items():
        assert torch.equal(runs[True][1].masks[name], mask)
        assert not runs[True][2][name][~mask].any()
    for name, tensor in runs[False][2].items():
        torch.testing.assert_close(runs[True][2][name], tensor, rtol=1e-3, atol=1e-4)
    assert runs[True][1].dense_gradient_steps == runs[False][1].dense_gradient_steps


@pytest.mark.parametrize(
    "update",
    [
        PruneTo(Constant(0.1), when=Every(9)),
        GrowTo(Constant(0.4), when=Every(9)),
        PruneGrow(Constant(0.3), grow=Random(), when=Every(9), init="random"),
        PruneGrow(Constant(0.3), grow=Random(), when=Every(9), allow_reverse=False, redistribute="nonzeros"),
        PruneGrow(Constant(0.3), when=Every(9), init="grad_step"),
        SetTo(Random(), 0.2, Uniform(), when=Every(9)),
    ],
    ids=lambda u: type(u).__name__,
)
def test_updates_that_change_counts_or_start_grown_weights(update):
    recipe = Recipe("moving", updates=(SetTo(Random(), 0.25, Uniform()), update))
    losses = {}
    for sparse in (False, True):
        model, optimizer, sparsifier = start(recipe, SGD, sparse)
        losses[sparse] = train(model, optimizer, range(40))
        if sparse:
            assert [layer.pattern.nonzeros for layer in layers(model)] == [
                int(sparsifier.entry_masks[name].sum()) for name in sparsifier.entry_masks
            ]
    assert losses[True] == pytest.approx(losses[False], abs=2e-4)


def test_clipping_sees_each_gradient_once():
    norms = {}
    for sparse in (False, True):
        model, optimizer, sparsifier = start(RECIPES["rigl"](), SGD, sparse)
        norms[sparse] = train(model, optimizer, range(30), clip=0.3, sparsifier=sparsifier)
    assert norms[True] == pytest.approx(norms[False], abs=1e-4)


def test_accumulated_batches_add_up_for_dense_gradients_too():
    model, _, sparsifier = start(rigl(0.8, every=1))
    dense, _, _ = start(rigl(0.8, every=1), sparse=False)
    for step in range(3):
        x, y = batch(step)
        for m in (model, dense):
            F.cross_entropy(m(x), y).backward()
    parameters = dict(dense.named_parameters())
    for name, layer in sparsifier._stores[0].layers.items():
        torch.testing.assert_close(layer.dense_gradient, parameters[name].grad, rtol=1e-4, atol=1e-6)


def test_a_dense_gradient_is_made_on_the_steps_that_need_one_only():
    model, optimizer, sparsifier = start(rigl(0.8, every=5))
    made = []
    for step in range(12):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        made.append(layers(model)[0].dense_gradient is not None)
        assert model[0].weight.grad is None
        optimizer.step()
    assert made == [(step + 1) % 5 == 0 for step in range(12)]
    assert sparsifier.dense_gradient_steps == 2


def test_buffers_of_the_optimiser_are_as_long_as_the_values():
    model, optimizer, _ = start(RECIPES["set"](), ADAM)
    train(model, optimizer, range(20))
    for layer in layers(model):
        assert layer.weight not in optimizer.state
        assert optimizer.state[layer.values]["exp_avg"].shape == (layer.pattern.nonzeros,)


def test_a_run_can_turn_sparse_and_back_in_the_middle():
    plain, optimizer, _ = start(RECIPES["rigl"](), ADAM, sparse=False)
    expected = train(plain, optimizer, range(30))
    model, optimizer, sparsifier = start(RECIPES["rigl"](), ADAM, sparse=False)
    losses = train(model, optimizer, range(12))
    sparsify_linears(sparsifier)
    losses += train(model, optimizer, range(12, 25))
    sparsifier._stores.pop().release()
    assert not layers(model)
    assert not optimizer.state.keys() - set(model.parameters())
    losses += train(model, optimizer, range(25, 30))
    assert losses == pytest.approx(expected, abs=1e-4)


def test_digits_are_learnt_as_well():
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    accuracy = {}
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = Sparsifier(model, optimizer, rigl(0.9, every=20), 200)
        if sparse:
            assert SPARSE in sparsify_linears(sparsifier).values()
        for step in range(200):
            rows = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        sparsifier.finalize()
        accuracy[sparse] = float((model(x[1200:]).argmax(1) == y[1200:]).float().mean())
    assert accuracy[True] > 0.85
    assert accuracy[True] == pytest.approx(accuracy[False], abs=0.02)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("optimiser", [SGD, FUSED], ids=["sgd", "fused"])
def test_the_state_is_that_of_plain_layers(optimiser):
    model, optimizer, sparsifier = start(RECIPES["set"](), optimiser)
    train(model, optimizer, range(10))
    state, x = model.state_dict(), batch(0)[0]
    plain = network()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), model(x))
    assert list(state) == list(plain.state_dict())
    finished = sparsifier.finalize()
    assert [type(m) for m in finished] == [type(m) for m in plain]
    torch.testing.assert_close(finished(x), plain(x))


@pytest.mark.parametrize("order", [("model", "optimizer", "sparsifier"), ("sparsifier", "optimizer", "model")])
@pytest.mark.parametrize("recipe", ["set", "rigl"])
def test_a_resumed_run_is_the_same(recipe, order):
    model, optimizer, sparsifier = start(RECIPES[recipe](), ADAM)
    train(model, optimizer, range(20))
    state = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    state = {name: copy.deepcopy(part.state_dict()) for name, part in state.items()}
    expected = train(model, optimizer, range(20, 40))
    model, optimizer, sparsifier = start(RECIPES[recipe](), ADAM)
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    for name in order:
        parts[name].load_state_dict(state[name])
    assert train(model, optimizer, range(20, 40)) == expected


def test_evaluation_finds_the_dense_weight_up_to_date():
    model, optimizer, _ = start(RECIPES["static"]())
    train(model, optimizer, range(3))
    model.eval()
    for layer in layers(model):
        x = torch.randn(4, layer.in_features)
        y = F.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), y.relu() if layer.relu else y)


def test_what_others_write_to_the_dense_weight_counts():
    model, optimizer, sparsifier = start(RECIPES["static"]())
    average = EMA(model, 0.5)
    train(model, optimizer, range(5))
    x = batch(0)[0]
    before = model(x)
    with average.applied(model, sparsifier.entry_masks):
        assert not torch.allclose(model(x), before)
    torch.testing.assert_close(model(x), before)


def test_a_copy_of_the_model_is_its_own():
    model, optimizer, _ = start(RECIPES["set"]())
    twin, x = copy.deepcopy(model), batch(0)[0]
    before = twin(x)
    train(model, optimizer, range(10))
    assert torch.equal(twin(x), before)


# ---------------------------------------------------------------- how layers are joined


def test_relus_are_taken_in_and_come_back():
    model, _, sparsifier = start(RECIPES["static"]())
    assert [layer.relu for layer in layers(model)] == [True, False, True, False]
    assert [layer.row_major for layer in layers(model)] == [False, False, False, True]
    assert isinstance(model[1], nn.Identity)
    sparsifier.finalize()
    assert isinstance(model[1], nn.ReLU)


def test_modes_follow_the_layers_that_come_back():
    model, _, sparsifier = start(RECIPES["static"]())
    model.eval()
    sparsifier.remove()
    assert not any(module.training for module in model.modules())


def test_layers_outside_of_sequences_keep_their_layout():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(F.gelu(self.up(x)))

    losses = {}
    for sparse in (False, True):
        torch.manual_seed(0)
        model = Block()
        optimizer = SGD(model.parameters())
        sparsifier = Sparsifier(model, optimizer, random(0.8), 10)
        if sparse:
            sparsify_linears(sparsifier)
            assert all(layer.row_major and not layer.relu for layer in layers(model))
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
        losses[sparse] = []
        for _ in range(10):
            loss = model(x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[sparse].append(loss.item())
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)


def test_autocast_leaves_sparse_layers_in_float32():
    model, _, _ = start(RECIPES["static"]())
    with torch.autocast("cpu", torch.bfloat16):
        y = model[:6](batch(0)[0])
    torch.testing.assert_close(y, model[:6](batch(0)[0]), rtol=0.05, atol=0.05)


# ---------------------------------------------------------------- what stays masked dense


def why(recipe: Recipe, model: nn.Module | None = None, **kwargs) -> dict[str, str]:
    model = model or network()
    return sparsify_linears(Sparsifier(model, SGD(model.parameters()), recipe, 100), **kwargs)


def test_unfit_recipes_stay_masked_dense_and_say_so_once(caplog):
    ema = Recipe("ema", updates=(SetTo(Random(), 0.2), PruneGrow(grow=GradientEMA(), when=Every(5))))
    ste = Recipe("ste", family=STE(), updates=(SetTo(Magnitude(), 0.2),))
    for recipe, reason in ((ema, "needs grad_ema"), (ste, "trains weights outside the mask")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            report = why(recipe)
        assert all(reason in text for text in report.values())
        assert len(caplog.records) == 1
        assert f"4 of 4 masked weights train masked dense (4: {recipe.name}" in caplog.text


def test_without_kernels_nothing_changes():
    with native.using("none"):
        assert all("kernels are missing" in text for text in why(RECIPES["set"]()).values())


def test_unfit_layers_stay_masked_dense():
    double = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(8, 8))
    assert "torch.float64" in why(RECIPES["static"](), double)["0.weight"]
    shared = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))
    shared[2].weight = shared[0].weight
    assert "shared" in why(RECIPES["static"](), shared)["0.weight"]
    hooked = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    hooked[0].register_forward_hook(lambda m, i, o: None)
    assert "hooks" in why(RECIPES["static"](), hooked)["0.weight"]
    conv = nn.Sequential(nn.Conv1d(8, 8, 1), nn.Flatten(), nn.Linear(8, 8))
    assert why(RECIPES["static"](), conv) == {
        "0.weight": "no plain nn.Linear or 1x1 nn.Conv2d of stride 1 inside the model, but Conv1d",
        "2.weight": SPARSE,
    }
    assert "no plain nn.Linear or" in why(RECIPES["static"](), nn.Linear(8, 8))["weight"]
    assert why(random(0.3, allocation="uniform"))["0.weight"] == "denser than 0.5"


def test_after_a_change_of_dtype_the_layer_computes_masked_dense(caplog):
    model, _, sparsifier = start(RECIPES["static"]())
    x = batch(0)[0]
    expected = model(x).double()
    model.double()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            y = model(x.double())
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert len(caplog.records) == 4
    assert "torch.float64 on cpu computes masked dense" in caplog.text
    y.sum().backward()
    assert layers(model)[0].values.grad.dtype is torch.float64
    torch.testing.assert_close(sparsifier.finalize()(x.double()), y)


def test_bad_calls():
    with pytest.raises(ConfigError, match="max_density must lie in"):
        why(RECIPES["set"](), max_density=0.0)
    model = network()
    sparsifier = Sparsifier(model, SGD(model.parameters()), RECIPES["set"](), 10)
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(MaskError, match=r"weights of 0\.weight are not zero off the mask; call sparsifier.enforce"):
        sparsify_linears(sparsifier)
    sparsifier.enforce()
    sparsify_linears(sparsifier)
    with pytest.raises(ShapeError, match=f"{IN} inputs"):
        model(torch.randn(2, IN + 1))
    with pytest.raises(ConfigError, match="float64"):
        model(torch.randn(2, IN).double())


def test_nan_in_a_run_is_found_by_the_next_update():
    from gossamer.errors import NumericsError

    model, optimizer, _ = start(set_(0.8, every=2, allocation=Uniform()))
    with torch.no_grad():
        layers(model)[0].values[0] = float("nan")
    with pytest.raises(NumericsError, match=r"0\.weight"):
        train(model, optimizer, range(4))


def test_the_library_s_own_loop_trains_sparse_by_its_on_start(tmp_path):
    from gossamer.data.digits import digits
    from gossamer.training import Classification, OptimConfig, TrainConfig, fit

    def run(name: str, on_start, **config):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        settings = TrainConfig(steps=40, optim=OptimConfig(lr=1e-2), checkpoint_every=15, **config)
        recipe = rigl(0.8, every=8, allocation=Uniform())
        fit(Classification(model), digits(train=512), recipe, settings, run=tmp_path / name, on_start=on_start)
        return model

    for config in ({}, {"ema": 0.9, "clip": 0.5}):
        dense, sparse = (run(f"{on is None}-{len(config)}", on, **config) for on in (None, sparsify_linears))
        assert [type(m) for m in sparse] == [type(m) for m in dense]
        for mine, theirs in zip(sparse.state_dict().values(), dense.state_dict().values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_called_again_it_takes_what_has_become_sparse():
    """A dense-to-sparse recipe begins with dense layers; the run stays that of masked dense training."""
    recipe = lambda: gmp(0.8, every=5, stop=0.5, allocation=Uniform())  # noqa: E731
    runs = {}
    for sparse in (False, True):
        model, optimizer, sparsifier = start(recipe(), sparse=False)
        if sparse:
            assert SPARSE not in sparsify_linears(sparsifier).values()
        losses = train(model, optimizer, range(20))
        if sparse:
            assert set(sparsify_linears(sparsifier, max_density=0.7).values()) == {SPARSE}
            assert set(sparsify_linears(sparsifier, max_density=0.7).values()) == {SPARSE}  # once more: nothing changes
            assert len(layers(model)) == 4
        runs[sparse] = losses + train(model, optimizer, range(20, 60)), sparsifier.finalize()
    assert runs[True][0] == pytest.approx(runs[False][0], abs=1e-4)
    assert all(type(layer) is nn.Linear for layer in runs[True][1][::2])


def test_the_model_alone_is_refused():
    with pytest.raises(ConfigError, match=r"takes a Sparsifier.*got Sequential"):
        sparsify_linears(network())


def test_compiling_while_it_trains_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    model, _, sparsifier = start(RECIPES["static"]())
    report = compile(model.eval(), torch.randn(2, IN)).report()
    assert "sparsifier.finalize() first (4 times)" in str(report)
    assert not compile(sparsifier.finalize(), torch.randn(2, IN)).report().breaks
