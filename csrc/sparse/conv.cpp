#include "conv.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/pool.hpp"
#include "bf16.hpp"
#include "pointwise.hpp"
#include "workspace.hpp"

namespace gossamer {
namespace {

constexpr int64_t kGrain = 1 << 14;  // floats in a chunk of a copy

// Where the taps of one axis read: with stride s, tap t sees input s * o + t * dilation - padding, which is element
// o + shift of the phase (t * dilation) % s.
struct Axis {
  int64_t input, output, stride, padding;
  std::vector<int64_t> phase, shift;  // of each tap; phases are numbered in order of use
  std::vector<int64_t> start;         // of each phase: its first element's place in the input
  int64_t length = 0;                 // elements of a phase

  Axis(int64_t input, int64_t kernel, int64_t output, int64_t stride, int64_t padding, int64_t dilation)
      : input(input), output(output), stride(stride), padding(padding) {
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t first = (t * dilation) % stride - padding;
      const auto known = std::find(start.begin(), start.end(), first);
      phase.push_back(known - start.begin());
      shift.push_back(t * dilation / stride);
      if (known == start.end()) start.push_back(first);
    }
    length = output + *std::max_element(shift.begin(), shift.end());
  }
};

// One phase of one axis of a row: zero outside of the input.
void copy_row(const Axis& axis, int64_t start, const float* row, float* out) {
  const int64_t before = start < 0 ? std::min((-start + axis.stride - 1) / axis.stride, axis.length) : 0;
  const int64_t inside = start < axis.input ? (axis.input - 1 - start) / axis.stride + 1 : 0;
  const int64_t end = std::clamp(inside, before, axis.length);
  std::fill(out, out + before, 0.0f);
  if (axis.stride == 1) {
    std::copy(row + start + before, row + start + end, out + before);
  } else if (axis.stride == 2) {
    for (int64_t i = before; i < end; ++i) out[i] = row[start + 2 * i];
  } else {
    for (int64_t i = before; i < end; ++i) out[i] = row[start + axis.stride * i];
  }
  std::fill(out + end, out + axis.length, 0.0f);
}

// One channel: a padded plane for each pair of phases.
void copy_channel(const Axis& rows, const Axis& columns, const float* plane, float* out) {
  for (int64_t a : rows.start)
    for (int64_t b : columns.start)
      for (int64_t i = 0; i < rows.length; ++i, out += columns.length) {
        const int64_t line = a + i * rows.stride;
        if (line >= 0 && line < rows.input) {
          copy_row(columns, b, plane + line * columns.input, out);
        } else {
          std::fill(out, out + columns.length, 0.0f);
        }
      }
}

void conv_by_taps(const BlockMatrix& a, const ConvShape& shape, int64_t images, const float* x, float* y,
                  const Epilogue& after, int threads) {
  const Extent out = shape.output();
  const Axis rows(shape.input.height, shape.kernel.height, out.height, shape.stride.height, shape.padding.height,
                  shape.dilation.height);
  const Axis columns(shape.input.width, shape.kernel.width, out.width, shape.stride.width, shape.padding.width,
                     shape.dilation.width);
  const int64_t plane = rows.length * columns.length;
  const int64_t channel = plane * static_cast<int64_t>(rows.start.size() * columns.start.size());
  std::vector<int64_t> taps;
  taps.reserve(static_cast<size_t>(a.columns));
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t i = 0; i < shape.kernel.height; ++i)
      for (int64_t j = 0; j < shape.kernel.width; ++j) {
        const int64_t phase = rows.phase[i] * static_cast<int64_t>(columns.start.size()) + columns.phase[j];
        taps.push_back(c * channel + phase * plane + rows.shift[i] * columns.length + columns.shift[j]);
      }
  thread_local Scratch scratch;
  float* padded = scratch.floats(shape.channels * channel + kOverread);
  thread_local Scratch half_scratch;
  auto* const halves = reinterpret_cast<uint16_t*>(
      a.halves ? half_scratch.floats((shape.channels * channel + kOverread + 1) / 2) : nullptr);
  const int64_t in_plane = shape.input.height * shape.input.width, out_plane = out.height * out.width;
  for (int64_t image = 0; image < images; ++image) {
    const float* from = x + image * shape.channels * in_plane;
    parallel_for(shape.channels, std::max<int64_t>(1, kGrain / channel), threads, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) copy_channel(rows, columns, from + c * in_plane, padded + c * channel);
      if (halves) bf16_kernels().round(padded + begin * channel, halves + begin * channel, (end - begin) * channel);
    });
    Spmm job;
    job.a = a;
    job.x = padded;
    job.halves = halves;
    job.taps = taps.data();
    job.y = y + image * a.rows * out_plane;
    job.y_stride = out_plane;
    job.pixels = (out.height - 1) * columns.length + out.width;
    job.pitch = columns.length;
    job.width = out.width;
    job.after = after;
    if (after.residual) job.after.residual += image * a.rows * out_plane;
    spmm(job, threads);
  }
}

}  // namespace

void conv(const BlockMatrix& a, const ConvShape& shape, int64_t images, const float* x, float* y,
          const Epilogue& after, int threads) {
  const bool is_pointwise = shape.kernel.height * shape.kernel.width == 1 &&
                            shape.stride.height * shape.stride.width == 1 &&
                            shape.padding.height + shape.padding.width == 0;
  if (!is_pointwise) return conv_by_taps(a, shape, images, x, y, after, threads);
  const int64_t pixels = shape.input.height * shape.input.width;
  for (int64_t image = 0; image < images; ++image) {
    Spmm job;
    job.a = a;
    job.x = x + image * a.columns * pixels;
    job.x_stride = job.y_stride = job.pixels = pixels;
    job.y = y + image * a.rows * pixels;
    job.after = after;
    if (after.residual) job.after.residual += image * a.rows * pixels;
    spmm(job, threads);
  }
}

void linear(const BlockMatrix& a, int64_t batch, const float* x, float* y, const Epilogue& after, int threads) {
  if (batch <= 0 || a.rows <= 0) return;
  thread_local Scratch scratch;
  float* const y_columns = scratch.floats(a.rows * batch);
  Spmm job;
  job.a = a;
  job.x = x;
  job.token_stride = a.columns;
  job.y = y_columns;
  job.y_stride = job.pixels = batch;
  job.after = after;
  if (after.residual) {
    transpose(after.residual, batch, a.rows, y_columns, threads);
    job.after.residual = y_columns;
  }
  job.y_tokens = y;
  spmm(job, threads);
}

}  // namespace gossamer
