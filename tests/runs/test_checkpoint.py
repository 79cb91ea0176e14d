"""Checkpoints: bit-exact round trips, crashes, corruption, lies and foreign files."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.errors import CheckpointError
from gossamer.runs.checkpoint import VERSION, delete_state, load_meta, load_state, save_state
from gossamer.runs.rng import rng_state, seed_all, set_rng_state
from gossamer.runs.trees import check_same, load_model

SOURCE = str(Path(__file__).parents[2] / "src")


def same(a, b) -> bool:
    """Equal in structure, types and bits."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return torch.equal(*raw)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def run_child(code: str, *args: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, **options)


TREE = {
    "weights": {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([float("nan"), -0.0])},
    "masks": {"fc.weight": torch.tensor([[True, False, True], [False, False, True]])},
    "state": {0: {"step": torch.tensor(3.0), "betas": (0.9, 0.999)}, 1: {}},
    "numbers": [1, 2.5, float("inf"), None, True, "text", -0.0, 2**70],
    "$odd": {"$tensor": "not a tensor", "": []},
}


def test_round_trip_is_bit_exact_and_files_are_stable(tmp_path):
    first = save_state(tmp_path / "a", TREE, {"step": 3, "score": float("-inf")})
    tree, meta = load_state(first)
    assert same(tree, TREE)
    assert meta == {"step": 3, "score": float("-inf")} == load_meta(first)
    second = save_state(tmp_path / "b.json", tree, meta)
    assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.glob(".*"))


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
tensors = st.builds(
    lambda shape, dtype, seed: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    dtypes,
    st.integers(0, 9),
)
keys = st.one_of(st.text(max_size=4), st.integers())
trees = st.recursive(
    leaves | tensors,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_tree_comes_back(tmp_path_factory, tree):
    path = save_state(tmp_path_factory.mktemp("any") / "x", tree)
    assert same(load_state(path)[0], tree)


def test_views_transposes_and_shared_memory_are_saved_as_values(tmp_path):
    base = torch.arange(24.0)
    image = base.reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    tree = {"base": base, "again": base, "part": base[3:5], "turned": base.reshape(4, 6).T, "image": image}
    assert same(load_state(save_state(tmp_path / "x", tree))[0], tree)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, 0.1, foreach=False),
        lambda p: torch.optim.AdamW(p, 0.1, amsgrad=True),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5, centered=True),
    ],
)
def test_optimiser_state_round_trips_and_goes_on_to_the_same_bits(tmp_path, make):
    def step(net, optimizer, seed):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = make(net.parameters())
    for seed in range(3):
        step(net, optimizer, seed)
    path = save_state(tmp_path / "x", {"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    tree, _ = load_state(path)
    assert same(tree["optimizer"], optimizer.state_dict())
    other = nn.Linear(3, 2)
    load_model(other, tree["net"])
    resumed = make(other.parameters())
    resumed.load_state_dict(tree["optimizer"])
    step(net, optimizer, 9)
    step(other, resumed, 9)
    assert same(dict(net.state_dict()), dict(other.state_dict()))


def test_random_generators_round_trip(tmp_path):
    import numpy as np

    def draw():
        return torch.rand(3).tolist(), np.random.rand(2).tolist(), random.gauss(0, 1), random.random()  # noqa: NPY002

    before = rng_state()
    try:
        seed_all(5)
        draw()
        path = save_state(tmp_path / "rng", rng_state())
        expected = draw()
        seed_all(6)
        assert draw() != expected
        set_rng_state(load_state(path)[0])
        assert draw() == expected
    finally:
        set_rng_state(before)


def test_a_foreign_leaf_is_named():
    with pytest.raises(CheckpointError, match=r"a/1/f is a function"):
        save_state("unused", {"a": [0, {"f": lambda: 0}]})
    with pytest.raises(CheckpointError, match="meta holds the tensor w"):
        save_state("unused", {}, {"w": torch.zeros(1)})


def test_the_files_have_the_usual_permissions(tmp_path):
    save_state(tmp_path / "x", {"x": torch.zeros(3)})
    (tmp_path / "plain").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_replacing_removes_the_old_payload_only(tmp_path):
    save_state(tmp_path / "run", {"x": torch.zeros(3)})
    neighbour = save_state(tmp_path / "run.2", {"x": torch.full((3,), 2.0)})
    save_state(tmp_path / "run", {"x": torch.ones(3)})
    assert len(list(tmp_path.iterdir())) == 4
    assert load_state(tmp_path / "run")[0]["x"].tolist() == [1, 1, 1]
    assert load_state(neighbour)[0]["x"].tolist() == [2, 2, 2]
    delete_state(tmp_path / "run")
    assert len(list(tmp_path.iterdir())) == 2


# corruption


def checkpoint_files(folder: Path) -> tuple[Path, Path]:
    path = save_state(folder / "x", TREE, {"step": 3})
    return path, next(folder.glob("x.*.safetensors"))


@pytest.mark.parametrize("which", [0, 1], ids=["manifest", "payload"])
def test_every_bit_flip_and_truncation_is_noticed(tmp_path, which):
    path = checkpoint_files(tmp_path)[0]
    file = checkpoint_files(tmp_path)[which]
    good = file.read_bytes()
    draw = random.Random(which)
    for _ in range(500):
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        file.write_bytes(bad)
        try:  # a flip may hit what carries no data, such as the case of a \u escape; else it must be noticed
            tree, meta = load_state(path)
        except CheckpointError:
            continue
        assert same(tree, TREE)
        assert meta == {"step": 3}
    lengths = sorted({draw.randrange(len(good)) for _ in range(100)})
    for length in lengths:
        file.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            load_state(path)
    for bad in (b"\0" + good, good + b"\0", good + good):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_state(path)
    file.write_bytes(good)
    assert same(load_state(path)[0], TREE)


def test_the_message_names_the_damage(tmp_path):
    path, payload = checkpoint_files(tmp_path)
    content = bytearray(payload.read_bytes())
    content[-1] ^= 1
    payload.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\..*safetensors is damaged: its checksum"):
        load_state(path)
    payload.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is truncated or extended"):
        load_state(path)
    payload.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load_state(path)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_state(tmp_path / "other")


def forge(path: Path, change) -> None:
    """Rewrite a manifest with a true checksum, as somebody with bad intentions would."""
    from gossamer.runs.checkpoint import _digest_of

    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    path.write_text(json.dumps(body | {"sha256": _digest_of(body)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.update(tree={"$tensor": "absent"}),
        lambda body: body.update(tree={"$tensor": 5}),
        lambda body: body.update(tree={"$items": 5}),
        lambda body: body.update(tree={"$items": [[[1], 2]]}),
        lambda body: body.update(tree={"$float": "one"}),
        lambda body: body.update(payload="../../etc/passwd"),
        lambda body: body.update(payload=None),
        lambda body: body.pop("tree"),
        lambda body: body.pop("meta"),
        lambda body: body.update(bytes="many"),
    ],
)
def test_lies_in_the_manifest_raise_our_error(tmp_path, change):
    path, _ = checkpoint_files(tmp_path)
    forge(path, change)
    with pytest.raises(CheckpointError):
        load_state(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
        b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":5}',
        b'{"x":' * 5000,
        b"",
    ],
)
def test_lies_in_the_payload_raise_our_error(tmp_path, header):
    import hashlib

    path, payload = checkpoint_files(tmp_path)
    content = len(header).to_bytes(8, "little") + header + b"\0" * 4
    digest = hashlib.sha256(content).hexdigest()
    payload.with_name(f"x.{digest[:16]}.safetensors").write_bytes(content)
    forge(path, lambda body: body.update(payload=digest, bytes=len(content)))
    with pytest.raises(CheckpointError):
        load_state(path)


def test_deep_and_huge_manifests_are_refused(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text('{"format":"gossamer-state","version":1,"tree":' + "[" * 200_000)
    with pytest.raises(CheckpointError, match="truncated, altered or no checkpoint"):
        load_state(path)
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse: reading it would need a gigabyte
    with pytest.raises(CheckpointError, match="too large"):
        load_state(path)


def test_a_newer_version_is_refused_by_name(tmp_path):
    path, _ = checkpoint_files(tmp_path)
    forge(path, lambda body: body.update(version=VERSION + 1))
    with pytest.raises(CheckpointError, match=f"format version {VERSION + 1}; this Gossamer reads version {VERSION}"):
        load_state(path)


def test_pickles_are_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    for legacy in (False, True):
        path = tmp_path / "model.pt"
        torch.save({"w": Bomb()}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=r"looks like a pickle.*never unpickles"):
            load_state(path)
    assert not (tmp_path / "exploded").exists()


def test_another_model_is_refused_with_the_nearest_name():
    state = nn.Sequential(nn.Linear(3, 2)).state_dict()
    with pytest.raises(CheckpointError, match=r"0\.weight is missing.*nearest: weight.*2 missing, 2 unknown"):
        load_model(nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2).state_dict())
    with pytest.raises(CheckpointError, match=r"0\.weight is \(2, 3\) of torch.float32.*\(2, 4\)"):
        load_model(nn.Sequential(nn.Linear(4, 2)), state)
    with pytest.raises(CheckpointError, match=r"0\.bias is unknown to the model"):
        load_model(nn.Sequential(nn.Linear(3, 2, bias=False)), state)
    with pytest.raises(CheckpointError, match="float64"):
        check_same(state, nn.Sequential(nn.Linear(3, 2)).double().state_dict())
    fresh = nn.Sequential(nn.Linear(3, 2))
    load_model(fresh, state)
    assert same(dict(fresh.state_dict()), dict(state))


# crashes and full disks

FORK_AND_KILL = """
    import os, random, signal, sys, time, torch
    from gossamer.runs.checkpoint import load_state, save_state
    torch.set_num_threads(1)
    path, draw, leftovers = sys.argv[1], random.Random(1), 0
    save_state(path, {"x": torch.zeros(50_000), "step": 0})
    for moment in range(50):
        child = os.fork()
        if child == 0:
            step = load_state(path)[0]["step"]
            while True:
                step += 1
                save_state(path, {"x": torch.full((50_000,), float(step)), "step": step})
        time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        tree, _ = load_state(path)
        assert tree["x"].unique().tolist() == [tree["step"]], moment
    assert tree["step"] > 0
    print("leftovers", sum(name.startswith(".") for name in os.listdir(os.path.dirname(path))))
"""


def test_fifty_kills_during_saves(tmp_path):
    done = run_child(FORK_AND_KILL, str(tmp_path / "x"))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 0, "no kill fell into a save: the test shows nothing"
    assert load_state(tmp_path / "x")[0]["step"] > 0


SAVE_LARGE = """
    import resource, sys, torch
    from gossamer.errors import CheckpointError
    from gossamer.runs.checkpoint import save_state
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    for large in (torch.zeros(100_000), "y" * 100_000):  # in the payload, in the manifest
        try:
            save_state(sys.argv[1], {"x": large})
        except CheckpointError as error:
            print(error)
"""


def test_a_full_disk_is_a_clear_error_and_the_old_file_is_intact(tmp_path):
    path = save_state(tmp_path / "x", TREE)
    done = run_child(SAVE_LARGE, str(path))
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert "cannot write" in line
        assert "File too large" in line
        assert "An earlier file of that name is untouched" in line
    assert same(load_state(path)[0], TREE)
    assert not list(tmp_path.glob(".*"))


SAVE_READ_ONLY = """
    import os, sys
    from gossamer.errors import CheckpointError
    from gossamer.runs.checkpoint import save_state
    os.chdir(sys.argv[1])
    if os.getuid() == 0:
        os.setuid(65534)  # permissions do not bind root
    try:
        save_state("x", {})
    except CheckpointError as error:
        print(error)
"""


def test_a_read_only_folder_is_a_clear_error(tmp_path):
    path = save_state(tmp_path / "x", TREE)
    tmp_path.chmod(0o555)
    try:
        done = run_child(SAVE_READ_ONLY, str(tmp_path))
    finally:
        tmp_path.chmod(0o755)
    assert "cannot write x.json:" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout
    assert same(load_state(path)[0], TREE)


MEASURE = """
    import sys, torch
    from gossamer.runs.checkpoint import load_state, save_state
    def memory(key):
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
    def measure(work):
        open("/proc/self/clear_refs", "w").write("5")  # forget the peak so far
        before = memory("VmRSS")
        work()
        return (memory("VmHWM") - before) / (4 * 2**23)
    save_state(sys.argv[1] + "-warm", {"x": torch.zeros(10)}); load_state(sys.argv[1] + "-warm")
    x = torch.ones(2**23)
    print(measure(lambda: save_state(sys.argv[1], {"x": x})), measure(lambda: load_state(sys.argv[1])))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's record of the peak")
def test_memory_stays_below_twice_the_file(tmp_path):
    done = run_child(MEASURE, str(tmp_path / "x"))
    saving, loading = map(float, done.stdout.split())
    assert saving <= 0.1, "saving copies nothing that is on the CPU"
    assert loading <= 2.05
