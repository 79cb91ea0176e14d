// Sparse kernels for Python. Addresses come from gossamer/kernels, which has checked dtype, shape and strides.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include "code.hpp"
#include "conv.hpp"
#include "gemv.hpp"
#include "int8.hpp"
#include "pointwise.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

struct OwnedCode {
  std::shared_ptr<const Code> code;
};

Epilogue epilogue(uintptr_t bias, uintptr_t residual, int activation) {
  return {at<float>(bias), at<float>(residual), static_cast<Activation>(activation)};
}

}  // namespace

void bind_sparse(nb::module_& module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  nb::class_<BlockMatrix>(module, "BlockMatrix")
      .def("__init__",
           [](BlockMatrix* self, int64_t rows, int64_t columns, int64_t block, int64_t panel, uintptr_t pointers,
              uintptr_t indices, uintptr_t values, bool is_bf16) {
             new (self) BlockMatrix{rows, columns, block, panel, at<int32_t>(pointers), at<uint16_t>(indices),
                                    is_bf16 ? nullptr : at<float>(values), nullptr,
                                    is_bf16 ? at<uint16_t>(values) : nullptr};
           })
      .def("is_valid", [](const BlockMatrix& a, int64_t entries) { return is_valid(a, entries); }, unlocked)
      .def("use", [](BlockMatrix& a, const OwnedCode& code) { a.code = code.code.get(); }, nb::keep_alive<1, 2>());
  nb::class_<OwnedCode>(module, "Code");
  module.def("encode", [](const BlockMatrix& a, int64_t most) -> std::optional<OwnedCode> {
    OwnedCode owned{encode(a, most)};
    if (!owned.code) return std::nullopt;
    return owned;
  });
  nb::class_<RowMatrix>(module, "RowMatrix")
      .def("__init__",
           [](RowMatrix* self, int64_t rows, int64_t columns, uintptr_t pointers, uintptr_t values, uintptr_t indices,
              uintptr_t bits) {
             new (self) RowMatrix{rows, columns, at<int32_t>(pointers), at<void>(values), at<uint16_t>(indices),
                                  at<uint64_t>(bits)};
           })
      .def("is_valid", [](const RowMatrix& a, int64_t entries) { return is_valid(a, entries); }, unlocked);
  module.def(
      "conv",
      [](const BlockMatrix& a, std::array<int64_t, 12> shape, uintptr_t x, uintptr_t y, uintptr_t bias,
         uintptr_t residual, int activation, int threads) {
        const auto& s = shape;  // images, channels, then height and width of input, kernel, stride, padding, dilation
        const ConvShape conv_shape{s[1], {s[2], s[3]}, {s[4], s[5]}, {s[6], s[7]}, {s[8], s[9]}, {s[10], s[11]}};
        conv(a, conv_shape, s[0], at<float>(x), at<float>(y), epilogue(bias, residual, activation), threads);
      },
      unlocked);
  module.def(
      "linear",
      [](const BlockMatrix& a, int64_t batch, uintptr_t x, uintptr_t y, uintptr_t bias, uintptr_t residual,
         int activation, int threads) {
        linear(a, batch, at<float>(x), at<float>(y), epilogue(bias, residual, activation), threads);
      },
      unlocked);
  module.def(
      "gemv",
      [](const RowMatrix& a, bool is_bf16, int64_t batch, uintptr_t x, uintptr_t y, uintptr_t bias, uintptr_t residual,
         int activation, int threads) {
        gemv(a, is_bf16, batch, at<float>(x), at<float>(y), epilogue(bias, residual, activation), threads);
      },
      unlocked);
  module.def(
      "gemv_int8",
      [](std::array<int64_t, 2> shape, std::array<uintptr_t, 5> arrays, int64_t batch, uintptr_t x, uintptr_t y,
         uintptr_t bias, uintptr_t residual, int activation, int threads) {
        const auto [pointers, values, bits, scales, offsets] = arrays;
        const Int8Matrix a{shape[0],          shape[1],           at<int32_t>(pointers), at<int8_t>(values),
                           at<uint64_t>(bits), at<float>(scales), at<int32_t>(offsets)};
        gemv_int8(a, batch, at<float>(x), at<float>(y), epilogue(bias, residual, activation), threads);
      },
      unlocked);
  module.def(
      "gemv_int8_steps",
      [](std::array<int64_t, 2> shape, std::array<uintptr_t, 5> arrays, int64_t batch, uintptr_t x, uintptr_t y,
         uintptr_t bias, uintptr_t residual, int activation, int threads) {
        const auto [starts, values, places, scales, offsets] = arrays;
        const Int8Steps a{shape[0],            shape[1],          at<int32_t>(starts),  at<int8_t>(values),
                          at<uint8_t>(places), at<float>(scales), at<int32_t>(offsets)};
        gemv_int8(a, batch, at<float>(x), at<float>(y), epilogue(bias, residual, activation), threads);
      },
      unlocked);
  module.def(
      "depthwise",
      [](uintptr_t weight, std::array<int64_t, 7> shape, uintptr_t x, uintptr_t y, uintptr_t bias, uintptr_t residual,
         int activation, int threads) {
        const auto& s = shape;  // images, channels, height, width, kernel, stride, padding
        const Depthwise job{s[1], s[2], s[3], s[4], s[5], s[6], at<float>(weight), at<float>(x), at<float>(y),
                            epilogue(bias, residual, activation)};
        depthwise(job, s[0], threads);
      },
      unlocked);
  module.def(
      "max_pool",
      [](std::array<int64_t, 6> shape, uintptr_t x, uintptr_t y, int threads) {
        const auto& s = shape;  // planes, height, width, kernel, stride, padding
        max_pool({s[1], s[2], s[3], s[4], s[5], at<float>(x), at<float>(y)}, s[0], threads);
      },
      unlocked);
  module.def(
      "mean",
      [](int64_t rows, int64_t length, uintptr_t x, uintptr_t y, int threads) {
        mean(at<float>(x), at<float>(y), rows, length, threads);
      },
      unlocked);
  module.def(
      "add",
      [](uintptr_t a, uintptr_t b, uintptr_t y, int activation, int64_t count, int threads) {
        add(at<float>(a), at<float>(b), at<float>(y), static_cast<Activation>(activation), count, threads);
      },
      unlocked);
}

}  // namespace gossamer
