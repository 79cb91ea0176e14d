"""Plan files: run without torch, and refuse whatever is damaged."""

import contextlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gossamer
from gossamer.engine import planfile
from gossamer.engine.runtime import Plan
from gossamer.errors import CheckpointError, ConfigError, ShapeError
from gossamer.kernels import native

pytestmark = pytest.mark.skipif(native.extension() is None, reason="needs the compiled kernels")


@pytest.fixture(scope="module")
def plan(digits):
    return gossamer.compile(digits, torch.randn(1, 1, 16, 16))


@pytest.fixture(scope="module")
def saved(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("plans") / "digits.plan"
    plan.save(path)
    return path


def test_a_saved_plan_gives_the_same_bits(plan, saved):
    x = np.random.default_rng(0).standard_normal((5, 1, 16, 16), np.float32)
    loaded = Plan.load(saved)
    assert np.array_equal(loaded(x), plan._native(torch.from_numpy(x), 1).numpy())
    assert str(loaded.report()) == str(plan.report())
    assert (loaded.input_shape, loaded.output_shape) == ((1, 16, 16), (10,))


def test_threads_do_not_change_the_bits(saved):
    x = np.random.default_rng(0).standard_normal((3, 1, 16, 16), np.float32)
    assert np.array_equal(Plan.load(saved, threads=1)(x), Plan.load(saved, threads=2)(x))


def test_a_loaded_plan_can_be_saved_again(saved, tmp_path):
    Plan.load(saved).save(tmp_path / "again.plan")
    x = np.ones((1, 1, 16, 16), np.float32)
    assert np.array_equal(Plan.load(tmp_path / "again.plan")(x), Plan.load(saved)(x))


def test_no_torch_is_needed(plan, saved, tmp_path):
    x = np.random.default_rng(1).standard_normal((2, 1, 16, 16), np.float32)
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
sys.modules["torch"] = None
import numpy as np
from gossamer.engine.runtime import Plan
plan = Plan.load(sys.argv[1])
np.save(sys.argv[3], plan(np.load(sys.argv[2])))
print(plan.report().layers[0].layer)
"""
    paths = [str(saved), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "stem.conv"
    assert np.array_equal(np.load(tmp_path / "y.npy"), Plan.load(saved)(x))


def test_bad_inputs_are_refused(saved):
    loaded = Plan.load(saved)
    with pytest.raises(ShapeError, match="compiled for"):
        loaded(np.zeros((1, 1, 8, 8), np.float32))
    for dtype in (np.float64, np.complex64):
        with pytest.raises(ConfigError, match="float32"):
            loaded(np.zeros((1, 1, 16, 16), dtype))
    with pytest.raises(ConfigError, match="numpy array"):
        loaded([1.0])
    with pytest.raises(ConfigError, match="threads"):
        Plan.load(saved, threads=0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.plan"):
        Plan.load(tmp_path / "nowhere.plan")


@pytest.mark.parametrize("length", [0, 5, 60, 96, 500, -1])
def test_a_truncated_file_is_refused(saved, tmp_path, length):
    path = tmp_path / "short.plan"
    path.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="truncated"):
        Plan.load(path)


@pytest.mark.parametrize(("step", "named"), [(1, "newer than"), (-1, "another version than")])
def test_another_version_is_refused(saved, tmp_path, step, named):
    data = bytearray(saved.read_bytes())
    data[8:16] = struct.pack("<Q", planfile.VERSION + step)
    (tmp_path / "other.plan").write_bytes(data)
    with pytest.raises(CheckpointError, match=f"version {planfile.VERSION + step}, {named}"):
        Plan.load(tmp_path / "other.plan")


def rewritten(saved: Path, path: Path, change) -> Path:
    """The file with changed contents and right checksums."""
    header, tables, constants = planfile.read(saved)
    constants = constants.copy()
    change(header, tables, constants)
    for key in ("tables", "constants"):
        header.pop(key)
    planfile.write(path, header, tables, constants)
    return path


def test_another_processor_level_is_refused(saved, tmp_path):
    path = rewritten(saved, tmp_path / "level.plan", lambda header, *_: header.update(level="neon"))
    with pytest.raises(CheckpointError, match=r"level 'neon', this is '.*compile the model again"):
        Plan.load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(saved, tmp_path, place, bit):
    data = bytearray(saved.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path = tmp_path / "flipped.plan"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"altered|truncated|no plan file|version"):
        Plan.load(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tables_out_of_range_never_reach_the_kernels(saved, tmp_path, data):
    """Whatever number of whatever table is changed, the file is refused or still runs inside of its memory."""
    name = data.draw(st.sampled_from(planfile.TABLES))
    odd = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 2**15, 2**31, 2**40, 2**62, 2**63 - 1]

    def change(header, tables, constants):
        table = tables[name]
        row = data.draw(st.integers(0, table.shape[0] - 1))
        column = data.draw(st.integers(0, table.shape[1] - 1))
        table[row, column] = data.draw(st.one_of(st.sampled_from(odd), st.integers(-100, 100_000)))

    path = rewritten(saved, tmp_path / "odd.plan", change)
    try:
        plan = Plan.load(path)
    except CheckpointError:
        return
    with contextlib.suppress(MemoryError):
        assert plan(np.ones((2, 1, 16, 16), np.float32)).shape == (2, 10)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_indices_out_of_range_are_refused(saved, tmp_path, data):
    """Pointers and column indices are checked where they lie."""

    def change(header, tables, constants):
        integers = [row for row in tables["arrays"].tolist() if row[2] in (1, 2) and row[1]]
        offset, count, kind = data.draw(st.sampled_from(integers))
        size = {1: 4, 2: 2}[kind]
        start = offset + size * data.draw(st.integers(0, count - 1))
        constants[start : start + size] = 0xFF

    path = rewritten(saved, tmp_path / "index.plan", change)
    with pytest.raises(CheckpointError, match="out of range"):
        Plan.load(path)


def test_a_header_that_lies_about_shapes_is_refused(saved, tmp_path):
    for key, value in (("input_shape", [1, 16, 17]), ("output_shape", []), ("source", 3), ("arena", 16), ("report", 1)):
        path = rewritten(saved, tmp_path / "lies.plan", lambda header, *_, k=key, v=value: header.update({k: v}))
        with pytest.raises(CheckpointError, match="damaged"):
            Plan.load(path)


def test_the_header_is_json(saved):
    data = saved.read_bytes()
    (length,) = struct.unpack_from("<Q", data, 16)
    assert json.loads(data[96 : 96 + length])["output_shape"] == [10]


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_a_number_of_threads_that_is_none_is_named(saved, monkeypatch, given):
    monkeypatch.setenv("GOSSAMER_THREADS", given)
    with pytest.raises(ConfigError, match=f"GOSSAMER_THREADS must be a number of at least 1, got '{given}'"):
        Plan.load(saved)(np.zeros((1, 1, 16, 16), np.float32))


def test_an_unknown_processor_level_is_named(saved):
    code = "import sys; from gossamer.engine.runtime import Plan; Plan.load(sys.argv[1])"
    environment = {**os.environ, "GOSSAMER_CPU": "avx3"}
    run = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True, env=environment)
    assert "unknown processor level (GOSSAMER_CPU) 'avx3'; did you mean 'avx" in run.stderr
