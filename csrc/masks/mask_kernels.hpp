// Kernels on masks: bit packing, zeroing under a mask, N:M selection. Bools are bytes; non-zero is true.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"

namespace gossamer {

struct MaskKernels {
  // count bools to ceil(count / 8) bytes, bit i of byte j is bool 8 j + i; spare bits are zero.
  void (*pack)(const uint8_t* bools, uint8_t* bits, int64_t count);
  void (*unpack)(const uint8_t* bits, uint8_t* bools, int64_t count);
  int64_t (*popcount)(const uint8_t* bits, int64_t bytes);
  // values[i] = 0 where mask[i] is false, bit for bit, by element size.
  void (*zero2)(void* values, const uint8_t* mask, int64_t count);
  void (*zero4)(void* values, const uint8_t* mask, int64_t count);
  void (*zero8)(void* values, const uint8_t* mask, int64_t count);
  // Keeps the n largest of each m neighbours, ties to the first; false when a score is NaN.
  bool (*nm_f32)(const void* scores, uint8_t* mask, int64_t groups, int n, int m);
  bool (*nm_f64)(const void* scores, uint8_t* mask, int64_t groups, int n, int m);
  bool (*nm_bf16)(const void* scores, uint8_t* mask, int64_t groups, int n, int m);
};

GOSSAMER_DISPATCH(MaskKernels, mask_kernels)

}  // namespace gossamer
