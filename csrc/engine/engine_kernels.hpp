// Element-wise steps that only whole networks need.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"
#include "../sparse/pointwise.hpp"

namespace gossamer {

struct EngineKernels {
  // Rows [begin, end) of y = x * factor[row].
  void (*scale)(const float* x, const float* factor, float* y, int64_t length, int64_t begin, int64_t end);
  // Output rows [top, bottom) of channels [begin, end) of one image; y is (channels, bottom - top, width).
  void (*depthwise_rows)(const Depthwise& job, int64_t top, int64_t bottom, int64_t begin, int64_t end);
};

GOSSAMER_DISPATCH(EngineKernels, engine_kernels)

}  // namespace gossamer
