#include "program.hpp"

#include <algorithm>
#include <chrono>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../core/pool.hpp"
#include "../sparse/workspace.hpp"
#include "engine_kernels.hpp"

namespace gossamer {
namespace {

constexpr int64_t kMost = int64_t(1) << 40;     // floats of anything
constexpr int64_t kBeyond = 64;                 // bytes readable after each array
constexpr int64_t kFewVectors = 8;              // below it a fully connected layer is a product with each of them
constexpr int64_t kStrip = 1 << 17;             // floats of depthwise outputs held at a time, in the L2 cache
constexpr int64_t kRowsAtATime = 4;             // of a depthwise convolution
constexpr int64_t kFewPixels = 416;             // of a strip at least: two of the widest tiles of one row
constexpr int64_t kGrain = 1 << 14;             // floats in a chunk of an element-wise step

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int64_t product(std::initializer_list<int64_t> factors) {
  int64_t all = 1;
  for (int64_t f : factors) {
    if (f < 0 || f > kMost || (f > 0 && all > kMost / f)) refuse("a size is negative or too large");
    all *= f;
  }
  return all;
}

int64_t bytes_of(int64_t type) {
  if (type < 0 || type > 4) refuse("an array has an unknown type");
  constexpr int64_t sizes[] = {4, 4, 2, 8, 2};
  return sizes[type];
}

ConvShape conv_shape(const Step& s) {
  const int64_t* p = s.shape;  // channels, then height and width of input, kernel, stride, padding, dilation
  return {p[0], {p[1], p[2]}, {p[3], p[4]}, {p[5], p[6]}, {p[7], p[8]}, {p[9], p[10]}};
}

int64_t windows(int64_t length, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  constexpr int64_t most = 1 << 24;
  if (length < 1 || kernel < 1 || stride < 1 || padding < 0 || dilation < 1) refuse("a window is empty or negative");
  if (length > most || kernel > 256 || stride > most || dilation > 4096) refuse("a window is too large");
  const int64_t extent = dilation * (kernel - 1) + 1;
  if (padding >= extent + stride || length + 2 * padding < extent) refuse("a window does not fit its input");
  return (length + 2 * padding - extent) / stride + 1;
}

void depthwise_steps(const Depthwise& job, int64_t images, int threads) {
  if (job.after.residual) return depthwise(job, images, threads);
  const auto& kernels = engine_kernels();
  const int64_t size = job.height * job.width, height = job.out(job.height), out_size = height * job.out(job.width);
  parallel_for(images * job.channels, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, size)), threads,
               [&](int64_t begin, int64_t end) {
                 for (int64_t plane = begin; plane < end; ++plane) {
                   Depthwise one = job;  // channels before the plane's own are skipped, not read
                   const int64_t c = plane % job.channels;
                   one.x = job.x + (plane - c) * size;
                   one.y = job.y + (plane - c) * out_size;
                   kernels.depthwise_rows(one, 0, height, c, c + 1);
                 }
               });
}

}  // namespace

Program::Program(std::vector<Step> steps, std::vector<Value> values, std::vector<Array> arrays,
                 std::vector<Matrix> matrices, const unsigned char* constants, int64_t bytes, int64_t arena)
    : steps_(std::move(steps)), values_(std::move(values)), arrays_(std::move(arrays)), constants_(constants),
      bytes_(bytes), arena_(arena) {
  product({arena_, 4});
  for (const Value& v : values_)
    if (v.size < 0 || v.offset < -1 || v.size > kMost || v.offset > kMost || (v.offset >= 0 && v.offset + v.size > arena_))
      refuse("a value lies outside of the arena");
  for (const Array& a : arrays_)
    if (a.offset < 0 || a.offset % 64 || a.offset > bytes_ ||
        a.offset > bytes_ - kBeyond - product({a.count, bytes_of(a.type)}))
      refuse("an array lies outside of the constants");
  for (const Matrix& m : matrices) matrices_.push_back(sparse(m));
  for (size_t i = 0; i < steps_.size(); ++i) try {
      check(steps_[i]);
    } catch (const std::invalid_argument& error) {
      refuse("step " + std::to_string(i) + ": " + error.what());
    }
}

const void* Program::array(int64_t index, int64_t type, int64_t least) const {
  if (index < 0 || index >= static_cast<int64_t>(arrays_.size())) refuse("there is no array of that number");
  const Array& a = arrays_[index];
  if (a.type != type || a.count < least) refuse("an array has another type, or is too short");
  return constants_ + a.offset;
}

Program::Sparse Program::sparse(const Matrix& m) const {
  Sparse s;
  if (product({m.rows, m.columns}) > kMost || m.kind < 0 || m.kind > 3) refuse("a matrix has an unknown kind");
  const auto known = [&](int64_t index) {
    if (index < 0 || index >= static_cast<int64_t>(arrays_.size())) refuse("a matrix lacks an array");
    return arrays_[index];
  };
  if (m.kind != 1) {
    if (m.block < 1 || m.block > 16 || m.panel < 1 || m.panel > 65536) refuse("a matrix has impossible blocks");
    s.block = {m.rows, m.columns, m.block, m.panel, nullptr, nullptr, nullptr, nullptr, nullptr};
    const int64_t entries = known(m.indices).count;
    s.block.pointers = static_cast<const int32_t*>(array(m.pointers, 1, s.block.strips() * s.block.panels() + 1));
    s.block.indices = static_cast<const uint16_t*>(array(m.indices, 2, entries));
    const void* values = array(m.values, m.kind == 3 ? 4 : 0, product({entries, m.block}));
    if (m.kind == 3) {
      s.block.halves = static_cast<const uint16_t*>(values);
    } else {
      s.block.values = static_cast<const float*>(values);
    }
    if (!is_valid(s.block, entries)) refuse("a matrix has pointers or indices that are out of range");
    if (m.kind == 2) s.code = encode(s.block, kMostCode);
    s.block.code = s.code.get();
    return s;
  }
  s.is_row = true;
  s.is_bf16 = known(m.values).type == 4;
  s.row = {m.rows, m.columns, nullptr, nullptr, nullptr, nullptr};
  s.row.pointers = static_cast<const int32_t*>(array(m.pointers, 1, m.rows + 1));
  const int64_t entries = s.row.pointers[m.rows];
  if (entries < 0) refuse("a matrix has pointers that are out of range");
  s.row.values = array(m.values, s.is_bf16 ? 4 : 0, entries + (m.bits >= 0 ? kValuesBeyond : 0));
  if (m.bits >= 0) {
    s.row.bits = static_cast<const uint64_t*>(array(m.bits, 3, product({m.rows, (m.columns + 63) / 64})));
  } else {
    if (s.is_bf16) refuse("indexed rows hold float32 values");
    s.row.indices = static_cast<const uint16_t*>(array(m.indices, 2, entries));
  }
  if (!is_valid(s.row, entries)) refuse("a matrix has pointers or indices that are out of range");
  return s;
}

const Program::Sparse& Program::matrix(int64_t index, bool is_row) const {
  if (index < 0 || index >= static_cast<int64_t>(matrices_.size())) refuse("there is no matrix of that number");
  if (matrices_[index].is_row != is_row) refuse("a matrix has the wrong format");
  return matrices_[index];
}

void Program::expect(int64_t value, int64_t size, const char* role) const {
  if (value < 0 || value >= static_cast<int64_t>(values_.size())) refuse(std::string("there is no ") + role);
  if (values_[value].size != size)
    refuse(std::string("the ") + role + " has " + std::to_string(values_[value].size) + " numbers, not " +
           std::to_string(size));
}

void Program::check_conv(const Step& s) const {
  const ConvShape shape = conv_shape(s);
  const int64_t height = windows(shape.input.height, shape.kernel.height, shape.stride.height, shape.padding.height,
                                 shape.dilation.height);
  const int64_t width = windows(shape.input.width, shape.kernel.width, shape.stride.width, shape.padding.width,
                                shape.dilation.width);
  const BlockMatrix& a = matrix(s.weights, false).block;
  if (a.columns != product({shape.channels, shape.kernel.height, shape.kernel.width})) refuse("weights of another shape");
  expect(s.in, product({shape.channels, shape.input.height, shape.input.width}), "input");
  expect(s.out, product({a.rows, height, width}), "output");
  if (s.bias >= 0) array(s.bias, 0, a.rows);
}

void Program::check_windows(const Step& s) const {
  const int64_t* p = s.shape;  // channels or planes, height, width, kernel, stride, padding
  const int64_t out = product({p[0], windows(p[1], p[3], p[4], p[5], 1), windows(p[2], p[3], p[4], p[5], 1)});
  expect(s.in, product({p[0], p[1], p[2]}), "input");
  expect(s.out, out, "output");
  if (static_cast<Op>(s.op) == Op::max_pool) {
    if (p[5] > p[3] / 2) refuse("a pooling window may lie outside of the image");
    return;
  }
  check_depthwise(s, s.weights, s.bias);
}

void Program::check_depthwise(const Step& s, int64_t weight, int64_t bias) const {
  const int64_t* p = s.shape;
  if ((p[3] != 3 && p[3] != 5) || p[4] > 2 || p[5] >= p[3]) refuse("no depthwise kernel has this shape");
  array(weight, 0, product({p[0], p[3], p[3]}));
  if (bias >= 0) array(bias, 0, p[0]);
}

void Program::check_separable(const Step& s) const {
  const int64_t* p = s.shape;  // as check_windows, then the depthwise bias and activation
  const int64_t pixels = product({windows(p[1], p[3], p[4], p[5], 1), windows(p[2], p[3], p[4], p[5], 1)});
  const BlockMatrix& a = matrix(s.weights, false).block;
  if (a.columns != p[0]) refuse("weights of another shape");
  if (p[7] < 0 || p[7] >= kActivations) refuse("an unknown activation");
  check_depthwise(s, s.rows, p[6]);
  expect(s.in, product({p[0], p[1], p[2]}), "input");
  expect(s.out, product({a.rows, pixels}), "output");
  if (s.bias >= 0) array(s.bias, 0, a.rows);
}

void Program::check(const Step& s) const {
  if (s.activation < 0 || s.activation >= kActivations) refuse("an unknown activation");
  const auto size = [&](int64_t value) {
    if (value < 0 || value >= static_cast<int64_t>(values_.size())) refuse("a value is missing");
    return values_[value].size;
  };
  bool is_other_used = true;
  switch (static_cast<Op>(s.op)) {
    case Op::conv: check_conv(s); break;
    case Op::linear: {
      const BlockMatrix& a = matrix(s.weights, false).block;
      expect(s.in, product({s.shape[0], a.columns}), "input");  // shape[0]: vectors of one image
      expect(s.out, product({s.shape[0], a.rows}), "output");
      if (s.bias >= 0) array(s.bias, 0, a.rows);
      if (s.rows >= 0) {
        const RowMatrix& b = matrix(s.rows, true).row;
        if (a.rows != b.rows || a.columns != b.columns) refuse("two formats of different shapes");
      }
      break;
    }
    case Op::depthwise: check_windows(s); break;
    case Op::separable: check_separable(s); break;
    case Op::max_pool: check_windows(s); is_other_used = false; break;
    case Op::mean:
      expect(s.in, product({s.shape[0], s.shape[1]}), "input");
      expect(s.out, s.shape[0], "output");
      if (s.shape[1] < 1) refuse("the mean of nothing");
      is_other_used = false;
      break;
    case Op::add: expect(s.in, size(s.out), "input"); break;
    case Op::copy:
      if (s.shape[0] < 0 || s.shape[0] > kMost || size(s.in) > size(s.out) || s.shape[0] > size(s.out) - size(s.in))
        refuse("a copy ends outside of its output");
      is_other_used = false;
      break;
    case Op::scale:
      expect(s.in, product({s.shape[0], s.shape[1]}), "input");
      expect(s.out, size(s.in), "output");
      expect(s.other, s.shape[0], "factor");
      return;
    default: refuse("an unknown operator");
  }
  if (s.other >= 0 && !is_other_used) refuse("an operand that the operator does not take");
  if (s.other >= 0) expect(s.other, size(s.out), "residual");
}

struct Program::Call {
  const Program& program;
  int64_t first, images;  // of the batch
  const uintptr_t* addresses;
  float* arena;
  int64_t chunk;
  int threads;

  float* at(int64_t value) const {
    if (value < 0) return nullptr;
    const Value& v = program.values_[value];
    return v.offset < 0 ? reinterpret_cast<float*>(addresses[value]) + first * v.size : arena + v.offset * chunk;
  }
};

void Program::step(const Step& s, const Call& call) const {
  float *const x = call.at(s.in), *const y = call.at(s.out), *const other = call.at(s.other);
  const float* bias = s.bias >= 0 ? static_cast<const float*>(array(s.bias, 0, 0)) : nullptr;
  const Epilogue after{bias, other, static_cast<Activation>(s.activation)};
  const int64_t *p = s.shape, images = call.images;
  switch (static_cast<Op>(s.op)) {
    case Op::conv: conv(matrices_[s.weights].block, conv_shape(s), images, x, y, after, call.threads); break;
    case Op::linear:
      if (s.rows >= 0 && images * p[0] < kFewVectors) {
        gemv(matrices_[s.rows].row, matrices_[s.rows].is_bf16, images * p[0], x, y, after, call.threads);
      } else {
        linear(matrices_[s.weights].block, images * p[0], x, y, after, call.threads);
      }
      break;
    case Op::depthwise: {
      const Depthwise job{p[0], p[1], p[2], p[3], p[4], p[5], static_cast<const float*>(array(s.weights, 0, 0)), x, y, after};
      depthwise_steps(job, images, call.threads);
      break;
    }
    case Op::separable: separable(s, call); break;
    case Op::max_pool: max_pool({p[1], p[2], p[3], p[4], p[5], x, y}, images * p[0], call.threads); break;
    case Op::mean: mean(x, y, images * p[0], p[1], call.threads); break;
    case Op::add: add(x, other, y, after.activation, images * values_[s.out].size, call.threads); break;
    case Op::copy: {
      const int64_t size = values_[s.in].size, stride = values_[s.out].size;
      for (int64_t i = 0; i < images; ++i) std::copy(x + i * size, x + (i + 1) * size, y + i * stride + p[0]);
      break;
    }
    case Op::scale: {
      const auto& kernels = engine_kernels();
      parallel_for(images * p[0], std::max<int64_t>(1, kGrain / std::max<int64_t>(1, p[1])), call.threads,
                   [&](int64_t begin, int64_t end) { kernels.scale(x, other, y, p[1], begin, end); });
    }
  }
}

void Program::separable(const Step& s, const Call& call) const {
  const int64_t* p = s.shape;
  const auto floats = [&](int64_t index) { return index < 0 ? nullptr : static_cast<const float*>(array(index, 0, 0)); };
  Depthwise first{p[0], p[1], p[2], p[3], p[4], p[5], floats(s.rows), nullptr, nullptr,
                  {floats(p[6]), nullptr, static_cast<Activation>(p[7])}};
  const BlockMatrix& a = matrices_[s.weights].block;
  const int64_t height = first.out(p[1]), width = first.out(p[2]), pixels = height * width;
  const int64_t wanted = std::max(kStrip / (p[0] * width), (kFewPixels + width - 1) / width);
  const int64_t rows = std::min((wanted + kRowsAtATime - 1) / kRowsAtATime * kRowsAtATime, height);
  const int64_t strips = (height + rows - 1) / rows;
  const auto& kernels = engine_kernels();
  const bool is_outer = call.images * strips >= 2 * call.threads;  // each thread takes whole strips
  const int inner = is_outer ? 1 : call.threads;
  parallel_for(call.images * strips, 1, is_outer ? call.threads : 1, [&](int64_t chunk, int64_t) {
    const int64_t image = chunk / strips, begin = chunk % strips * rows, end = std::min(begin + rows, height);
    thread_local Scratch scratch;
    float* const strip = scratch.floats(p[0] * (end - begin) * width);
    Depthwise job = first;
    job.x = call.at(s.in) + image * p[0] * p[1] * p[2];
    job.y = strip;
    parallel_for(p[0], std::max<int64_t>(1, kGrain / ((end - begin) * width)), inner, [&](int64_t from, int64_t to) {
      kernels.depthwise_rows(job, begin, end, from, to);
    });
    const int64_t place = image * a.rows * pixels + begin * width;
    Spmm product;
    product.a = a;
    product.x = strip;
    product.x_stride = product.pixels = (end - begin) * width;
    product.y = call.at(s.out) + place;
    product.y_stride = pixels;
    const float* residual = call.at(s.other);
    product.after = {floats(s.bias), residual ? residual + place : nullptr, static_cast<Activation>(s.activation)};
    spmm(product, inner);
  });
}

void Program::run(int64_t begin, int64_t end, int64_t images, int64_t chunk, const uintptr_t* addresses, float* arena,
                  int threads, int64_t* nanoseconds) const {
  if (begin < 0 || end > size() || begin > end || images < 0 || chunk < 1 || threads < 1) refuse("no such steps");
  for (int64_t first = 0; first < images; first += chunk) {
    const Call call{*this, first, std::min(chunk, images - first), addresses, arena, chunk, threads};
    for (int64_t i = begin; i < end; ++i) {
      if (!nanoseconds) {
        step(steps_[i], call);
        continue;
      }
      const auto start = std::chrono::steady_clock::now();
      step(steps_[i], call);
      nanoseconds[i] += std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
    }
  }
}

}  // namespace gossamer
