// Sparse layers in training: forward, and input and weight gradients in one pass. Batches lie along the rows of
// memory: element (sample s, feature f) of an activation x is x[f * ld + s].
#pragma once
#include "../core/dispatch.hpp"
#include "layout.hpp"

namespace gossamer {

// Samples are counted in multiples of this; spare ones hold zeros in inputs and gradients.
constexpr int64_t kSamples = 16;

struct Activations {
  const float* data;
  int64_t ld;
};

struct TrainKernels {
  // A block of outputs for all samples: y = W x + bias, then max(y, 0) with `relu`. bias may be null.
  void (*forward)(const Half& half, const int32_t* order, const float* values, int64_t block, Activations x, float* y,
                  int64_t ldy, const float* bias, bool relu, int64_t samples);
  // A block of inputs: dx = W^T dy and the gradient of the block's values, (+)= dy . x. Either may be null.
  void (*backward)(const Half& half, const float* values, int64_t block, Activations x, Activations dy, float* dx,
                   int64_t lddx, float* gradient, bool accumulate, int64_t samples);
  // Features [begin, end) of an activation whose sample s and feature f is at source[s * of_sample + f * of_feature],
  // into rows of memory, zero from `count` to `samples`. gate: keep entries whose y is above 0 (or NaN); null: all.
  // sums[f]: the sum over samples; null: none.
  void (*load)(const float* source, int64_t of_sample, int64_t of_feature, int64_t begin, int64_t end, int64_t count,
               float* target, int64_t ld, int64_t samples, const Activations* gate, float* sums);
};

GOSSAMER_DISPATCH(TrainKernels, train_kernels)

}  // namespace gossamer
