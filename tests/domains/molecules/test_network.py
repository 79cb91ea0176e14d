"""Data against PySCF, the network's symmetries in double precision, expansion, freezing, files."""

import dataclasses
import sqlite3

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gossamer.domains.molecules import (
    Labelled,
    Layout,
    Molecule,
    Settings,
    Shape,
    SPHNet,
    ThreePhase,
    coefficient_similarity,
    evaluate,
    geometries,
    iterations,
    label,
    load,
    load_model,
    make,
    read_qh9,
    read_sdf,
    read_xyz,
    save,
    save_model,
    solve,
    train,
)
from gossamer.domains.molecules.basis import rotation_of_orbitals, shells
from gossamer.domains.molecules.data import with_guess
from gossamer.domains.molecules.expansion import expansion_matrices
from gossamer.domains.molecules.graph import from_blocks, to_blocks
from gossamer.domains.molecules.training import mae_mse
from gossamer.errors import CheckpointError, ConfigError, DataError, NumericsError, ShapeError

SHAPE = Shape(lmax=2, channels=4)
TURN = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()


@pytest.fixture(scope="module")
def water():
    return make(geometries("water", 3, seed=4))


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def turned(molecule):
    return Molecule(molecule.numbers, molecule.positions @ TURN.T)


@pytest.mark.parametrize("basis", ["sto-3g", "def2-svp"])
def test_pyscfs_own_matrices_obey_the_law_of_rotation(basis):
    molecule = geometries("water", 1)[0]
    first, second = label(molecule, basis), label(turned(molecule), basis)
    law = rotation_of_orbitals(basis, molecule.numbers, TURN)
    np.testing.assert_allclose(law @ law.T, np.eye(len(law)), atol=1e-12)
    for name in ("fock", "guess", "overlap"):
        np.testing.assert_allclose(law @ getattr(first, name) @ law.T, getattr(second, name), atol=2e-6)


def test_the_true_matrix_gives_pyscfs_energies_and_saves_iterations(water):
    sample = water.samples[0]
    np.testing.assert_allclose(solve(sample.fock, sample.overlap)[0], sample.energies, atol=1e-8)
    assert coefficient_similarity(sample.fock, sample.fock, sample.overlap, 5) == pytest.approx(1)
    assert iterations(sample.molecule, "sto-3g", sample.fock) <= 2 < sample.cycles
    assert iterations(sample.molecule, "sto-3g") == sample.cycles


def test_blocks_and_back(water):
    molecules = [s.molecule for s in water.samples]
    matrices = [s.fock for s in water.samples]
    found = from_blocks(to_blocks(matrices, molecules, water.layout), molecules, water.layout)
    assert all(np.array_equal(a, b) for a, b in zip(found, matrices, strict=True))


def phases(model):
    yield "random", model
    for module in model.modules():
        if hasattr(module, "scores"):
            module.scores.data += 0.2 * torch.rand(len(module.orders))
    ThreePhase(0, 1).step(model, 0, 2)
    yield "adaptive", model
    yield "frozen", model.freeze()


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_the_network_obeys_the_same_law(double, water, sparsity):
    molecule = water.samples[0].molecule
    law = rotation_of_orbitals("sto-3g", molecule.numbers, TURN)
    torch.manual_seed(0)
    shape = dataclasses.replace(SHAPE, sparsity=sparsity, layers=2)
    predictions = {}
    for name, model in phases(SPHNet(water.layout, shape)):
        first, second = model.predict([molecule, turned(molecule)])
        predictions[name] = first
        assert np.abs(first).max() > 1e-3
        np.testing.assert_allclose(law @ first @ law.T, second, atol=1e-10)
        np.testing.assert_array_equal(first, first.T)
        shifted = Molecule(molecule.numbers, molecule.positions + 1.5)
        np.testing.assert_allclose(model.predict([shifted])[0], first, atol=1e-10)
        order = [0, 2, 1]
        swapped = Molecule(molecule.numbers, molecule.positions[order])
        orbitals = [0, 1, 2, 3, 4, 6, 5]
        np.testing.assert_allclose(model.predict([swapped])[0], first[np.ix_(orbitals, orbitals)], atol=1e-10)
    np.testing.assert_allclose(predictions["frozen"], predictions["adaptive"], atol=1e-12)


def test_expansion_matrices_are_orthonormal_and_complete():
    entries, matrices = expansion_matrices((0, 0, 1, 2))
    flat = matrices.flatten(1)
    assert len(flat) == 100  # every entry of the block
    torch.testing.assert_close(flat @ flat.T, torch.eye(100, dtype=torch.float64))
    assert (2, 3, 3) in entries


def test_the_pair_gate_leaves_other_pairs_alone():
    torch.manual_seed(0)
    molecules = geometries("water-dimer", 1)
    layout = Layout("sto-3g", (1, 8))
    one, two = (SPHNet(layout, dataclasses.replace(SHAPE, pair_sparsity=s)) for s in (0.0, 0.5))
    two.load_state_dict(one.state_dict())
    two.convolution.gate.sparsity = 0.0
    gated, whole = two.predict(molecules)[0], one.predict(molecules)[0]
    differs = np.abs(gated - whole) > 1e-7
    assert 0 < differs.mean() < 1
    assert not differs[:5, :5].any()  # an atom with itself: no pair


def test_training_lowers_the_error_and_the_same_seed_gives_the_same_bits(water):
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        model = SPHNet(water.layout, SHAPE)
        losses = train(model, water, Settings(steps=40, batch=3))
        results.append(model.predict([water.samples[0].molecule])[0])
    assert np.array_equal(*results)
    assert losses[-1] < losses[0] / 4
    assert evaluate(model, water)["h_mae"] < evaluate(None, water)["h_mae"]


def test_the_loss_by_hand(water):
    zero = to_blocks([np.zeros((7, 7))], [water.samples[0].molecule], water.layout)
    one = to_blocks([np.full((7, 7), 0.5)], [water.samples[0].molecule], water.layout)
    mask = to_blocks([np.ones((7, 7))], [water.samples[0].molecule], water.layout)
    assert float(mae_mse(zero, one, mask)) == pytest.approx(0.75)


def test_files_come_back(water, tmp_path):
    again = load(save(tmp_path / "water.npz", water))
    assert np.array_equal(again.samples[2].fock, water.samples[2].fock)
    assert again.basis == "sto-3g"
    (tmp_path / "cut.npz").write_bytes((tmp_path / "water.npz").read_bytes()[:-100])
    for name in ("cut.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            load(tmp_path / name)
    model = SPHNet(water.layout, SHAPE)
    ThreePhase().step(model, 1, 1)
    path = save_model(tmp_path / "model.safetensors", model)
    molecules = [water.samples[0].molecule]
    back = load_model(path)
    assert np.array_equal(back.predict(molecules)[0], model.predict(molecules)[0])
    assert len(back.freeze().layers[0].own.product.paths) == 4
    with pytest.raises(CheckpointError, match=r"water\.npz"):
        load_model(tmp_path / "water.npz")


def test_foreign_files(tmp_path):
    (tmp_path / "m.xyz").write_text("3\nwater\nO 0 0 0\nH 0.757 0.587 0\nH -0.757 0.587 0\n")
    assert read_xyz(tmp_path / "m.xyz")[0].numbers.tolist() == [8, 1, 1]
    sdf = "w\n x\n\n  2  1  0\n    0.0 0.0 0.0 F 0\n    0.9 0.0 0.0 H 0\nM  END\n$$$$\n"
    (tmp_path / "m.sdf").write_text(sdf * 2)
    assert len(read_sdf(tmp_path / "m.sdf")) == 2
    matrix, place = np.diag(np.arange(24.0)), geometries("water", 1)[0].positions
    with sqlite3.connect(tmp_path / "q.db") as base:
        base.execute("CREATE TABLE data (id INTEGER, N INTEGER, Z BLOB, pos BLOB, Ham BLOB)")
        row = (0, 3, np.array([8, 1, 1], np.int32).tobytes(), place.tobytes(), matrix.tobytes())
        base.execute("INSERT INTO data VALUES (?, ?, ?, ?, ?)", row)
    base.close()
    ((molecule, found),) = read_qh9(tmp_path / "q.db")
    assert np.array_equal(found, matrix)
    assert np.allclose(molecule.positions, place)
    for wrong in ("m.xyz", "absent.db"):
        with pytest.raises(DataError, match=wrong):
            read_qh9(tmp_path / wrong)


WATER = "3\nwater\nO 0 0 0\nH 0.757 0.587 0\nH -0.757 0.587 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5\ncut\nO 0 0 0\n", "line 1: a frame of 5 atoms, but 1 lines follow"),
        (WATER + "3\ncut\nO 0 0 0\nH 0 abc 1\nH 0 0 -1\n", "line 9: 'H 0 abc 1' is no atom"),
        (WATER + "water\n", "line 6: 'water' is no number of atoms"),
        (WATER + "1\nzinc\nZn 0 0 0\n", "line 6: unknown element 'Zn'"),
        (WATER + "2\n\nH 0 0 0\nH 0 0 nan\n", "line 6: positions hold NaN"),
        ("\n", "holds no molecule"),
    ],
)
def test_bad_lines_of_xyz_files_are_named(tmp_path, text, message):
    (tmp_path / "m.xyz").write_text(text)
    with pytest.raises(DataError, match=message):
        read_xyz(tmp_path / "m.xyz")


def test_bad_frames_may_be_left_out(tmp_path):
    (tmp_path / "m.xyz").write_text("1\nzinc\nZn 0 0 0\n\n" + WATER + WATER.replace("O", "8"))
    said = []
    found = read_xyz(tmp_path / "m.xyz", skip=said.append)
    assert [m.numbers.tolist() for m in found] == [[8, 1, 1]] * 2
    assert len(said) == 1
    assert "line 1: left out: unknown element 'Zn'" in said[0]
    with pytest.raises(DataError, match="cannot read molecules"):
        read_xyz(tmp_path / "absent.xyz")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("  3  1  0\n    0.0 0.0 0.0 F 0\n    0.9 0.0 0.0 H 0\n", "record 2: 3 atoms, but 2 lines follow"),
        ("  2  1  0\n    0.0 0.0 0.0 F 0\n    0.9 x 0.0 H 0\n", "record 2: 'H 0.9 x 0.0' is no atom"),
        ("  V3000\n", "record 2: no V2000 table"),
        ("  1  0  0\n    0.0 0.0 0.0 Zn 0\n", "record 2: unknown element 'Zn'"),
    ],
)
def test_bad_records_of_sdf_files_are_named(tmp_path, body, message):
    good = "w\n x\n\n  1  0  0\n    0.0 0.0 0.0 He 0\nM  END\n$$$$\n"
    (tmp_path / "m.sdf").write_text(good + f"w\n x\n\n{body}")
    with pytest.raises(DataError, match=message):
        read_sdf(tmp_path / "m.sdf")
    assert len(read_sdf(tmp_path / "m.sdf", limit=1)) == 1


def qh9(path, *rows, columns="id INTEGER, N INTEGER, Z BLOB, pos BLOB, Ham BLOB"):
    with sqlite3.connect(path) as base:
        base.execute(f"CREATE TABLE data ({columns})")
        for row in rows:
            base.execute(f"INSERT INTO data VALUES ({', '.join('?' * len(row))})", row)
    base.close()
    return path


def test_a_database_of_qh9s_form_holds_what_pyscf_computed(tmp_path):
    sample = label(geometries("water", 1)[0], "def2-svp")
    numbers = np.array([8, 1, 1], np.int32).tobytes()
    row = (7, 3, numbers, sample.molecule.positions.tobytes(), sample.fock.tobytes())
    ((molecule, fock),) = read_qh9(qh9(tmp_path / "stable.db", row))
    assert np.array_equal(molecule.positions, sample.molecule.positions)
    (held,) = with_guess([(molecule, fock)]).samples
    assert np.allclose(held.energies, sample.energies, atol=1e-8)
    assert np.allclose(held.guess, sample.guess)
    columns = "id INTEGER, geometry INTEGER, N INTEGER, Z BLOB, pos BLOB, Ham BLOB"
    moving = qh9(tmp_path / "dynamic.db", (7, 0, *row[1:]), columns=columns)
    assert np.array_equal(read_qh9(moving)[0][1], fock)


def test_bad_rows_of_a_database_are_named(tmp_path):
    numbers, places = np.array([2], np.int32).tobytes(), np.zeros(3).tobytes()
    skew = np.triu(np.ones((5, 5))).tobytes()
    for name, row, message in (
        ("size", (7, 1, numbers, places, np.zeros(4).tobytes()), "row 7: 4 entries for 5 orbitals"),
        ("bytes", (7, 1, numbers, places, b"abc"), "row 7: no atoms"),
        ("text", (7, 1, "He", places, skew), "row 7: no atoms"),
        ("skew", (7, 1, numbers, places, skew), "row 7: the matrix is not symmetric"),
        ("element", (7, 1, np.array([30], np.int32).tobytes(), places, skew), "row 7: element 30 is not supported"),
    ):
        with pytest.raises(DataError, match=message):
            read_qh9(qh9(tmp_path / f"{name}.db", row))
    with pytest.raises(DataError, match="holds no molecule"):
        read_qh9(qh9(tmp_path / "empty.db"))


def test_bad_molecules_are_named(water):
    with pytest.raises(DataError, match=r"0\.100 angstrom"):
        Molecule.of("H H", [[0, 0, 0], [0, 0, 0.1]])
    with pytest.raises(NumericsError, match="NaN"):
        Molecule.of("H H", [[0, 0, 0], [0, 0, np.nan]])
    with pytest.raises(ConfigError, match="unknown unit 'nm'"):
        Molecule.of("H H", [[0, 0, 0], [0, 0, 1]], unit="nm")
    with pytest.raises(DataError, match="unknown element 'Xx'"):
        Molecule.of("Xx", [[0, 0, 0]])
    with pytest.raises(DataError, match="open shell"):
        label(Molecule.of("O H", [[0, 0, 0], [0, 0, 1]]))
    with pytest.raises(ConfigError, match="unknown basis 'sto3g'; did you mean 'sto-3g'"):
        shells("sto3g", 1)
    with pytest.raises(DataError, match="did not converge in 1 iterations"):
        label(water.samples[0].molecule, max_cycle=1)
    fluoride = Molecule.of("F H", [[0, 0, 0], [0, 0, 0.9]])
    with pytest.raises(DataError, match="F is outside this basis, which has H, O"):
        SPHNet(water.layout, SHAPE).predict([fluoride])
    with pytest.raises(DataError, match="no pair"):
        SPHNet(water.layout, SHAPE).predict([Molecule.of("O", [[0, 0, 0]])])
    with pytest.raises(ConfigError, match="lmax=1 is too small"):
        SPHNet(water.layout, Shape(lmax=1))
    with pytest.raises(ShapeError, match="7 orbitals"):
        to_blocks([np.zeros((6, 6))], [water.samples[0].molecule], water.layout)
    broken = dataclasses.replace(water.samples[0], fock=water.samples[0].fock * np.nan)
    with pytest.raises(NumericsError, match="NaN"):
        train(SPHNet(water.layout, SHAPE), Labelled("sto-3g", (broken,)))
    with pytest.raises(NumericsError, match="positive definite"):
        solve(np.eye(2), np.ones((2, 2)))
