"""Every method: exact answers on small models, zeros that stay, refusals."""

import copy

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from gossamer.data import Batches
from gossamer.errors import ConfigError, DataError, MaskError, NumericsError, ShapeError
from gossamer.maths.schedules import Steps
from gossamer.models.mlp import mlp
from gossamer.reuse.unlearning import METHODS, ForgetSplit, Influence, L1Sparse, Retrain, make_method
from gossamer.reuse.unlearning.descent import l1_schedule, reinitialised, wrong_labels
from gossamer.reuse.unlearning.fisher import FisherForgetting, fisher_diagonal
from gossamer.reuse.unlearning.influence import gradient_sum, mean_hessian, released_woodfisher, woodfisher
from gossamer.reuse.unlearning.masks import Job, resolve_masks, zero_masks
from gossamer.reuse.unlearning.methods import ALIASES
from gossamer.reuse.unlearning.samplewise import flat, sample_gradients
from gossamer.reuse.unlearning.split import labels_of

QUICK = {"retrain": {"epochs": 1}, "ft": {"epochs": 2, "lr": 0.05}, "ga": {"epochs": 2, "lr": 0.05}}
QUICK |= {"rl": {"epochs": 2, "lr": 0.05}, "ff": {"alpha": 1e-4}, "iu": {}, "l1": {"epochs": 2, "lr": 0.05}}


def blobs(n=60, classes=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return 2 * F.one_hot(y, 6).float().view(n, 1, 2, 3) + torch.randn(n, 1, 2, 3, generator=source), y


def net(norm=True):
    return mlp(shape=(1, 2, 3), classes=3, hidden=(12, 8), norm=norm)


def pruned(norm=True):
    """A network with half of two matrices exactly 0, and the masks of that."""
    model = net(norm)
    with torch.no_grad():
        for layer in (model.fc1, model.fc2):
            layer.weight[torch.rand(layer.weight.shape) < 0.5] = 0.0
    return model, zero_masks(model)


def job(masks=None, **options):
    return Job(masks or {}, device="cpu", **options)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("norm", [True, False])
def test_zeros_stay_exactly_zero_and_weights_move(name, norm):
    model, masks = pruned(norm)
    before = copy.deepcopy(model)
    split = ForgetSplit.by_index(blobs(), range(10))
    made = make_method(name, QUICK[name]).apply(model, split, job(masks))
    assert set(masks) == {"fc1.weight", "fc2.weight"}
    for key, mask in masks.items():
        weight = dict(made.named_parameters())[key]
        assert not weight[~mask].any()
        assert not torch.equal(weight, dict(before.named_parameters())[key])
        assert weight[mask].count_nonzero() > 0.9 * mask.sum()


def test_without_masks_the_noise_and_influence_methods_fill_the_zeros():
    """What the released code does, and why the masks are enforced."""
    for name in ("ff", "iu"):
        model, masks = pruned()
        made = make_method(name, QUICK[name]).apply(model, ForgetSplit.by_index(blobs(), range(10)), job())
        assert all(dict(made.named_parameters())[key][~mask].any() for key, mask in masks.items())


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits(name):
    split = ForgetSplit.by_index(blobs(), range(10))
    model = net()
    first, again = (make_method(name, QUICK[name]).apply(copy.deepcopy(model), split, job(seed=3)) for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


@pytest.mark.parametrize("name", ["ft", "ga", "rl", "l1"])
def test_no_epoch_changes_nothing(name):
    model = net()
    before = copy.deepcopy(model.state_dict())
    made = make_method(name, {"epochs": 0}).apply(model, ForgetSplit.by_index(blobs(), range(10)), job())
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_one_step_of_ascent_is_plus_the_gradient():
    x, y = blobs()
    split, model = ForgetSplit.by_index((x, y), range(10)), net(norm=False)
    before = [p.detach().clone() for p in model.parameters()]
    gradient = torch.autograd.grad(F.cross_entropy(model(x[:10]), y[:10]), list(model.parameters()))
    options = {"lr": 0.1, "epochs": 1, "momentum": 0.0, "weight_decay": 0.0}
    made = make_method("ga", options).apply(model, split, job())
    for new, old, g in zip(made.parameters(), before, gradient, strict=True):
        assert torch.allclose(new, old + 0.1 * g, atol=1e-6)


def test_one_step_of_l1_is_the_gradient_and_the_sign():
    x, y = blobs()
    split, model = ForgetSplit.by_index((x, y), range(10)), net(norm=False)
    before = [p.detach().clone() for p in model.parameters()]
    gradient = torch.autograd.grad(F.cross_entropy(model(x[10:]), y[10:]), list(model.parameters()))
    method = L1Sparse(lr=0.1, epochs=1, momentum=0.0, weight_decay=0.0, gamma=0.01)
    made = method.apply(copy.deepcopy(model), split, job())
    for new, old, g in zip(made.parameters(), before, gradient, strict=True):
        assert torch.allclose(new, old - 0.1 * (g + 0.01 * old.sign()), atol=1e-6)
    shrunk = L1Sparse(lr=0.1, epochs=1, momentum=0.0, weight_decay=0.0, gamma=0.2, prox=True).apply(model, split, job())
    for new, old, g in zip(shrunk.parameters(), before, gradient, strict=True):
        assert torch.allclose(new, F.softshrink(old - 0.1 * g, 0.02), atol=1e-6)
    assert sum(int((p == 0).sum()) for p in shrunk.parameters()) > 0


def test_the_penalty_falls_to_zero():
    rows = l1_schedule(2.0, 10).rows
    assert rows[0] == (0.0, 2.0)
    assert rows[-1][1] == pytest.approx(0.2)  # gamma / E in the last epoch
    tailed = l1_schedule(2.0, 10, tail=3)
    assert [value for _, value in tailed.rows[-3:]] == [0.0, 0.0, 0.0]
    assert tailed(0.0) == 2.0
    assert tailed.rows[1][1] == pytest.approx(2 * 6 / 7)
    assert l1_schedule(2.0, 10, tail=10) == Steps(((0.0, 2.0),))
    # every epoch of 7 steps has its own constant strength
    found = [l1_schedule(1.0, 10)(step / 70) for step in range(70)]
    assert found == pytest.approx([1 - step // 7 / 10 for step in range(70)])


def test_random_labels_are_wrong_and_all_classes_come():
    labels = torch.arange(300) % 3
    drawn = wrong_labels(labels, torch.arange(3), 0)
    assert not (drawn == labels).any()
    assert all(set(drawn[labels == c].tolist()) == {0, 1, 2} - {c} for c in range(3))
    gone = wrong_labels(torch.full((50,), 9), torch.tensor([1, 2]), 0)  # a class that is forgotten wholly
    assert set(gone.tolist()) == {1, 2}
    with pytest.raises(DataError, match="second class"):
        wrong_labels(torch.zeros(3).long(), torch.tensor([0]), 0)


def test_retraining_starts_from_new_weights():
    model = net()
    fresh = reinitialised(model)
    assert not torch.equal(fresh.fc1.weight, model.fc1.weight)
    assert torch.equal(fresh.bn1.running_var, torch.ones(12))
    given = net()
    made = Retrain(epochs=0, fresh=lambda: given).apply(model, ForgetSplit.by_index(blobs(), [0]), job())
    assert made is given

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ConfigError, match="fresh"):
        reinitialised(nn.Sequential(nn.Linear(2, 3), Bare()))


def test_ascent_that_diverges_is_stopped():
    split = ForgetSplit.by_index(blobs(), range(10))
    with pytest.raises(NumericsError, match="lower the learning rate"):
        make_method("ga", {"lr": 1e6, "epochs": 50}).apply(net(norm=False), split, job())


# ---------------------------------------------------------------- Fisher


def test_the_fisher_of_logistic_regression_is_known():
    """Two classes with logit w.x: sum_y p_y (p - e_y)^2 x^2 = p (1 - p) x^2 for either row."""
    model, x = nn.Linear(4, 2).double(), torch.randn(50, 4).double()
    found = fisher_diagonal(model, [(x[:20], None), (x[20:], None)])
    p = model(x).softmax(1)[:, 0]
    expected = ((p * (1 - p))[:, None] * x.square()).mean(0).detach()
    assert torch.allclose(found["weight"], expected.expand(2, 4))
    assert torch.allclose(found["bias"], (p * (1 - p)).mean().detach().expand(2))


def test_noise_follows_the_released_variances():
    """Where nothing is needed 1/F reaches its bound, so the noise has a known size; a forgotten class starts anew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
    before = copy.deepcopy(model)
    with torch.no_grad():
        before[3].weight.zero_()  # no gradient reaches the first layer
    x, y = blobs()
    split = ForgetSplit.by_class((x, y), 2)
    made = FisherForgetting(alpha=1e-4).apply(copy.deepcopy(before), split, job())
    noise = (made[1].weight - before[1].weight).std().item()
    assert noise == pytest.approx((1e-4 * 1e3) ** 0.5, rel=0.05)
    assert (made[1].bias - before[1].bias).std().item() == pytest.approx((1e-4 * 1e3 * 10) ** 0.5, rel=0.1)
    assert made[3].weight[2].std().item() == pytest.approx(1e-3**0.5, rel=0.1)
    assert made[3].weight[0].std().item() < 0.4  # alpha 100 10 at most


# ---------------------------------------------------------------- influence


def logistic(x, y, decay, steps=60):
    """The minimum of mean cross entropy + decay / 2 |w|^2 by Newton's method, in double precision."""
    model = nn.Linear(x.shape[1], int(y.max()) + 1).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    batches = Batches([x, y], 256)
    for _ in range(steps):
        w = flat(dict(model.named_parameters())).detach()
        slope = gradient_sum(model, batches) / len(y) + decay * w
        curved = mean_hessian(model, batches)
        curved.diagonal().add_(decay)
        torch.nn.utils.vector_to_parameters(w - torch.linalg.solve(curved, slope), model.parameters())
    return model


def vector(model):
    return flat(dict(model.named_parameters())).detach()


def test_newton_agrees_with_scikit_learn():
    x, y = blobs(150)
    x, decay = x.flatten(1).double(), 0.05
    x1 = torch.cat([x, torch.ones(150, 1)], 1)  # scikit-learn does not decay the intercept, so it is a feature here
    peer = LogisticRegression(C=1 / (decay * 150), fit_intercept=False, tol=1e-10, max_iter=10_000).fit(x1, y)
    mine = logistic(x, y, decay)
    ours = torch.cat([mine.weight, mine.bias[:, None]], 1).detach()
    assert torch.allclose(ours, torch.from_numpy(peer.coef_), atol=1e-5)


def test_influence_is_exact_leave_out_to_first_order():
    """Logistic regression: the error against truly leaving out falls with the square of what is left out."""
    x, y = blobs(300)
    x, decay = x.flatten(1).double(), 0.02
    model = logistic(x, y, decay)
    errors = []
    for count in (4, 16):
        split = ForgetSplit.by_index((x, y), range(count))
        exact = logistic(x[count:], y[count:], decay)
        moved = Influence(curvature="hessian", damping=decay).apply(copy.deepcopy(model), split, job())
        change = (vector(exact) - vector(model)).norm()
        errors.append(float((vector(moved) - vector(exact)).norm()))
        assert errors[-1] < 0.1 * change
    assert errors[0] < errors[1] / 6


def test_influence_is_exact_for_ridge_regression():
    x = torch.randn(40, 5).double()
    target = x @ torch.randn(5, 1).double() + 0.1 * torch.randn(40, 1).double()

    def ridge(a, b):
        return torch.linalg.solve(a.T @ a / len(a) + 0.05 * torch.eye(5).double(), a.T @ b / len(a)).T

    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data = ridge(x, target)
    split = ForgetSplit(Batches([x[:7], target[:7]]), Batches([x[7:], target[7:]]), None, ())
    loss = lambda out, wanted: (out - wanted).square().mean() / 2  # noqa: E731
    moved = Influence(curvature="hessian", damping=0.05, loss=loss).apply(model, split, job())
    assert torch.allclose(moved.weight, ridge(x[7:], target[7:]), atol=1e-10)


def test_woodfisher_is_the_product_of_rank_one_updates():
    """Five parameters: our one solve, the recursion of Singh and Alistarh, and the inverse itself."""
    g, v = torch.randn(12, 5).double(), torch.randn(5).double()
    found = woodfisher(3, list(g.split(5)).__getitem__, v, 0.1)
    inverse = torch.eye(5).double() / 0.1
    for row in g:  # Sherman-Morrison
        inverse = inverse - torch.outer(inverse @ row, row @ inverse) / (12 + row @ inverse @ row)
    assert torch.allclose(found, inverse @ v)
    assert torch.allclose(found, torch.linalg.inv(0.1 * torch.eye(5).double() + g.T @ g / 12) @ v)


def test_the_released_recursion_is_what_it_is():
    """It equals the product of its own rank-one factors, and touches the first gradient's direction only."""
    g, v = torch.randn(12, 5).double(), torch.randn(5).double()
    found = released_woodfisher(list(g), v)
    product, o = torch.eye(5).double(), g[0]
    for row in g[1:]:
        product = (torch.eye(5).double() - torch.outer(o, row) / (12 + o @ row)) @ product
        o = o - (o @ row) / (12 + o @ row) * o
    assert torch.allclose(found, product @ v)
    change, direction = found - v, g[0] / g[0].norm()
    assert torch.allclose(change, (change @ direction) * direction, atol=1e-12)


def test_sample_gradients_are_those_of_single_samples():
    model, (x, y) = net().eval(), blobs(7)
    rows = sample_gradients(model, x, y)
    for row, a, b in zip(rows, x, y, strict=True):
        one = torch.autograd.grad(F.cross_entropy(model(a[None]), b[None]), list(model.parameters()))
        assert torch.allclose(row, torch.cat([g.flatten() for g in one]), atol=1e-6)
    total = gradient_sum(model.train(), Batches([x, y], 3))
    assert torch.allclose(total, rows.sum(0), atol=1e-5)
    assert model.training


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("finetune", {}, "did you mean 'fine-tune'"),
        ("l2", {}, "'l1'"),
        ("l1", {"gama": 1}, "did you mean 'gamma'"),
        ("l1", {"gamma": -1}, "gamma=-1"),
        ("l1", {"tail": 11}, "tail=11"),
        ("l1", {"gamma": float("nan")}, "gamma=nan"),
        ("ft", {"lr": 0}, "lr"),
        ("ft", {"lr": float("nan")}, "lr"),
        ("ft", {"epochs": -1}, "epochs >= 0"),
        ("ft", {"batch_size": 0}, "batch_size >= 1"),
        ("ff", {"alpha": 0}, "alpha"),
        ("ff", {"samples": 0}, "samples"),
        ("iu", {"alpha": -2.0}, "alpha"),
        ("iu", {"alpha": float("nan")}, "alpha"),
        ("iu", {"curvature": "hesian"}, "did you mean 'hessian'"),
        ("iu", {"damping": 0.0}, "damping"),
    ],
)
def test_bad_settings(name, options, words):
    with pytest.raises(ConfigError, match=words):
        make_method(name, options)


def test_names_in_full():
    assert {type(make_method(name)) for name in ALIASES} | {Retrain} == set(METHODS.values())


def test_bad_models():
    split = ForgetSplit.by_index(blobs(), range(10))
    frozen = net()
    frozen.fc1.weight.requires_grad_(False)
    for name in ("ff", "iu"):
        with pytest.raises(ConfigError, match=r"fc1\.weight"):
            make_method(name).apply(frozen, split, job())
    with pytest.raises(ConfigError, match="too large"):
        Influence(curvature="hessian").apply(mlp(shape=(1, 2, 3), classes=3), split, job())
    with pytest.raises(NumericsError, match="singular"):
        Influence(curvature="hessian", damping=0.0).apply(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), _zeros(), job())
    with pytest.raises(ConfigError, match="no layer"):
        FisherForgetting(output="had").apply(net(), split, job())
    with pytest.raises(ConfigError, match="give epochs to it"):
        make_method(L1Sparse(), {"epochs": 3})


def _zeros():
    y = torch.arange(9) % 3
    return ForgetSplit.by_index((torch.zeros(9, 6), y), [0])


def test_bad_masks():
    model, masks = pruned()
    assert resolve_masks(model, None) == {}
    assert set(resolve_masks(model, masks)) == set(masks)
    with pytest.raises(ConfigError, match="did you mean 'fc1"):
        resolve_masks(model, {"fc1.weigth": masks["fc1.weight"]})
    with pytest.raises(ConfigError, match="zeros"):
        resolve_masks(model, "zero")
    with pytest.raises(ShapeError, match=r"fc1\.weight"):
        resolve_masks(model, {"fc1.weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(MaskError, match="keeps nothing"):
        resolve_masks(model, {"fc1.weight": torch.zeros(12, 6, dtype=torch.bool)})
    with pytest.raises(MaskError, match="not this model's"):
        resolve_masks(net(), masks)
    bias = {"fc1.bias": torch.tensor([True] * 11 + [False])}
    with pytest.raises(ConfigError, match=r"fc1\.bias"):
        make_method("ft").apply(net(norm=False), ForgetSplit.by_index(blobs(), [0]), job(bias))


def test_labels_are_left_alone():
    x, y = blobs()
    kept = y.clone()
    split = ForgetSplit.by_index((x, y), range(10))
    make_method("rl", QUICK["rl"]).apply(net(), split, job())
    assert torch.equal(labels_of(split.forget), kept[:10])
    assert torch.equal(y, kept)
