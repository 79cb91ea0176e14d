#include "gemv.hpp"

#include <algorithm>

#include "../core/pool.hpp"

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 15;  // non-zeros in a chunk

}  // namespace

void gemv(const RowMatrix& a, bool is_bf16, int64_t batch, const float* x, float* y, const Epilogue& after,
          int threads) {
  if (a.rows <= 0) return;
  const auto& kernels = gemv_kernels();
  const auto kernel = !a.bits ? kernels.indexed_f32 : is_bf16 ? kernels.bitmap_bf16 : kernels.bitmap_f32;
  const int64_t entries = a.pointers[a.rows];
  const int64_t chunks = std::clamp<int64_t>(entries / kGrain, 1, a.rows);
  // A chunk ends at the first row by which its share of the non-zeros is done.
  const auto boundary = [&](int64_t chunk) {
    if (chunk == chunks) return a.rows;
    return std::lower_bound(a.pointers, a.pointers + a.rows, entries / chunks * chunk) - a.pointers;
  };
  for (int64_t i = 0; i < batch; ++i) {
    Epilogue here = after;
    if (after.residual) here.residual += i * a.rows;
    parallel_for(chunks, 1, threads, [&](int64_t chunk, int64_t) {
      const int64_t begin = chunk ? boundary(chunk) : 0;
      kernel(a, x + i * a.columns, y + i * a.rows, here, begin, boundary(chunk + 1));
    });
  }
}

namespace {

bool rows_are_valid(const RowMatrix& a, int64_t entries) {
  if (a.rows < 0 || a.columns < 0 || a.pointers[0] != 0 || a.pointers[a.rows] != entries) return false;
  return std::is_sorted(a.pointers, a.pointers + a.rows + 1);
}

int64_t count_bits(uint64_t word) {
  int64_t count = 0;
  for (; word; word &= word - 1) ++count;
  return count;
}

}  // namespace

bool is_valid(const RowMatrix& a, int64_t entries) {
  if (!rows_are_valid(a, entries)) return false;
  if (!a.bits) {
    for (int64_t n = 0; n < a.rows; ++n)
      for (int64_t i = a.pointers[n]; i < a.pointers[n + 1]; ++i)
        if (a.indices[i] >= a.columns || (i > a.pointers[n] && a.indices[i] <= a.indices[i - 1])) return false;
    return true;
  }
  const int64_t words = (a.columns + 63) / 64;
  for (int64_t n = 0; n < a.rows; ++n) {
    int64_t count = 0;
    for (int64_t j = 0; j < words; ++j) count += count_bits(a.bits[n * words + j]);
    if (count != a.pointers[n + 1] - a.pointers[n]) return false;
    if (a.columns % 64 && a.bits[n * words + words - 1] >> (a.columns % 64)) return false;
  }
  return true;
}

}  // namespace gossamer
