#include "engine_kernels.hpp"

#include "../sparse/simd.hpp"

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

}  // namespace

extern const EngineKernels engine_kernels = {scale};

}  // namespace gossamer::GOSSAMER_NS
