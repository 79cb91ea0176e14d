"""Trace formats of the branch prediction championships and of ChampSim."""

from __future__ import annotations

import re

import numpy as np

from ...errors import DataError
from .trace import Trace

# CBP-4 (2014) tracer: one record per instruction, little-endian, without padding.
_CBP4 = np.dtype([("pc", "<u4"), ("target", "<u4"), ("kind", "u1"), ("taken", "u1")])
_CBP4_CONDITIONAL, _CBP4_KINDS = 6, 8

# ChampSim's input_instr: 64 bytes per instruction.
_CHAMPSIM = np.dtype(
    [
        ("ip", "<u8"),
        ("is_branch", "u1"),
        ("taken", "u1"),
        ("writes", "u1", 2),
        ("reads", "u1", 4),
        ("stores", "<u8", 2),
        ("loads", "<u8", 4),
    ]
)
_STACK, _IP = 6, 26
_NODE = re.compile(rb"NODE\s+(\d+)\s+(0x[0-9a-fA-F]+|\d+)\s+\S+\s+\S+\s+\d+\s+class:\s*(\S+)")
_EDGE = re.compile(rb"EDGE\s+(\d+)\s+(\d+)\s+(\d+)\s+([TN])\s+\S+\s+\S+\s+(\d+)")


def _records(data: bytes, kind: np.dtype, name: str, what: str) -> np.ndarray:
    if len(data) % kind.itemsize:
        raise DataError(
            f"{name}: {len(data)} bytes are no whole number of {what} records of {kind.itemsize} bytes; truncated?"
        )
    return np.frombuffer(data, kind)


def read_cbp4(data: bytes, name: str) -> Trace:
    """Binary records (pc, target, kind, taken) of 10 bytes, one per instruction; kind 6 is a conditional branch."""
    rows = _records(data, _CBP4, name, "CBP-4")
    bad = np.flatnonzero(rows["kind"] >= _CBP4_KINDS)
    if bad.size:
        raise DataError(f"{name}: record {bad[0]} has the unknown kind {rows['kind'][bad[0]]}; is it a CBP-4 trace?")
    found = rows[rows["kind"] == _CBP4_CONDITIONAL]
    return Trace(found["pc"].astype(np.uint64), found["taken"], len(rows), name)


def read_champsim(data: bytes, name: str) -> Trace:
    """ChampSim instructions; a branch that writes the instruction pointer and reads it and other registers, but not
    the stack pointer, is conditional (x86: it reads the flags)."""
    rows = _records(data, _CHAMPSIM, name, "ChampSim")
    if (rows["is_branch"] > 1).any():
        at = int(np.flatnonzero(rows["is_branch"] > 1)[0])
        raise DataError(f"{name}: record {at} is neither branch nor other; is it a ChampSim trace?")
    reads, writes = rows["reads"], rows["writes"]
    conditional = (rows["is_branch"] == 1) & (writes == _IP).any(1) & (reads == _IP).any(1)
    others = (reads != 0) & (reads != _IP) & (reads != _STACK)
    conditional &= others.any(1) & ~(reads == _STACK).any(1)
    found = rows[conditional]
    return Trace(found["ip"], found["taken"], len(rows), name)


def read_bt9(data: bytes, name: str) -> Trace:
    """CBP-5 (2016) traces: a graph of branches (nodes) and the code between them (edges), then the edges in order.

    Executing an edge is executing the branch at its source; node 0 is the start and no branch.
    """
    head, mark, tail = data.partition(b"BT9_EDGE_SEQUENCE")
    if not head.lstrip().startswith(b"BT9_SPA_TRACE_FORMAT") or not mark:
        raise DataError(f"{name}: no BT9 trace: needs the line BT9_SPA_TRACE_FORMAT and the part BT9_EDGE_SEQUENCE")
    nodes = {int(m[1]): (int(m[2], 0), b"CND" in m[3]) for m in _NODE.finditer(head)}
    edges = {int(m[1]): (int(m[2]), m[4] == b"T", int(m[5])) for m in _EDGE.finditer(head)}
    order = _sequence(tail, name, head.count(b"\n") + 1)
    size = max(edges, default=-1) + 1
    pc, taken, length = np.zeros(size, np.uint64), np.zeros(size, np.uint8), np.zeros(size, np.int64)
    known, conditional = np.zeros(size, bool), np.zeros(size, bool)
    for edge, (source, way, count) in edges.items():
        address, branches = nodes.get(source, (0, False))
        pc[edge], taken[edge], length[edge], known[edge], conditional[edge] = address, way, count, True, branches
    bad = np.flatnonzero((order >= size) | ~known[np.minimum(order, max(size - 1, 0))]) if size else np.arange(1)
    if bad.size:
        raise DataError(f"{name}: step {bad[0]} of the sequence takes an edge that is not in the table of edges")
    chosen = order[conditional[order]]
    instructions = max(int(length[order].sum()), len(chosen))
    return Trace(pc[chosen], taken[chosen], instructions, name)


def _sequence(tail: bytes, name: str, line: int) -> np.ndarray:
    steps: list[int] = []
    for number, text in enumerate(tail.split(b"\n")[1:], start=line + 1):
        text = text.partition(b"#")[0].strip()
        if text == b"EOF":
            break
        if text and not text.isdigit():
            raise DataError(f"{name}, line {number}: needs the number of an edge, got {text[:40]!r}")
        if text:
            steps.append(int(text))
    return np.array(steps, np.int64)
