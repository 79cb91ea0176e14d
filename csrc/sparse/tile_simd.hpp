// How tiles of x are read and tiles of y written. For kernel sources only.
#pragma once
#include "activation_simd.hpp"
#include "spmm.hpp"
#include "transpose_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// y = activation(sums + residual) for `count` neighbours.
GOSSAMER_OUTLINED void finish_run(const Epilogue& after, const float* sums, float* y, const float* residual, int64_t count) {
  const Finish finish(after.activation);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t left = count - i;
    const V v = residual ? add(load(sums + i), load_first(residual + i, left)) : load(sums + i);
    store_first(y + i, finish(v), left);
  }
}

// A row of sums where only the first `width` of each `pitch` pixels exist in y.
GOSSAMER_OUTLINED void finish_with_gaps(const Spmm& job, const float* sums, int64_t row, int64_t first, int64_t count) {
  int64_t line = first / job.pitch, column = first % job.pitch;
  for (int64_t i = 0; i < count; ++line, column = 0) {
    const int64_t here = job.pitch - column < count - i ? job.pitch - column : count - i;
    const int64_t kept = job.width - column < here ? job.width - column : here;
    const int64_t place = row * job.y_stride + line * job.width + column;
    finish_run(job.after, sums + i, job.y + place, job.after.residual ? job.after.residual + place : nullptr, kept);
    i += here;
  }
}

template <int T>
GOSSAMER_INLINE void finish_row(const Spmm& job, const V (&sums)[T], int64_t row, int64_t first, int64_t count) {
  if (job.pitch) {
    alignas(64) float tile[(T + 1) * kLanes];  // runs end anywhere, but are read in whole vectors
    GOSSAMER_UNROLL for (int t = 0; t < T; ++t) store(tile + t * kLanes, sums[t]);
    store(tile + T * kLanes, set(0.0f));
    return finish_with_gaps(job, tile, row, first, count);
  }
  const Finish finish(job.after.activation);
  float* y = job.y + row * job.y_stride + first;
  const float* residual = job.after.residual ? job.after.residual + row * job.y_stride + first : nullptr;
  GOSSAMER_UNROLL for (int t = 0; t < T; ++t) {
    const int64_t at = t * kLanes, left = count - at;
    if (left >= kLanes) {
      store(y + at, finish(residual ? add(sums[t], load(residual + at)) : sums[t]));
    } else if (left > 0) {
      const V v = residual ? add(sums[t], load_first(residual + at, left)) : sums[t];
      store_first(y + at, finish(v), left);
    }
  }
}

// Columns [from, to) of `count` pixels that lie by tokens, as rows of `width` floats, zero beyond the last pixel.
GOSSAMER_OUTLINED void turn(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* rows,
                            int64_t width) {
  transpose_block(job.x + first * job.token_stride + from, job.token_stride, count, to - from, rows, width);
  if (count == width) return;
  for (int64_t k = from; k < to; ++k, rows += width)
    for (int64_t i = count; i < width; ++i) rows[i] = 0.0f;
}

// Copies rows of x side by side: aligned, without holes in the cache, zero beyond the last pixel.
template <int T>
void pack(const float* x, int64_t stride, int64_t rows, int64_t count, float* slab) {
  constexpr int64_t ahead = 8;
  const int64_t whole = count / kLanes, rest = count % kLanes;
  for (int64_t k = 0; k < rows; ++k, x += stride, slab += T * kLanes) {
    for (int64_t i = 0; i < count; i += 16) prefetch(x + ahead * stride + i);
    if (whole == T) {
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) store(slab + t * kLanes, load(x + t * kLanes));
    } else {
      for (int t = 0; t < whole; ++t) store(slab + t * kLanes, load(x + t * kLanes));
      store(slab + whole * kLanes, load_first(x + whole * kLanes, rest));
    }
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
