#include "pointwise.hpp"

#include "activation_simd.hpp"
#include "transpose_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// ---- depthwise convolution

// Elements i, i + S, i + 2 S, ... of a row of n, zero outside of it.
template <int S>
GOSSAMER_INLINE V load_strided(const float* row, int64_t i, int64_t n) {
  if constexpr (S == 1) {
    return load_between(row, i, n);
  } else {
    return evens(load_between(row, i, n), load_between(row, i + kLanes, n));
  }
}

constexpr int kRows = 4;  // output rows at a time: an input row is loaded once for all that need it

template <int K, int S>
void depthwise_plane(const Depthwise& job, const float* x, const float* weight, float bias, float* y,
                     const float* residual) {
  const int64_t height = job.out(job.height), width = job.out(job.width);
  const Finish finish(job.after.activation);
  for (int64_t column = 0; column < width; column += kLanes) {
    const int64_t count = width - column < kLanes ? width - column : kLanes;
    const int64_t left = column * S - job.padding;
    for (int64_t row = 0; row < height; row += kRows) {
      V sums[kRows];
      GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r) sums[r] = set(bias);
      GOSSAMER_UNROLL for (int u = 0; u < (kRows - 1) * S + K; ++u) {
        const int64_t line = row * S - job.padding + u;
        if (line < 0 || line >= job.height) continue;
        GOSSAMER_UNROLL for (int k = 0; k < K; ++k) {
          const V v = load_strided<S>(x + line * job.width, left + k, job.width);
          GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r) {
            const int tap = u - r * S;
            if (tap >= 0 && tap < K) sums[r] = fma(set(weight[tap * K + k]), v, sums[r]);
          }
        }
      }
      GOSSAMER_UNROLL for (int r = 0; r < kRows; ++r) {
        if (row + r >= height) break;
        const int64_t place = (row + r) * width + column;
        if (residual) sums[r] = add(sums[r], load_first(residual + place, count));
        store_first(y + place, finish(sums[r]), count);
      }
    }
  }
}

void depthwise(const Depthwise& job, int64_t begin, int64_t end) {
  const auto plane = job.kernel == 3 ? (job.stride == 1 ? depthwise_plane<3, 1> : depthwise_plane<3, 2>)
                                     : (job.stride == 1 ? depthwise_plane<5, 1> : depthwise_plane<5, 2>);
  const int64_t size = job.height * job.width, out_size = job.out(job.height) * job.out(job.width);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t c = p % job.channels;
    plane(job, job.x + p * size, job.weight + c * job.kernel * job.kernel, job.after.bias ? job.after.bias[c] : 0.0f,
          job.y + p * out_size, job.after.residual ? job.after.residual + p * out_size : nullptr);
  }
}

// ---- pooling

float larger(float a, float b) { return b > a || b != b ? b : a; }

float pool_one(const MaxPool& job, const float* x, int64_t top, int64_t bottom, int64_t left) {
  float best = -INFINITY;
  for (int64_t i = top; i < bottom; ++i)
    for (int64_t j = left < 0 ? 0 : left; j < left + job.kernel && j < job.width; ++j)
      best = larger(best, x[i * job.width + j]);
  return best;
}

template <int S>
V pool_vector(const MaxPool& job, const float* x, int64_t top, int64_t bottom, int64_t left) {
  V best = set(-INFINITY);
  for (int64_t i = top; i < bottom; ++i)
    for (int64_t k = 0; k < job.kernel; ++k)
      best = larger(best, load_strided<S>(x + i * job.width, left + k, job.width));
  return best;
}

void pool_plane(const MaxPool& job, const float* x, float* y) {
  const int64_t height = job.out(job.height), width = job.out(job.width);
  for (int64_t row = 0; row < height; ++row, y += width) {
    const int64_t start = row * job.stride - job.padding, stop = start + job.kernel;
    const int64_t top = start < 0 ? 0 : start, bottom = stop < job.height ? stop : job.height;
    for (int64_t column = 0; column < width;) {
      const int64_t left = column * job.stride - job.padding;
      const bool is_inside = left >= 0 && left + (kLanes - 1) * job.stride + job.kernel <= job.width;
      if (is_inside && column + kLanes <= width && job.stride <= 2) {
        store(y + column, job.stride == 1 ? pool_vector<1>(job, x, top, bottom, left)
                                          : pool_vector<2>(job, x, top, bottom, left));
        column += kLanes;
      } else {
        y[column] = pool_one(job, x, top, bottom, left);
        ++column;
      }
    }
  }
}

void max_pool(const MaxPool& job, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p)
    pool_plane(job, job.x + p * job.height * job.width, job.y + p * job.out(job.height) * job.out(job.width));
}

void mean(const float* x, float* y, int64_t length, int64_t begin, int64_t end) {
  const float scale = 1.0f / static_cast<float>(length);
  for (int64_t r = begin; r < end; ++r) {
    const float* row = x + r * length;
    V a = set(0.0f), b = set(0.0f);
    int64_t i = 0;
    for (; i + 2 * kLanes <= length; i += 2 * kLanes) {
      a = add(a, load(row + i));
      b = add(b, load(row + i + kLanes));
    }
    for (; i < length; i += kLanes) a = add(a, load_first(row + i, length - i));
    y[r] = sum(add(a, b)) * scale;
  }
}

// ---- element-wise

void add_activate(const float* a, const float* b, float* y, Activation activation, int64_t count) {
  const Finish finish(activation);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, finish(b ? add(load(a + i), load(b + i)) : load(a + i)));
  if (i == count) return;
  const int64_t left = count - i;
  const V v = b ? add(load_first(a + i, left), load_first(b + i, left)) : load_first(a + i, left);
  store_first(y + i, finish(v), left);
}

void transpose(const float* x, int64_t rows, int64_t columns, float* y, int64_t begin, int64_t end) {
  transpose_block(x + begin * columns, columns, end - begin, columns, y + begin, rows);
}

}  // namespace

extern const PointwiseKernels pointwise_kernels = {depthwise, max_pool, mean, add_activate, transpose};

}  // namespace gossamer::GOSSAMER_NS
