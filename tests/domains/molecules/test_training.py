"""The dense rival: e3nn's products equal ours, its symmetries, and a training that is interrupted."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gossamer.domains.molecules import (
    QHNet,
    Settings,
    Shape,
    SPHNet,
    ThreePhase,
    evaluate,
    geometries,
    make,
    on_cuequivariance,
    train,
)
from gossamer.domains.molecules.basis import rotation_of_orbitals
from gossamer.domains.molecules.irreps import triples
from gossamer.domains.molecules.product import PathProduct, normalisation
from gossamer.domains.molecules.qhnet import E3nnProduct
from gossamer.domains.molecules.scf import Molecule
from gossamer.errors import CheckpointError, ConfigError, MissingExtra

SHAPE = Shape(lmax=2, channels=4)


@pytest.fixture(scope="module")
def water():
    return make(geometries("water", 4, seed=4))


@pytest.mark.parametrize("shared", [False, True])
def test_its_products_are_ours(shared):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 3, 9, generator=generator)
    weights = torch.randn(5, len(triples(2)), 3, generator=generator)
    y = y[:, :1] if shared else y
    ours = PathProduct(triples(2), 2, 2, normalisation(triples(2)))
    torch.testing.assert_close(E3nnProduct(2, 3, shared)(x, y, weights), ours(x, y, weights), atol=1e-5, rtol=1e-4)


def test_cuequivariance_computes_the_same(water):
    pytest.importorskip("cuequivariance_torch", reason="needs the extra 'molecules-cuda'")
    torch.manual_seed(0)
    model = SPHNet(water.layout, dataclasses.replace(SHAPE, layers=2))
    with pytest.raises(ConfigError, match="freeze"):
        on_cuequivariance(model)
    ThreePhase().step(model, 1, 4)
    small, molecules = model.freeze(), [s.molecule for s in water.samples]
    fast = on_cuequivariance(small)
    assert not [m for m in fast.modules() if isinstance(m, PathProduct)]
    for one, two in zip(small.predict(molecules), fast.predict(molecules), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_cuequivariance_that_is_not_there_is_named(water, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuequivariance", None)
    model = SPHNet(water.layout, dataclasses.replace(SHAPE, sparsity=0.0))
    with pytest.raises(MissingExtra, match="molecules-cuda"):
        on_cuequivariance(model.freeze())


def test_it_obeys_the_law_of_rotation_and_learns(water):
    torch.manual_seed(0)
    model = QHNet(water.layout, lmax=2, channels=4, convolutions=3)
    molecule, turn = water.samples[0].molecule, Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    first, second = model.predict([molecule, Molecule(molecule.numbers, molecule.positions @ turn.T)])
    law = rotation_of_orbitals("sto-3g", molecule.numbers, turn)
    np.testing.assert_allclose(law @ first @ law.T, second, atol=2e-6)
    losses = train(model, water, Settings(steps=20, batch=4))
    assert losses[-1] < losses[0]
    assert evaluate(model, water)["h_mae"] > 0


class StopError(Exception):
    """Pulls the plug."""


def interrupted(model, data, settings, path, passes=9):
    """Train until so many forward passes are through; the state is saved after every seventh step."""
    calls = iter(range(passes))

    def forward(module, arguments):
        if next(calls, None) is None:
            raise StopError

    with model.register_forward_pre_hook(forward), pytest.raises(StopError):
        train(model, data, settings, state=path, every=7)


def test_an_interrupted_training_ends_with_the_same_bits(water, tmp_path):
    settings, path = Settings(steps=30, batch=3), tmp_path / "state.json"

    def fresh():
        torch.manual_seed(1)
        return SPHNet(water.layout, SHAPE)

    whole, parts = fresh(), fresh()
    losses = train(whole, water, settings)
    for _ in range(2):  # saved after step 7, in the adaptive phase, and after step 14, behind it
        interrupted(fresh(), water, settings, path)
    assert train(parts, water, settings, state=path, every=7) == losses
    for one, two in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_training_is_refused(water, tmp_path):
    path = tmp_path / "state.json"
    interrupted(SPHNet(water.layout, SHAPE), water, Settings(steps=20, batch=3), path)
    other = SPHNet(water.layout, SHAPE)
    with pytest.raises(CheckpointError, match="another settings"):
        train(other, water, Settings(steps=21, batch=3), state=path)
    with pytest.raises(CheckpointError, match="another data"):
        train(other, water.split(3)[0], Settings(steps=20, batch=3), state=path)
    with pytest.raises(CheckpointError, match="another network"):
        train(SPHNet(water.layout, Shape(lmax=3, channels=4)), water, Settings(steps=20, batch=3), state=path)
    with pytest.raises(ConfigError, match="every=0"):
        train(other, water, Settings(), state=path, every=0)
