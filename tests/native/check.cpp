// Native kernels against plain loops, without Python: built and run for another processor by tests/cross.py.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/masks/mask_kernels.hpp"
#include "../../csrc/masks/topk.hpp"
#include "../../csrc/sparse/conv.hpp"
#include "../../csrc/sparse/gemv.hpp"
#include "../../csrc/sparse/int8.hpp"
#include "../../csrc/sparse/pointwise.hpp"
#include "../../csrc/train/pattern.hpp"
#include "../../csrc/train/train_kernels.hpp"

using namespace gossamer;
using Floats = std::vector<float>;

namespace {

std::mt19937 generator(0);
int failures = 0;

Floats numbers(int64_t count, double density = 1.0) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> uniform(0, 1);
  Floats out(count);
  for (float& x : out) x = uniform(generator) < density ? normal(generator) : 0.0f;
  return out;
}

void expect(bool right, const char* what) {
  if (right) return;
  ++failures;
  std::printf("FAILED at level %s: %s\n", name(level()), what);
}

void expect_close(const Floats& got, const std::vector<double>& wanted, const char* what) {
  double worst = 0, scale = 1;
  for (size_t i = 0; i < wanted.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - wanted[i]));
    scale = std::max(scale, std::abs(wanted[i]));
  }
  expect(worst <= 2e-5 * scale, what);
}

// rows x columns times columns x pixels, then ReLU of the sum with the bias.
std::vector<double> product(const Floats& a, const Floats& x, const Floats& bias, int64_t rows, int64_t columns,
                            int64_t pixels) {
  std::vector<double> y(rows * pixels);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t q = 0; q < pixels; ++q) {
      double sum = bias[r];
      for (int64_t k = 0; k < columns; ++k) sum += double(a[r * columns + k]) * x[k * pixels + q];
      y[r * pixels + q] = std::max(sum, 0.0);
    }
  return y;
}

struct Blocks {
  std::vector<int32_t> pointers{0};
  std::vector<uint16_t> indices;
  Floats values;
  BlockMatrix view;
};

Blocks pack_blocks(const Floats& a, int64_t rows, int64_t columns, int64_t block, int64_t panel) {
  Blocks m;
  m.view.rows = rows, m.view.columns = columns, m.view.block = block, m.view.panel = panel;
  const auto at = [&](int64_t r, int64_t c) { return r < rows ? a[r * columns + c] : 0.0f; };
  for (int64_t p = 0; p < m.view.panels(); ++p)
    for (int64_t s = 0; s < m.view.strips(); ++s) {
      for (int64_t c = p * panel; c < std::min(columns, (p + 1) * panel); ++c) {
        bool any = false;
        for (int64_t r = 0; r < block; ++r) any |= at(s * block + r, c) != 0.0f;
        if (!any) continue;
        m.indices.push_back(static_cast<uint16_t>(c - p * panel));
        for (int64_t r = 0; r < block; ++r) m.values.push_back(at(s * block + r, c));
      }
      m.pointers.push_back(static_cast<int32_t>(m.indices.size()));
    }
  m.view.pointers = m.pointers.data(), m.view.indices = m.indices.data(), m.view.values = m.values.data();
  return m;
}

uint16_t half(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return static_cast<uint16_t>(word >> 16);
}

// Numbers that bfloat16 holds.
Floats short_numbers(int64_t count, double density = 1.0) {
  Floats out = numbers(count, density);
  for (float& x : out) {
    const uint32_t word = uint32_t(half(x)) << 16;
    std::memcpy(&x, &word, 4);
  }
  return out;
}

// The values of a block matrix as halves, of every two entries of a strip side by side.
std::vector<uint16_t> zipped(const Blocks& m) {
  std::vector<uint16_t> out(m.values.size());
  const int64_t block = m.view.block;
  for (size_t s = 0; s + 1 < m.pointers.size(); ++s)
    for (int64_t e = m.pointers[s]; e < m.pointers[s + 1]; ++e)
      for (int64_t r = 0; r < block; ++r) {
        const int64_t rank = e - m.pointers[s], pair = e - rank % 2;
        const bool is_alone = pair + 1 == m.pointers[s + 1];
        out[pair * block + (is_alone ? r : 2 * r + rank % 2)] = half(m.values[e * block + r]);
      }
  return out;
}

void check_bf16() {
  for (int64_t block : {1, 4, 8, 16})
    for (int64_t pixels : {1, 17, 49, 200}) {
      const int64_t rows = 37, columns = 90;
      const Floats a = short_numbers(rows * columns, 0.3), x = short_numbers(columns * pixels), bias = numbers(rows);
      Blocks m = pack_blocks(a, rows, columns, block, 40);
      const std::vector<uint16_t> halves = zipped(m);
      m.view.values = nullptr, m.view.halves = halves.data();
      Floats y(rows * pixels);
      const ConvShape shape{columns, {1, pixels}, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
      conv(m.view, shape, 1, x.data(), y.data(), {bias.data(), nullptr, Activation::relu}, 2);
      expect_close(y, product(a, x, bias, rows, columns, pixels), "spmm in bfloat16");
    }
}

// The weights of an 8-bit matrix in steps: the same bits as from `wanted`.
void check_steps(const std::vector<int8_t>& dense, const Floats& scales, const std::vector<int32_t>& offsets,
                 int64_t rows, int64_t columns, const Floats& x, const Epilogue& after, const Floats& wanted) {
  Int8Steps a;
  a.rows = rows, a.columns = columns, a.scales = scales.data(), a.offsets = offsets.data();
  std::vector<int32_t> starts{0};
  std::vector<int8_t> values;
  std::vector<uint8_t> places;
  for (int64_t g = 0; g < a.groups(); ++g)
    for (int64_t p = 0; p < a.panels(); ++p) {
      for (int64_t r = 0; r < Int8Steps::kGroup && g * Int8Steps::kGroup + r < rows; ++r) {
        int64_t rank = 0;
        for (int64_t c = p * Int8Steps::kPanel; c < std::min(columns, (p + 1) * Int8Steps::kPanel); ++c) {
          const int8_t value = dense[(g * Int8Steps::kGroup + r) * columns + c];
          if (value == 0) continue;
          const size_t at = (starts.back() + rank / 4) * Int8Steps::kStep + r * 4 + rank % 4;
          if (at >= values.size()) {
            values.resize((starts.back() + rank / 4 + 1) * Int8Steps::kStep);
            places.resize(values.size());
          }
          values[at] = value, places[at] = static_cast<uint8_t>(c - p * Int8Steps::kPanel);
          ++rank;
        }
      }
      starts.push_back(static_cast<int32_t>(values.size() / Int8Steps::kStep));
    }
  a.starts = starts.data(), a.values = values.data(), a.places = places.data();
  Floats y(rows);
  gemv_int8(a, 1, x.data(), y.data(), after, 2);
  expect(y == wanted, "gemv in 8-bit steps");
}

void check_spmm() {
  for (int64_t block : {1, 4, 8, 16})
    for (int64_t pixels : {1, 3, 16, 49, 200}) {
      const int64_t rows = 37, columns = 90;
      const Floats a = numbers(rows * columns, 0.3), x = numbers(columns * pixels), bias = numbers(rows);
      const Blocks m = pack_blocks(a, rows, columns, block, 40);
      Floats y(rows * pixels), again(rows * pixels);
      const ConvShape shape{columns, {1, pixels}, {1, 1}, {1, 1}, {0, 0}, {1, 1}};
      conv(m.view, shape, 1, x.data(), y.data(), {bias.data(), nullptr, Activation::relu}, 1);
      conv(m.view, shape, 1, x.data(), again.data(), {bias.data(), nullptr, Activation::relu}, 3);
      expect_close(y, product(a, x, bias, rows, columns, pixels), "spmm");
      expect(y == again, "spmm depends on threads");
    }
}

void check_rows() {
  for (int64_t columns : {1, 15, 64, 65, 300}) {
    const int64_t rows = 21, words = (columns + 63) / 64;
    const Floats a = numbers(rows * columns, 0.2), x = numbers(columns), bias = numbers(rows);
    std::vector<int32_t> pointers{0}, offsets;
    std::vector<uint16_t> indices;
    std::vector<uint64_t> bits(rows * words);
    std::vector<int8_t> integers, whole(rows * columns);
    Floats values, scales(rows, 0.01f), y(rows), rounded(columns * rows);
    for (int64_t r = 0; r < rows; ++r) {
      int32_t sum = 0;
      for (int64_t c = 0; c < columns; ++c) {
        const float w = a[r * columns + c];
        if (w == 0.0f) continue;
        values.push_back(w), indices.push_back(static_cast<uint16_t>(c));
        bits[r * words + c / 64] |= uint64_t(1) << (c % 64);
        integers.push_back(static_cast<int8_t>(std::lround(std::max(-1.27f, std::min(1.27f, w)) * 100)));
        rounded[r * columns + c] = integers.back() * 0.01f;
        whole[r * columns + c] = integers.back();
        sum += integers.back();
      }
      pointers.push_back(static_cast<int32_t>(values.size())), offsets.push_back(128 * sum);
    }
    const auto wanted = product(a, x, bias, rows, columns, 1);
    const Epilogue after{bias.data(), nullptr, Activation::relu};
    values.resize(values.size() + kValuesBeyond), integers.resize(integers.size() + kBytesBeyond);
    RowMatrix m{rows, columns, pointers.data(), values.data(), indices.data(), nullptr};
    expect(is_valid(m, pointers.back()), "a sound matrix is refused");
    gemv(m, false, 1, x.data(), y.data(), after, 2);
    expect_close(y, wanted, "gemv by index");
    m.indices = nullptr, m.bits = bits.data();
    gemv(m, false, 1, x.data(), y.data(), after, 2);
    expect_close(y, wanted, "gemv by bits");
    std::vector<uint16_t> halves;
    for (float v : values) {
      uint32_t word;
      std::memcpy(&word, &v, 4);
      halves.push_back(static_cast<uint16_t>(word >> 16));
    }
    m.values = halves.data();
    gemv(m, true, 1, x.data(), y.data(), after, 1);
    double error = 0;
    for (int64_t r = 0; r < rows; ++r) error = std::max(error, std::abs(y[r] - wanted[r]));
    expect(error < 0.2, "gemv in bfloat16");
    gemv_int8({rows, columns, pointers.data(), integers.data(), bits.data(), scales.data(), offsets.data()}, 1,
              x.data(), y.data(), after, 2);
    const auto near = product(rounded, x, bias, rows, columns, 1);
    for (int64_t r = 0; r < rows; ++r) expect(std::abs(y[r] - near[r]) < 0.2, "gemv in 8 bits");
    check_steps(whole, scales, offsets, rows, columns, x, after, y);
  }
}

void check_depthwise() {
  for (int64_t stride : {1, 2})
    for (int64_t kernel : {3, 5}) {
      Depthwise job{3, 9, 21, kernel, stride, kernel / 2};
      const int64_t height = job.out(9), width = job.out(21);
      const Floats weight = numbers(3 * kernel * kernel), x = numbers(3 * 9 * 21);
      Floats y(3 * height * width);
      job.weight = weight.data(), job.x = x.data(), job.y = y.data();
      depthwise(job, 1, 2);
      std::vector<double> wanted(y.size());
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j)
            for (int64_t a = 0; a < kernel; ++a)
              for (int64_t b = 0; b < kernel; ++b) {
                const int64_t r = i * stride + a - kernel / 2, s = j * stride + b - kernel / 2;
                if (r >= 0 && r < 9 && s >= 0 && s < 21)
                  wanted[(c * height + i) * width + j] +=
                      double(weight[(c * kernel + a) * kernel + b]) * x[(c * 9 + r) * 21 + s];
              }
      expect_close(y, wanted, "depthwise");
    }
}

void check_training() {
  const int64_t outputs = 70, inputs = 130, samples = 48;
  const Floats dense = numbers(outputs * inputs, 0.2), x = numbers(inputs * samples), dy = numbers(outputs * samples);
  std::vector<uint8_t> mask(dense.size());
  int64_t nonzeros = 0;
  for (size_t i = 0; i < dense.size(); ++i) nonzeros += mask[i] = dense[i] != 0.0f;
  const Geometry geometry{outputs, inputs, nonzeros, 64, 64, 64, 64};
  std::vector<int32_t> words(pattern_words(geometry));
  pack_pattern(words.data(), geometry, mask.data(), 2);
  const Pattern pattern = view_pattern(words.data(), static_cast<int64_t>(words.size()));
  Floats values(nonzeros + 16), gradient(nonzeros + 16), y(outputs * samples), dx(inputs * samples), back(dense.size());
  gather_dense(pattern, dense.data(), values.data(), 1);
  scatter_dense(pattern, values.data(), back.data(), 1);
  expect(back == dense, "gather and scatter");
  const auto& kernels = train_kernels();
  for (int64_t b = 0; b < blocks_of(pattern.forward); ++b)
    kernels.forward(pattern.forward, pattern.order, values.data(), b, {x.data(), samples}, y.data(), samples, nullptr,
                    true, samples);
  expect_close(y, product(dense, x, Floats(outputs), outputs, inputs, samples), "training, forward");
  for (int64_t b = 0; b < blocks_of(pattern.backward); ++b)
    kernels.backward(pattern.backward, values.data(), b, {x.data(), samples}, {dy.data(), samples}, dx.data(), samples,
                     gradient.data(), false, samples);
  std::vector<double> wanted_dx(dx.size()), wanted_dw(dense.size());
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t s = 0; s < samples && mask[o * inputs + i]; ++s) {
        wanted_dx[i * samples + s] += double(dense[o * inputs + i]) * dy[o * samples + s];
        wanted_dw[o * inputs + i] += double(x[i * samples + s]) * dy[o * samples + s];
      }
  expect_close(dx, wanted_dx, "training, gradient of inputs");
  Floats dw(dense.size());
  scatter_dense(pattern, gradient.data(), dw.data(), 1);
  expect_close(dw, wanted_dw, "training, gradient of weights");
}

void check_masks() {
  const int64_t count = 203;
  const Floats scores = numbers(204);
  std::vector<uint8_t> mask(204), bits((count + 7) / 8), back(count);
  expect(topk_row(scores.data(), mask.data(), count, 50), "topk");
  const auto& kernels = mask_kernels();
  kernels.pack(mask.data(), bits.data(), count);
  expect(kernels.popcount(bits.data(), static_cast<int64_t>(bits.size())) == 50, "popcount");
  kernels.unpack(bits.data(), back.data(), count);
  expect(std::equal(back.begin(), back.end(), mask.begin()), "pack and unpack");
  expect(kernels.nm_f32(scores.data(), mask.data(), 51, 2, 4), "2:4");
  for (int64_t g = 0; g < 51; ++g) {
    int kept = 0;
    float least = 1e9f, most = -1e9f;
    for (int64_t i = 4 * g; i < 4 * g + 4; ++i) {
      kept += mask[i] != 0;
      if (mask[i]) least = std::min(least, scores[i]);
      else most = std::max(most, scores[i]);
    }
    expect(kept == 2 && least >= most, "2:4 keeps the largest");
  }
}

}  // namespace

int main() {
  for (Level each : available()) {
    set_level(name(each));
    check_spmm(), check_bf16(), check_rows(), check_depthwise(), check_training(), check_masks();
    std::printf("level %s checked\n", name(each));
  }
  return failures != 0;
}
