// The packed pattern of a sparse weight: one flat buffer of 32-bit words, made by pack_pattern.
//
//   header[16]   magic, version, outputs, inputs, non-zeros, forward block, panel, backward block, panel, 0...
//   forward half, by output: starts, counts, index, then order
//   backward half, by input: starts, counts, index
//
// A half lists the non-zeros of a matrix block of rows by block, in it panel of columns by panel, in it row by row:
//   starts  int32 [blocks + 1]     first non-zero of each block of rows
//   counts  uint16 [rows * panels] non-zeros of each (block, panel, row), in that order
//   index   uint16 [non-zeros]     column, counted from the panel's first one
// The values of a layer are stored in the order of the backward half; order[f] is the place there of the forward
// half's non-zero f. Every array starts at a whole word. Blocks and panels are multiples of 64.
#pragma once
#include <cstdint>

namespace gossamer {

constexpr int32_t kPatternMagic = 0x4753504c;
constexpr int32_t kPatternVersion = 1;
constexpr int64_t kPatternHeader = 16;
constexpr int64_t kMostPanel = 256;  // columns of a panel: 128 samples of them fit the second-level cache

struct Half {
  int64_t rows, columns, block, panel;
  int32_t* starts;
  uint16_t* counts;
  uint16_t* index;
};

struct Pattern {
  int64_t outputs, inputs, nonzeros;
  Half forward, backward;
  int32_t* order;
};

// Not inline: the linker may keep any copy of an inline function, also one made for another processor.
static int64_t blocks_of(const Half& half) { return (half.rows + half.block - 1) / half.block; }
static int64_t panels_of(const Half& half) { return (half.columns + half.panel - 1) / half.panel; }
static int64_t rows_in(const Half& half, int64_t block) {
  const int64_t left = half.rows - block * half.block;
  return left < half.block ? left : half.block;
}
static uint16_t* counts_in(const Half& half, int64_t block) {
  return half.counts + block * half.block * panels_of(half);
}

}  // namespace gossamer
