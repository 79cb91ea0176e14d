// Training kernels for Python. Addresses come from gossamer/kernels/sparse_train.py, which has checked dtypes, shapes
// and strides; patterns are checked here.
#include <nanobind/nanobind.h>

#include <algorithm>

#include "../core/pool.hpp"
#include "pattern.hpp"
#include "train_kernels.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

constexpr int64_t kFeatures = 64;  // of a chunk of `load`
constexpr int64_t kBatch = 128;    // samples of a pass: the activations of a layer of some 1000 features fit the cache

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Pattern pattern_at(uintptr_t address, int64_t words) { return view_pattern(at<int32_t>(address), words); }

void pack(uintptr_t words, uintptr_t mask, int64_t outputs, int64_t inputs, int64_t nonzeros, int64_t forward_block,
          int64_t forward_panel, int64_t backward_block, int64_t backward_panel, int threads) {
  const Geometry geometry{outputs,       inputs,         nonzeros,      forward_block,
                          forward_panel, backward_block, backward_panel};
  pack_pattern(at<int32_t>(words), geometry, at<uint8_t>(mask), threads);
}

int64_t words(int64_t outputs, int64_t inputs, int64_t nonzeros, int64_t forward_block, int64_t forward_panel,
              int64_t backward_block, int64_t backward_panel) {
  return pattern_words({outputs, inputs, nonzeros, forward_block, forward_panel, backward_block, backward_panel});
}

void gather(uintptr_t words, int64_t count, uintptr_t dense, uintptr_t values, int threads) {
  gather_dense(pattern_at(words, count), at<float>(dense), at<float>(values), threads);
}

void scatter(uintptr_t words, int64_t count, uintptr_t values, uintptr_t dense, int threads) {
  scatter_dense(pattern_at(words, count), at<float>(values), at<float>(dense), threads);
}

void move_values(uintptr_t last, int64_t last_words, uintptr_t old_values, uintptr_t next, int64_t next_words,
                 uintptr_t new_values, int threads) {
  transfer(pattern_at(last, last_words), at<float>(old_values), pattern_at(next, next_words), at<float>(new_values),
           threads);
}

void forward(uintptr_t words, int64_t count, uintptr_t values, uintptr_t bias, uintptr_t x, int64_t ldx, uintptr_t y,
             int64_t ldy, bool relu, int64_t samples, int threads) {
  const Pattern pattern = pattern_at(words, count);
  const auto& kernels = train_kernels();
  for (int64_t s = 0; s < samples; s += kBatch)
    parallel_for(blocks_of(pattern.forward), 1, threads, [&](int64_t block, int64_t) {
      kernels.forward(pattern.forward, pattern.order, at<float>(values), block, {at<float>(x) + s, ldx},
                      at<float>(y) + s, ldy, at<float>(bias), relu, std::min(kBatch, samples - s));
    });
}

void backward(uintptr_t words, int64_t count, uintptr_t values, uintptr_t x, int64_t ldx, uintptr_t dy, int64_t lddy,
              uintptr_t dx, int64_t lddx, uintptr_t gradient, int64_t samples, int threads) {
  const Pattern pattern = pattern_at(words, count);
  const auto& kernels = train_kernels();
  for (int64_t s = 0; s < samples; s += kBatch)
    parallel_for(blocks_of(pattern.backward), 1, threads, [&](int64_t block, int64_t) {
      kernels.backward(pattern.backward, at<float>(values), block, {at<float>(x) + s, ldx}, {at<float>(dy) + s, lddy},
                       dx ? at<float>(dx) + s : nullptr, lddx, at<float>(gradient), s > 0, std::min(kBatch, samples - s));
    });
}

void load(uintptr_t source, int64_t of_sample, int64_t of_feature, int64_t features, int64_t count, uintptr_t target,
          int64_t ld, int64_t samples, uintptr_t gate, int64_t gate_ld, uintptr_t sums, int threads) {
  const auto& kernels = train_kernels();
  const Activations gates{at<float>(gate), gate_ld};
  parallel_for(features, kFeatures, threads, [&](int64_t begin, int64_t end) {
    kernels.load(at<float>(source), of_sample, of_feature, begin, end, count, at<float>(target), ld, samples,
                 gate ? &gates : nullptr, at<float>(sums));
  });
}

}  // namespace

void bind_train(nb::module_& module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  module.def("train_pattern_words", &words);
  module.def("train_pack", &pack, unlocked);
  module.def("train_gather", &gather, unlocked);
  module.def("train_scatter", &scatter, unlocked);
  module.def("train_transfer", &move_values, unlocked);
  module.def("train_forward", &forward, unlocked);
  module.def("train_backward", &backward, unlocked);
  module.def("train_load", &load, unlocked);
}

}  // namespace gossamer
