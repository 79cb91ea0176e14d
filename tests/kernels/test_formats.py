"""Packed weights: exact layout, round trips, and every kind of damaged buffer."""

from __future__ import annotations

import dataclasses
import struct
import zlib

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gossamer.errors import CheckpointError, ConfigError, NumericsError, ShapeError
from gossamer.kernels import native
from gossamer.kernels.formats import PackedWeight
from gossamer.kernels.pack import pack_bitmap, pack_block, pack_csr16, pack_csr_code, pack_csr_panel

PACKERS = {
    "csr_panel": pack_csr_panel,
    "csr_code": pack_csr_code,
    "csr_panel of 7": lambda w: pack_csr_panel(w, 7),
    "block 4": lambda w: pack_block(w, 4),
    "block 8 of 5": lambda w: pack_block(w, 8, 5),
    "block 16": lambda w: pack_block(w, 16),
    "bitmap": pack_bitmap,
    "csr16": pack_csr16,
}


def sparse(rows: int, columns: int, density: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * (torch.rand(rows, columns, generator=generator) < density)


@given(st.integers(0, 40), st.integers(0, 200), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 99))
@example(0, 3, 0.5, 0)
@example(3, 0, 0.5, 0)
@example(17, 64, 1.0, 0)
def test_unpack_inverts_every_packer_and_its_buffer(rows, columns, density, seed):
    weight = sparse(rows, columns, density, seed)
    for name, pack in PACKERS.items():
        packed = pack(weight)
        assert torch.equal(packed.unpack(), weight), name
        again = PackedWeight.from_buffer(packed.to_buffer())
        assert torch.equal(again.unpack(), weight), name
        assert torch.equal(again.to_buffer(), packed.to_buffer()), name


def test_csr_panel_orders_entries_by_panel_then_row():
    weight = torch.tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 4.0, 0.0, 5.0]])
    packed = pack_csr_panel(weight, panel=2)
    assert packed.pointers.tolist() == [0, 1, 2, 4, 5]
    assert packed.indices.tolist() == [0, 1, 0, 1, 1]
    assert packed.values.tolist() == [1.0, 4.0, 2.0, 3.0, 5.0]


def test_block_keeps_a_column_of_four_rows_where_any_is_not_zero():
    weight = torch.zeros(6, 3)
    weight[1, 2], weight[5, 0] = 7.0, 8.0
    packed = pack_block(weight, 4)
    assert packed.pointers.tolist() == [0, 1, 2]
    assert packed.indices.tolist() == [2, 0]
    assert packed.values.tolist() == [0, 7, 0, 0, 0, 8, 0, 0]
    assert packed.density == pytest.approx(8 / 18)


def test_bitmap_bit_i_of_word_j_is_column_64j_plus_i():
    weight = torch.zeros(2, 70)
    weight[0, 3], weight[1, 65] = 1.0, 2.0
    packed = pack_bitmap(weight)
    assert packed.bits.reshape(2, 2).tolist() == [[8, 0], [0, 2]]
    assert packed.values.tolist() == [1.0, 2.0] + [0.0] * 16


def test_bfloat16_bitmap_rounds_values_but_keeps_the_pattern():
    weight = torch.tensor([[1.0, 0.0, 1.001]])
    packed = pack_bitmap(weight, torch.bfloat16)
    assert torch.equal(packed.unpack(), weight.bfloat16())
    assert packed.entries == 2


def test_convolution_weights_pack_flattened():
    weight = sparse(8, 27, 0.5).view(8, 3, 3, 3)
    assert torch.equal(pack_block(weight, 8).unpack(), weight.flatten(1))


def test_bytes_of_a_csr_panel():
    packed = pack_csr_panel(sparse(64, 256, 0.1))
    assert packed.nbytes == 6 * packed.entries + 4 * (64 * packed.panels + 1)


@pytest.mark.parametrize("name", PACKERS)
def test_any_altered_byte_is_refused(name):
    buffer = PACKERS[name](sparse(5, 9, 0.4)).to_buffer()
    for place in range(buffer.numel()):
        bad = buffer.clone()
        bad[place] ^= 0x10
        if 48 <= place < 64:  # the space between header and data
            continue
        with pytest.raises(CheckpointError):
            PackedWeight.from_buffer(bad)


@pytest.mark.parametrize("length", [0, 10, 63, 64, 100, -1])
def test_truncated_buffers_are_refused(length):
    buffer = pack_csr_panel(sparse(5, 9, 0.4)).to_buffer()
    with pytest.raises(CheckpointError):
        PackedWeight.from_buffer(buffer[:length])


def rewritten(buffer: torch.Tensor, offset: int, layout: str, value: int) -> torch.Tensor:
    """The buffer with one header field changed and all checksums put right again."""
    data = bytearray(buffer.numpy().tobytes())
    struct.pack_into(layout, data, offset, value)
    struct.pack_into("<I", data, 40, zlib.crc32(data[64:]))
    struct.pack_into("<I", data, 44, zlib.crc32(data[:44]))
    return torch.frombuffer(data, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (6, "B", 3),  # kind
        (6, "B", 99),
        (7, "B", 1),  # dtype
        (8, "<q", 2**62),  # rows
        (8, "<q", -1),
        (16, "<q", 2**62),  # columns
        (16, "<q", 8),
        (24, "<q", 2**62),  # entries
        (24, "<q", -5),
        (32, "<I", 0),  # block
        (32, "<I", 3),
        (36, "<I", 0),  # panel
        (36, "<I", 2**31),
    ],
)
def test_wrong_header_fields_are_refused_even_with_right_checksums(offset, layout, value):
    buffer = pack_csr_panel(torch.ones(5, 9), panel=4).to_buffer()
    with pytest.raises(CheckpointError):
        PackedWeight.from_buffer(rewritten(buffer, offset, layout, value))


def test_another_version_is_named():
    buffer = rewritten(pack_csr_panel(sparse(5, 9, 0.4)).to_buffer(), 4, "<H", 2)
    with pytest.raises(CheckpointError, match="version 2; this library reads 1"):
        PackedWeight.from_buffer(buffer)


@pytest.mark.parametrize("level_name", native.levels())
def test_pointers_and_indices_out_of_range_never_reach_a_kernel(level_name):
    packed = pack_csr_panel(torch.ones(3, 8), panel=4)
    falling = packed.pointers.clone()
    falling[1], falling[2] = 8, 4
    beyond = packed.indices.int()
    beyond[0] = 4
    repeated = packed.indices.int()
    repeated[1] = 0
    negative = packed.pointers.clone()
    negative[1] = -4
    changes = [
        {"pointers": falling},
        {"pointers": negative},
        {"pointers": packed.pointers[:-1]},
        {"pointers": packed.pointers.long()},
        {"indices": beyond.to(torch.uint16)},
        {"indices": repeated.to(torch.uint16)},
        {"indices": packed.indices[:-1]},
        {"values": packed.values[:-1]},
        {"values": packed.values.double()},
        {"values": packed.values.bfloat16()},
        {"rows": 4},
        {"columns": 7},
    ]
    with native.using(level_name):
        for change in changes:
            with pytest.raises(CheckpointError):
                dataclasses.replace(packed, **change)


@pytest.mark.parametrize("level_name", native.levels())
def test_bits_that_disagree_with_the_pointers_are_refused(level_name):
    packed = pack_bitmap(sparse(3, 70, 0.5))
    more, outside = packed.bits.clone(), packed.bits.clone()
    more.view(-1)[0] ^= 1
    outside.view(-1)[1] |= 1 << 40
    with native.using(level_name):
        for bits in (more, outside):
            with pytest.raises(CheckpointError):
                dataclasses.replace(packed, bits=bits)


def test_bad_weights_are_named():
    with pytest.raises(NumericsError, match=r"\(2, 2\) holds NaN"):
        pack_csr_panel(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
    with pytest.raises(ShapeError, match=r"got \(3,\)"):
        pack_bitmap(torch.ones(3))
    with pytest.raises(ShapeError, match="reaches 65536 columns"):
        pack_csr16(torch.zeros(1, 65537))
    with pytest.raises(ConfigError, match="4, 8 or 16 rows, got 3"):
        pack_block(torch.ones(3, 3), 3)
    with pytest.raises(ConfigError, match="1 to 65536 columns, got 0"):
        pack_csr_panel(torch.ones(3, 3), 0)
    with pytest.raises(ConfigError, match=r"not torch\.float16"):
        pack_bitmap(torch.ones(3, 3), torch.float16)
    with pytest.raises(CheckpointError, match="flat uint8"):
        PackedWeight.from_buffer(torch.zeros(64))
    with pytest.raises(CheckpointError, match="no packed weight"):
        PackedWeight.from_buffer(torch.zeros(64, dtype=torch.uint8))
