#include "int8.hpp"

#include <algorithm>

#include "../core/pool.hpp"
#include "workspace.hpp"

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 16;  // weights in a chunk, zeros included
constexpr int64_t kWord = 64;

}  // namespace

void gemv_int8(const Int8Matrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads) {
  if (a.rows <= 0) return;
  const auto& kernels = int8_kernels();
  static const bool has_instructions = has("avx512vnni") && has("avx512vbmi2");
  const auto multiply = kernels.multiply_fast && has_instructions ? kernels.multiply_fast : kernels.multiply;
  const int64_t padded = (a.columns + kWord - 1) / kWord * kWord;
  thread_local Scratch scratch;
  auto* const rounded = reinterpret_cast<uint8_t*>(scratch.floats(padded / 4 + 1));
  const int64_t rows = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, a.columns));
  for (int64_t i = 0; i < batch; ++i) {
    const float scale = kernels.round(x + i * a.columns, a.columns, rounded);
    Epilogue here = after;
    if (after.residual) here.residual += i * a.rows;
    parallel_for(a.rows, rows, threads, [&](int64_t begin, int64_t end) {
      multiply(a, rounded, scale, y + i * a.rows, here, begin, end);
    });
  }
}

}  // namespace gossamer
