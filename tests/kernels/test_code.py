"""Machine code for one sparse matrix, against float64 and the generic kernel."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_products import check_close, sparse

from gossamer.kernels import formats, native
from gossamer.kernels.formats import machine_code, matrix
from gossamer.kernels.pack import pack_block, pack_csr_code, pack_csr_panel
from gossamer.kernels.spmm import linear, spmm

pytestmark = pytest.mark.skipif(native.level() != "avx512", reason="machine code is made for AVX-512 only")


def encoded(packed: formats.PackedWeight, most: int = formats.MOST_CODE):
    return native.extension().encode(matrix(native.extension(), packed), most)


@given(
    st.sampled_from([1, 25, 26, 27, 52, 60]),
    st.sampled_from([1, 6, 127, 300]),
    st.sampled_from([1, 15, 16, 17, 49, 130]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.booleans(),
)
@example(26, 130, 16, 1.0, False)  # more values than 8 bits of displacement reach
@example(3, 600, 5000, 0.5, True)  # several tiles of pixels
def test_code_agrees_with_float64(rows, columns, pixels, density, is_finished):
    torch.manual_seed(rows + columns)
    weight, x = sparse(rows, columns, density=density), torch.randn(columns, pixels)
    packed = pack_csr_code(weight)
    assert encoded(packed) is not None
    y, after = (weight.double() @ x.double()).float(), {}
    if is_finished:
        after = {"bias": torch.randn(rows), "residual": torch.randn(rows, pixels)}
        y = y + after["bias"][:, None] + after["residual"]
    check_close(spmm(packed, x, activation="relu6", **after), y, "relu6", columns)


def test_the_code_runs_and_not_the_generic_kernel():
    packed = pack_csr_code(torch.ones(3, 4))
    view = matrix(native.extension(), packed)  # encodes: the values are copied
    packed.values.zero_()
    assert view is not None
    assert spmm(packed, torch.ones(4, 2)).tolist() == [[4.0, 4.0]] * 3
    with native.using("avx2"):
        assert spmm(packed, torch.ones(4, 2)).tolist() == [[0.0, 0.0]] * 3


def test_any_thread_count_gives_the_same_bits():
    packed, x = pack_csr_code(sparse(150, 200)), torch.randn(200, 333)
    batch = torch.randn(40, 200)
    try:
        results = []
        for count in (1, 2, 5):
            native.set_threads(count)
            results.append(torch.cat([spmm(packed, x).flatten(), linear(packed, batch).flatten()]))
    finally:
        native.set_threads(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_code_is_made_once_and_ends_with_its_weight():
    packed = pack_csr_code(sparse(20, 30))
    view = matrix(native.extension(), packed)
    assert machine_code(native.extension(), packed, view) is machine_code(native.extension(), packed, view)
    before = len(formats._codes)
    del packed
    gc.collect()
    assert len(formats._codes) == before - 1


def test_no_code_beyond_the_limit_or_for_blocks():
    packed = pack_csr_panel(torch.ones(26, 100))
    assert encoded(packed, 2600 * 7 + 10_000) is not None
    assert encoded(packed, 2600 * 7 - 1) is None  # known before any of it is made
    assert encoded(packed, 2600 * 7 + 10) is None  # loads of x included
    assert encoded(pack_block(torch.ones(8, 8), 4)) is None


REFUSED = """
import ctypes, sys, torch
from gossamer.kernels import native
from gossamer.kernels.formats import matrix
from gossamer.kernels.pack import pack_csr_code
from gossamer.kernels.spmm import spmm
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit(77)
packed = pack_csr_code(torch.ones(3, 4))
assert native.extension().encode(matrix(native.extension(), packed), 1 << 20) is None
assert spmm(packed, torch.ones(4, 2)).tolist() == [[4.0, 4.0]] * 3
"""


def test_where_the_system_refuses_executable_memory_the_generic_kernel_runs():
    done = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=100)
    if done.returncode == 77:
        pytest.skip("this kernel cannot refuse executable memory")
    assert done.returncode == 0, done.stderr
