// Sparse matrix times dense: y[n][q] = activation(sum_k a[n][k] x[k][q] + bias[n] + residual[n][q]).
//
// The dense side is a row of pixels for each input channel, so a weight multiplies contiguous floats: a 1x1
// convolution over (channels, height, width), a fully connected layer over transposed features, and a k x k
// convolution when x's rows are addressed by `taps`.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"
#include "activation.hpp"

namespace gossamer {

struct Code;  // code.hpp

// Sparse weights, not owned. Rows come in strips of `block`, columns in panels of `panel`; an entry is one
// column of one strip: a column index within the panel and `block` values. The entries of (panel p, strip s) are
// pointers[p * strips + s] up to pointers[p * strips + s + 1], by rising column. The last strip is filled up with
// zero rows.
struct BlockMatrix {
  int64_t rows = 0, columns = 0;
  int64_t block = 1;          // 1, 4, 8 or 16
  int64_t panel = 1;          // 1 .. 65536
  const int32_t* pointers = nullptr;
  const uint16_t* indices = nullptr;
  const float* values = nullptr;
  const Code* code = nullptr;  // the same with block 1, or none
  // Or, in place of `values`, bfloat16: of every two entries of a strip the values of a row lie side by side; a last
  // entry without a partner lies as it is. Such a product rounds x to bfloat16, too.
  const uint16_t* halves = nullptr;

  int64_t strips() const { return (rows + block - 1) / block; }
  int64_t panels() const { return columns > 0 ? (columns + panel - 1) / panel : 1; }
};

struct Spmm {
  BlockMatrix a;
  const float* x = nullptr;
  int64_t x_stride = 0;             // floats from a row of x to the next
  int64_t token_stride = 0;         // or: x is (pixels, columns), with so many floats from a pixel to the next
  const int64_t* taps = nullptr;    // or: where each row of x begins. Then x is readable for kOverread floats beyond.
  const uint16_t* halves = nullptr; // with taps, x in bfloat16 where the weights are
  float* y = nullptr;
  int64_t y_stride = 0;
  float* y_tokens = nullptr;        // where y is then laid as (pixels, rows)
  int64_t pixels = 0;               // in a row of x, and of y when there are no gaps
  int64_t pitch = 0, width = 0;     // gaps: of each `pitch` pixels the first `width` are stored. 0: no gaps.
  Epilogue after;
  int64_t tile = 0;                 // vectors in a tile; 0: chosen by shape
};

constexpr int64_t kOverread = 16 * 16;

constexpr int64_t kBand = 1 << 16;  // floats of unfinished sums held at a time, at least for one strip

constexpr int64_t kWidest = 8 * 16;  // pixels in the widest tile of any level

// A tile is the pixels [first, first + count): its columns [from, to) are packed into `slab`, which has room for
// columns * tile vectors, and run multiplies strips [begin, end) with a slab that is full. `sums` has room for kBand
// floats or one strip's vectors; both are aligned to 64 bytes.
struct SpmmKernels {
  int64_t lanes;
  int64_t (*widest)(int64_t block);  // vectors in the widest tile
  bool (*packs)(const Spmm& job);    // else x is read where it lies, and there is no slab
  void (*pack)(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* slab);
  void (*run)(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums);
};

GOSSAMER_DISPATCH(SpmmKernels, spmm_kernels)

// The whole product, on up to `threads` threads; the bits do not depend on them. Throws std::bad_alloc.
void spmm(const Spmm& job, int threads);

// False unless every pointer, index and count is in range, for `entries` entries.
bool is_valid(const BlockMatrix& a, int64_t entries);

}  // namespace gossamer
