"""Levels, threads and the behaviour without the extension."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from gossamer.errors import ConfigError
from gossamer.kernels import bitmap, native


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOSSAMER_CPU", "GOSSAMER_POOL")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=inherited | environment, check=False
    )


def test_the_best_level_is_used():
    assert native.levels()[0] == "none"
    out = run("from gossamer.kernels import native; print(native.level() == native.levels()[-1])")
    assert out.stdout.strip() == "True", out.stderr


def test_a_wrong_level_in_the_environment_is_named():
    assert "unknown processor level 'avx3'" in run("import gossamer.kernels", GOSSAMER_CPU="avx3").stderr


@pytest.mark.parametrize("name", native.levels())
def test_the_environment_forces_a_level(name):
    out = run("from gossamer.kernels import native; print(native.level())", GOSSAMER_CPU=name)
    assert out.stdout.strip() == name, out.stderr


def test_an_unknown_level_is_named():
    with pytest.raises(ConfigError, match="unknown processor level 'avx3'"):
        native.use("avx3")


def test_using_restores_the_level():
    before = native.level()
    with native.using("none"):
        assert native.level() == "none"
    assert native.level() == before


def test_info_has_what_a_bug_report_needs():
    info = native.info()
    assert info["level"] in info["levels"]
    assert info["threads"] >= 1
    assert info["version"]
    if info["level"] == "avx2":
        assert "avx2" in info["features"]


def test_threads_follow_torch_until_set():
    assert native.threads() == torch.get_num_threads()
    native.set_threads(3)
    try:
        assert native.threads() == 3
    finally:
        native.set_threads(None)
    assert native.threads() == torch.get_num_threads()
    with pytest.raises(ConfigError, match="at least 1"):
        native.set_threads(0)


WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["gossamer._native"] = None
warnings.simplefilter("always")
import torch
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from gossamer.kernels import bitmap, masking, native, topk
    assert not seen, "silent until first use"
    mask = torch.tensor([[True, False, True]])
    assert bitmap.pack(mask).tolist() == [[5]]
    assert bitmap.unpack(bitmap.pack(mask), (1, 3)).equal(mask)
    assert bitmap.popcount(bitmap.pack(mask)) == 2
    assert topk.topk_mask(torch.tensor([3.0, 1.0, 3.0]), 1).tolist() == [True, False, False]
    assert topk.nm_mask(torch.tensor([3.0, 1.0, 2.0, 3.0]), 2, 4).tolist() == [True, False, False, True]
    assert masking.apply_mask_(torch.ones(1, 3), mask).tolist() == [[1.0, 0.0, 1.0]]
ours = [w for w in seen if "gossamer" in str(w.message)]
assert len(ours) == 1 and ours[0].category is RuntimeWarning, [str(w.message) for w in seen]
assert "C++20 compiler" in str(ours[0].message)
print(native.level(), native.levels())
"""


def test_without_the_extension_the_references_run_with_one_warning():
    out = run(WITHOUT_EXTENSION)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "none ('none',)"


@pytest.fixture
def four_threads():
    native.set_threads(4)
    yield
    native.set_threads(None)


@pytest.mark.usefixtures("four_threads")
def test_many_python_threads_share_the_pool():
    masks = [torch.rand(300, 1000) > 0.5 for _ in range(4)]
    wrong = []

    def work(mask: torch.Tensor) -> None:
        same = (torch.equal(bitmap.unpack(bitmap.pack(mask), mask.shape), mask) for _ in range(20))
        wrong.extend(result for result in same if not result)

    workers = [threading.Thread(target=work, args=(mask,)) for mask in masks]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert not wrong


FORK = """
import os, torch
from gossamer.kernels import bitmap, native
native.set_threads(3)
mask = torch.rand(400, 1000) > 0.5
bits = bitmap.pack(mask)
expected = bits.numpy().tobytes()
child = os.fork()
if child == 0:  # torch's own loops may hang in a child
    os._exit(0 if bitmap.pack(mask).numpy().tobytes() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(bitmap.pack(mask), bits)
"""


@pytest.mark.parametrize("pool", ["", "own"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_the_pool_survives_a_fork(pool):
    out = run(FORK, GOSSAMER_POOL=pool)
    assert out.returncode == 0, out.stderr


THREADS = """
import os, torch
from gossamer.kernels import bitmap, native
def threads(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
torch.rand(3_000_000).exp()
before = threads()
mask = torch.rand(400, 1000) > 0.5
bits = bitmap.pack(mask)
print(native.extension().pool(), threads() - before, torch.equal(bitmap.unpack(bits, mask.shape), mask))
"""


@pytest.mark.parametrize(("pool", "said"), [("", "torch 0 True"), ("own", "own 2 True")])
@pytest.mark.skipif(native.level() == "none" or not os.path.exists("/proc/self/task"), reason="counts threads")
def test_torch_lends_its_threads(pool, said):
    out = run(THREADS, GOSSAMER_POOL=pool)
    assert out.stdout.strip() == said, out.stderr
