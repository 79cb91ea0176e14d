#include "int8.hpp"

#include <algorithm>

#include "../core/pool.hpp"
#include "workspace.hpp"

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 16;  // weights in a chunk, zeros included

// Rounds each vector, then multiplies in chunks of `units` (rows, or groups of them).
template <class Matrix, class Multiply>
void each_vector(const Matrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads,
                 int64_t units, int64_t grain, Multiply multiply) {
  if (a.rows <= 0) return;
  const auto& kernels = int8_kernels();
  const int64_t padded = (a.columns + Int8Steps::kPanel - 1) / Int8Steps::kPanel * Int8Steps::kPanel;
  thread_local Scratch scratch;
  auto* const rounded = reinterpret_cast<uint8_t*>(scratch.floats(padded / 4 + 1));
  for (int64_t i = 0; i < batch; ++i) {
    const float scale = kernels.round(x + i * a.columns, a.columns, rounded);
    Epilogue here = after;
    if (after.residual) here.residual += i * a.rows;
    parallel_for(units, grain, threads, [&](int64_t begin, int64_t end) {
      multiply(a, rounded, scale, y + i * a.rows, here, begin, end);
    });
  }
}

}  // namespace

void gemv_int8(const Int8Matrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads) {
  const auto& kernels = int8_kernels();
  static const bool has_instructions = has("avx512vnni") && has("avx512vbmi2");
  const auto multiply = kernels.multiply_fast && has_instructions ? kernels.multiply_fast : kernels.multiply;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, a.columns));
  each_vector(a, batch, x, y, after, threads, a.rows, grain, multiply);
}

void gemv_int8(const Int8Steps& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads) {
  const auto& kernels = int8_kernels();
  static const bool has_instructions = has("avx512vnni") && has("avx512vbmi");
  const bool is_fast = kernels.multiply_steps_fast && has_instructions;
  const auto multiply = is_fast ? kernels.multiply_steps_fast : kernels.multiply_steps;
  // a step stands for some 2048 places of the dense matrix
  const int64_t grain = std::max<int64_t>(1, 16 * kGrain / (Int8Steps::kGroup * std::max<int64_t>(1, a.columns)));
  each_vector(a, batch, x, y, after, threads, a.groups(), grain, multiply);
}

}  // namespace gossamer
