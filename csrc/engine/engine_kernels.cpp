#include "engine_kernels.hpp"

#include "../sparse/activation_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

void scale(const float* x, const float* factor, float* y, int64_t length, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const float *from = x + r * length, f = factor[r];
    float* to = y + r * length;
    for (int64_t i = 0; i < length; i += kLanes)
      store_first(to + i, mul(load_first(from + i, length - i), set(f)), length - i);
  }
}

// Elements i, i + S, i + 2 S, ... of a row of n. Inside: all of them exist; else zero where they do not.
template <int S, bool Inside>
GOSSAMER_INLINE V load_strided(const float* row, int64_t i, int64_t n) {
  if constexpr (Inside) {
    return S == 1 ? load(row + i) : evens(load(row + i), load(row + i + kLanes));
  } else {
    return S == 1 ? load_between(row, i, n) : evens(load_between(row, i, n), load_between(row, i + kLanes, n));
  }
}

constexpr int kRows = 4;  // output rows at a time: an input row is loaded once for all that need it

// One vector of output columns, from input column `left` on, for output rows [top, bottom). Weights stay in registers.
template <int K, int S, bool Inside>
void rows_of_columns(const Depthwise& job, const float* x, const float* weight, float bias, float* y, int64_t top,
                     int64_t bottom, int64_t left, int64_t count) {
  const int64_t width = job.width, height = job.height, pitch = job.out(width), padding = job.padding;
  const Finish finish(job.after.activation);
  V w[K * K];
  GOSSAMER_UNROLL for (int i = 0; i < K * K; ++i) w[i] = set(weight[i]);
  for (int64_t row = top; row < bottom; row += kRows, y += kRows * pitch) {
    const int64_t first = row * S - padding;
    V sums[kRows];
    GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = set(bias);
    const bool is_whole = first >= 0 && first + (kRows - 1) * S + K <= height;
    GOSSAMER_UNROLL for (int u = 0; u < (kRows - 1) * S + K; ++u) {
      if (!is_whole && (first + u < 0 || first + u >= height)) continue;
      const float* line = x + (first + u) * width;
      GOSSAMER_UNROLL for (int k = 0; k < K; ++k) {
        const V v = load_strided<S, Inside>(line, left + k, width);
        GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r) {
          const int tap = u - r * S;
          if (tap >= 0 && tap < K) sums[r] = fma(w[tap * K + k], v, sums[r]);
        }
      }
    }
    GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r)
      if (row + r < bottom) store_first(y + r * pitch, finish(sums[r]), count);
  }
}

template <int K, int S>
void rows_of_plane(const Depthwise& job, const float* x, const float* weight, float bias, float* y, int64_t top,
                   int64_t bottom) {
  const int64_t width = job.out(job.width);
  for (int64_t column = 0; column < width; column += kLanes) {
    const int64_t left = column * S - job.padding;
    const bool is_inside = left >= 0 && left + K - 1 + S * kLanes <= job.width;
    const auto run = is_inside ? rows_of_columns<K, S, true> : rows_of_columns<K, S, false>;
    run(job, x, weight, bias, y + column, top, bottom, left, width - column);
  }
}

void depthwise_rows(const Depthwise& job, int64_t top, int64_t bottom, int64_t begin, int64_t end) {
  const auto plane = job.kernel == 3 ? (job.stride == 1 ? rows_of_plane<3, 1> : rows_of_plane<3, 2>)
                                     : (job.stride == 1 ? rows_of_plane<5, 1> : rows_of_plane<5, 2>);
  const int64_t size = job.height * job.width, out_size = (bottom - top) * job.out(job.width);
  for (int64_t c = begin; c < end; ++c)
    plane(job, job.x + c * size, job.weight + c * job.kernel * job.kernel, job.after.bias ? job.after.bias[c] : 0.0f,
          job.y + c * out_size, top, bottom);
}

}  // namespace

extern const EngineKernels engine_kernels = {scale, depthwise_rows};

}  // namespace gossamer::GOSSAMER_NS
