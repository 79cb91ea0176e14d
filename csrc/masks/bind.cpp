// Mask kernels for Python. Addresses come from gossamer/kernels, which has checked dtype, shape and strides.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>

#include "../core/pool.hpp"
#include "mask_kernels.hpp"
#include "topk.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 16;  // elements in a chunk: about the second-level cache

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int64_t rows_in_a_chunk(int64_t row_length) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_length)); }

void pack(uintptr_t bools, uintptr_t bits, int64_t rows, int64_t columns, int threads) {
  const auto& kernels = mask_kernels();
  const int64_t bytes = (columns + 7) / 8;
  parallel_for(rows, rows_in_a_chunk(columns), threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels.pack(at<uint8_t>(bools) + r * columns, at<uint8_t>(bits) + r * bytes, columns);
  });
}

void unpack(uintptr_t bits, uintptr_t bools, int64_t rows, int64_t columns, int threads) {
  const auto& kernels = mask_kernels();
  const int64_t bytes = (columns + 7) / 8;
  parallel_for(rows, rows_in_a_chunk(columns), threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels.unpack(at<uint8_t>(bits) + r * bytes, at<uint8_t>(bools) + r * columns, columns);
  });
}

int64_t popcount(uintptr_t bits, int64_t bytes, int threads) {
  const auto& kernels = mask_kernels();
  std::atomic<int64_t> total{0};
  parallel_for(bytes, kGrain, threads, [&](int64_t begin, int64_t end) {
    total += kernels.popcount(at<uint8_t>(bits) + begin, end - begin);
  });
  return total;
}

// One pass over many tensors: a training step has dozens of small ones.
void zero_unmasked(const std::vector<uintptr_t>& tensors, const std::vector<uintptr_t>& masks,
                   const std::vector<int64_t>& counts, const std::vector<int>& sizes, int threads) {
  struct Chunk {
    size_t tensor;
    int64_t begin, count;
  };
  std::vector<Chunk> chunks;
  for (size_t t = 0; t < counts.size(); ++t)
    for (int64_t begin = 0; begin < counts[t]; begin += kGrain)
      chunks.push_back({t, begin, std::min(kGrain, counts[t] - begin)});
  const auto& kernels = mask_kernels();
  parallel_for(static_cast<int64_t>(chunks.size()), 1, threads, [&](int64_t first, int64_t) {
    const Chunk& chunk = chunks[first];
    const int size = sizes[chunk.tensor];
    const auto zero = size == 2 ? kernels.zero2 : size == 4 ? kernels.zero4 : kernels.zero8;
    zero(at<uint8_t>(tensors[chunk.tensor]) + chunk.begin * size, at<uint8_t>(masks[chunk.tensor]) + chunk.begin,
         chunk.count);
  });
}

// kind: 2 = bfloat16, 4 = float32, 8 = float64. False when a score is NaN.
bool nm_mask(uintptr_t scores, uintptr_t mask, int64_t groups, int n, int m, int kind, int threads) {
  const auto& kernels = mask_kernels();
  const auto kernel = kind == 2 ? kernels.nm_bf16 : kind == 4 ? kernels.nm_f32 : kernels.nm_f64;
  std::atomic<bool> clean{true};
  parallel_for(groups, std::max<int64_t>(1, kGrain / m), threads, [&](int64_t begin, int64_t end) {
    if (!kernel(at<uint8_t>(scores) + begin * m * kind, at<uint8_t>(mask) + begin * m, end - begin, n, m)) clean = false;
  });
  return clean;
}

// keep[r] survivors in row r. False when a score is NaN; the mask is then unfinished.
bool topk_rows(uintptr_t scores, uintptr_t mask, int64_t rows, int64_t columns, uintptr_t keep, int threads) {
  std::atomic<bool> clean{true};
  parallel_for(rows, rows_in_a_chunk(columns), threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      if (!topk_row(at<float>(scores) + r * columns, at<uint8_t>(mask) + r * columns, columns, at<int64_t>(keep)[r]))
        clean = false;
  });
  return clean;
}

}  // namespace

void bind_masks(nb::module_& module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  module.def("pack", &pack, unlocked);
  module.def("unpack", &unpack, unlocked);
  module.def("popcount", &popcount, unlocked);
  module.def("zero_unmasked", &zero_unmasked, unlocked);
  module.def("nm_mask", &nm_mask, unlocked);
  module.def("topk_rows", &topk_rows, unlocked);
}

}  // namespace gossamer
