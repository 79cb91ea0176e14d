"""Traces: every format by hand-made files, round trips, and what is wrong with a file."""

import bz2
import gzip
import lzma
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.domains.branch_prediction import Trace, read, write
from gossamer.domains.branch_prediction.readers import read_text
from gossamer.errors import ConfigError, DataError

LINES = b"# a comment\n0x40d7f9 1\n\n40d81e 0\n0x40D7F9 1\n"


@pytest.mark.parametrize("pack", [bytes, bz2.compress, gzip.compress, lzma.compress])
def test_text_in_every_packing(tmp_path, pack):
    (tmp_path / "t").write_bytes(pack(LINES))
    trace = read(tmp_path / "t")
    assert trace.pc.tolist() == [0x40D7F9, 0x40D81E, 0x40D7F9]
    assert trace.taken.tolist() == [1, 0, 1]
    assert trace.instructions is None


@given(rows=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 1)), min_size=1, max_size=40))
@pytest.mark.parametrize("name", ["t.txt", "t.bz2", "t.gz", "t.xz", "t.npz"])
def test_what_is_written_is_read(tmp_path, name, rows):
    pcs, taken = zip(*rows, strict=True)
    trace = Trace(np.array(pcs, np.uint64), np.array(taken, np.uint8), 2 * len(rows))
    back = read(write(trace, tmp_path / name))
    assert back.pc.tolist() == list(pcs)
    assert back.taken.tolist() == list(taken)
    assert back.instructions == (2 * len(rows) if name == "t.npz" else None)


def test_cbp4_records(tmp_path):
    rows = [(0x100, 0, 2, 0), (0x104, 0x100, 6, 1), (0x108, 0x200, 5, 1), (0x10C, 0x100, 6, 0)]
    (tmp_path / "t.cbp4.gz").write_bytes(gzip.compress(b"".join(struct.pack("<IIBB", *row) for row in rows)))
    trace = read(tmp_path / "t.cbp4.gz")
    assert trace.pc.tolist() == [0x104, 0x10C]
    assert trace.taken.tolist() == [1, 0]
    assert trace.instructions == 4


def champsim(ip, branch, taken, writes, reads):
    registers = [*writes, *[0] * (2 - len(writes)), *reads, *[0] * (4 - len(reads))]
    return struct.pack("<QBB6B6Q", ip, branch, taken, *registers, *[0] * 6)


def test_champsim_records(tmp_path):
    ip, flags, stack = 26, 25, 6
    rows = [
        champsim(0x10, 0, 0, [3], [4]),
        champsim(0x14, 1, 1, [ip], [ip, flags]),  # conditional
        champsim(0x18, 1, 1, [ip], [ip]),  # direct jump
        champsim(0x1C, 1, 1, [ip, stack], [ip, stack]),  # call
        champsim(0x20, 1, 1, [ip], [9]),  # indirect jump
        champsim(0x24, 1, 0, [ip], [ip, 9]),  # conditional on a register
        champsim(0x28, 1, 1, [ip, stack], [stack]),  # return
    ]
    (tmp_path / "t.champsim.xz").write_bytes(lzma.compress(b"".join(rows)))
    trace = read(tmp_path / "t.champsim.xz")
    assert trace.pc.tolist() == [0x14, 0x24]
    assert trace.taken.tolist() == [1, 0]
    assert trace.instructions == 7


BT9 = b"""BT9_SPA_TRACE_FORMAT
bt9_minor_version: 0
BT9_NODES
NODE    0   0x0    -   0x0   0  class: JMP+DIR+UCD  behavior: DYN+DIR  taken_cnt: 1 not_taken_cnt: 0 tgt_cnt: 1
NODE    1   0x400a -   0x1   4  class: JMP+DIR+CND  behavior: DYN+DIR  taken_cnt: 2 not_taken_cnt: 1 tgt_cnt: 1
NODE    2   0x400e -   0x2   4  class: RET+IND+UCD  behavior: DYN+IND  taken_cnt: 1 not_taken_cnt: 0 tgt_cnt: 1
BT9_EDGES
EDGE 0 0 1 N 0x0    - 3 traverse_cnt: 1
EDGE 1 1 1 T 0x4000 - 5 traverse_cnt: 2
EDGE 2 1 2 N 0x400e - 1 traverse_cnt: 1
EDGE 3 2 1 T 0x5000 - 7 traverse_cnt: 1
BT9_EDGE_SEQUENCE
0
1
1
2 # leaves the loop
3
EOF
"""


def test_bt9_graph(tmp_path):
    (tmp_path / "t.bt9.trace.gz").write_bytes(gzip.compress(BT9))
    trace = read(tmp_path / "t.bt9.trace.gz")
    assert trace.pc.tolist() == [0x400A] * 3
    assert trace.taken.tolist() == [1, 1, 0]
    assert trace.instructions == 3 + 5 + 5 + 1 + 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"0x40 1\n0x44\n", "line 2: needs an address and an outcome, got '0x44'"),
        (b"0x40 1\n0x44 2\n", "line 2: outcome must be 0 or 1, got '2'"),
        (b"0x40 1\n\nzz 1\n", "line 3: address must be hexadecimal"),
        (b"1_0 1\n", "line 1: address must be hexadecimal"),
        (b"-4 1\n", "line 1: address must be hexadecimal"),
        (b"0x1ffffffffffffffff 1\n", "line 1: address must be hexadecimal, below 2\\^64"),
        (b"\xff\xfe 1\n", "line 1: address"),
        (b"0x40 1 1\n", "line 1: needs an address and an outcome"),
        (b"", "holds no conditional branch"),
        (b"# nothing\n", "holds no conditional branch"),
    ],
)
def test_a_bad_line_is_named(text, message):
    with pytest.raises(DataError, match=message):
        read_text(text, "t")


@pytest.mark.parametrize(("pack", "name"), [(bz2.compress, "bzip2"), (gzip.compress, "gzip"), (lzma.compress, "xz")])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_truncated_file_is_named(tmp_path, pack, name, keep):
    data = pack(np.random.default_rng(0).bytes(4000).hex().encode())
    (tmp_path / "t").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=f"truncated or damaged {name}"):
        read(tmp_path / "t")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.cbp4", b"12345", "no whole number of CBP-4 records of 10 bytes"),
        ("t.cbp4", struct.pack("<IIBB", 1, 2, 9, 0), "record 0 has the unknown kind 9"),
        ("t.cbp4", struct.pack("<IIBB", 1, 2, 6, 3), "outcome 3 of branch 0"),
        ("t.cbp4", struct.pack("<IIBB", 1, 2, 5, 1), "no conditional branch"),
        ("t.champsim", b"x" * 63, "no whole number of ChampSim records"),
        ("t.champsim", b"x" * 64, "neither branch nor other"),
        ("t.bt9", b"hello", "no BT9 trace"),
        ("t.bt9", BT9.replace(b"\n3\nEOF", b"\n9\nEOF"), "step 4 of the sequence takes an edge"),
        ("t.bt9", BT9.replace(b"\n3\nEOF", b"\nx\nEOF"), "line 17: needs the number of an edge"),
        ("t.npz", b"hello", "no trace in npz form"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "t.npz", pc=np.array([{}], object), taken=np.array([1]))
    with pytest.raises(DataError, match="no trace in npz form"):
        read(tmp_path / "t.npz")
    np.savez(tmp_path / "t.npz", pc=np.array([1.5]), taken=np.array([1]))
    with pytest.raises(DataError, match="pc must be a list of whole numbers"):
        read(tmp_path / "t.npz")


def test_a_missing_file_and_an_unknown_kind(tmp_path):
    with pytest.raises(DataError, match="cannot read trace"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match="did you mean 'cbp4'"):
        read(tmp_path / "none", "cbp5")


@pytest.mark.parametrize(
    ("pc", "taken", "instructions", "message"),
    [
        ([1, 2], [1], None, "equally long"),
        ([1, 2], [1, 2], None, "outcome 2 of branch 1 is neither"),
        ([1, 2], [1, 0], 1, "1 instructions for 2 branches"),
        ([], [], None, "no conditional branch"),
    ],
)
def test_arrays_that_are_no_trace(pc, taken, instructions, message):
    with pytest.raises(DataError, match=message):
        Trace(np.array(pc, np.uint64), np.array(taken, np.uint8), instructions)


def test_a_split_lies_between_0_and_1():
    trace = Trace(np.arange(10, dtype=np.uint64), np.zeros(10, np.uint8), 40)
    assert trace.cut(0.5) == 5
    assert trace.first(5).instructions == 20
    for split in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="strictly between 0 and 1"):
            trace.cut(split)
