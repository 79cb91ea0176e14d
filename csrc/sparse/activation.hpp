// What may follow a product before it is stored.
#pragma once

namespace gossamer {

enum class Activation : int {
  none = 0, relu = 1, relu6 = 2, hardswish = 3, gelu = 4, silu = 5, sigmoid = 6, hardsigmoid = 7
};
constexpr int kActivations = 8;

// y = activation(product + bias[row] + residual): a null pointer leaves its term out.
struct Epilogue {
  const float* bias = nullptr;      // one for each output row
  const float* residual = nullptr;  // laid out as the output; may be the output itself
  Activation activation = Activation::none;
};

}  // namespace gossamer
