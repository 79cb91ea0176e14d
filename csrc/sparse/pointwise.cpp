#include "pointwise.hpp"

#include <algorithm>

#include "../core/pool.hpp"

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 14;  // floats in a chunk: they stay in the second-level cache

int64_t chunk_of(int64_t length) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, length)); }

}  // namespace

void depthwise(const Depthwise& job, int64_t images, int threads) {
  const auto& kernels = pointwise_kernels();
  parallel_for(images * job.channels, chunk_of(job.height * job.width), threads,
               [&](int64_t begin, int64_t end) { kernels.depthwise(job, begin, end); });
}

void max_pool(const MaxPool& job, int64_t planes, int threads) {
  const auto& kernels = pointwise_kernels();
  parallel_for(planes, chunk_of(job.height * job.width), threads,
               [&](int64_t begin, int64_t end) { kernels.max_pool(job, begin, end); });
}

void mean(const float* x, float* y, int64_t rows, int64_t length, int threads) {
  const auto& kernels = pointwise_kernels();
  parallel_for(rows, chunk_of(length), threads,
               [&](int64_t begin, int64_t end) { kernels.mean(x, y, length, begin, end); });
}

void add(const float* a, const float* b, float* y, Activation activation, int64_t count, int threads) {
  const auto& kernels = pointwise_kernels();
  parallel_for(count, kGrain, threads, [&](int64_t begin, int64_t end) {
    kernels.add(a + begin, b ? b + begin : nullptr, y + begin, activation, end - begin);
  });
}

void transpose(const float* x, int64_t rows, int64_t columns, float* y, int threads) {
  const auto& kernels = pointwise_kernels();
  const int64_t grain = (chunk_of(columns) + 7) / 8 * 8;
  parallel_for(rows, grain, threads,
               [&](int64_t begin, int64_t end) { kernels.transpose(x, rows, columns, y, begin, end); });
}

}  // namespace gossamer
