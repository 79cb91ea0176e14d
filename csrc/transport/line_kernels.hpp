// Scores of one line of a transport plan, and which of them reach a threshold.
#pragma once
#include <cstdint>

#include "../core/dispatch.hpp"

namespace gossamer {

constexpr int kLanes = 32;

template <class T>
struct LineKernel {
  // scores[i] = alpha[i] - cost[i]; largest[j] is the largest score with i % kLanes = j, or -infinity.
  void (*scores)(const T* alpha, const T* cost, T* scores, int64_t count, T* largest);
  // Indices i with scores[i] >= least, rising; returns how many. `indices` has room for count + 16.
  int64_t (*reach)(const T* scores, int64_t count, T least, int32_t* indices);
};

struct LineKernels {
  LineKernel<float> f32;
  LineKernel<double> f64;
};

GOSSAMER_DISPATCH(LineKernels, line_kernels)

}  // namespace gossamer
