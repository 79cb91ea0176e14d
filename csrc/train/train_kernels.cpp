#include "train_kernels.hpp"

#include "lanes.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

constexpr int kForwardWidth = 8;                      // vectors of samples that one pass holds in registers
constexpr int kBackwardWidth = kLanes == 16 ? 8 : 4;  // two registers each: x and dx

struct ForwardTask {
  const Half& half;
  const int32_t* order;
  const float* values;
  int64_t block;
  Activations x;
  float* y;
  int64_t ldy;
  const float* bias;
  bool relu;
};

// One panel of inputs for `Width` vectors of samples: y (+)= W x. Returns the next non-zero.
template <int Width>
int64_t forward_panel(const ForwardTask& task, int64_t panel, const uint16_t* counts, int64_t k, int64_t sample) {
  const Half& half = task.half;
  const int64_t ld = task.x.ld;
  const float* x = task.x.data + panel * half.panel * ld + sample;
  const int64_t rows = rows_in(half, task.block), first = task.block * half.block;
  const bool last = panel + 1 == panels_of(half);
  float* y = task.y + first * task.ldy + sample;
  for (int64_t r = 0; r < rows; ++r, y += task.ldy) {
    V sum[Width];
    GOSSAMER_UNROLL
    for (int j = 0; j < Width; ++j)
      sum[j] = panel ? load(y + j * kLanes) : set(task.bias ? task.bias[first + r] : 0.0f);
    for (const int64_t end = k + counts[r]; k < end; ++k) {
      const V w = set(task.values[task.order[k]]);
      const float* row = x + half.index[k] * ld;
      GOSSAMER_UNROLL
      for (int j = 0; j < Width; ++j) sum[j] = fma(w, load(row + j * kLanes), sum[j]);
    }
    GOSSAMER_UNROLL
    for (int j = 0; j < Width; ++j) store(y + j * kLanes, last && task.relu ? positive(sum[j]) : sum[j]);
  }
  return k;
}

template <int Width>
void forward_samples(const ForwardTask& task, int64_t panel, const uint16_t* counts, int64_t begin, int64_t sample,
                     int64_t samples, int64_t& end) {
  for (; samples - sample >= Width * kLanes; sample += Width * kLanes)
    end = forward_panel<Width>(task, panel, counts, begin, sample);
  if constexpr (Width > 1) forward_samples<Width / 2>(task, panel, counts, begin, sample, samples, end);
}

void forward(const Half& half, const int32_t* order, const float* values, int64_t block, Activations x, float* y,
             int64_t ldy, const float* bias, bool relu, int64_t samples) {
  const ForwardTask task{half, order, values, block, x, y, ldy, bias, relu};
  const uint16_t* counts = counts_in(half, block);
  const int64_t rows = rows_in(half, block);
  int64_t k = half.starts[block];
  for (int64_t panel = 0; panel < panels_of(half); ++panel, counts += rows) {
    int64_t end = k;
    forward_samples<kForwardWidth>(task, panel, counts, k, 0, samples, end);
    k = end;
  }
}

struct BackwardTask {
  const Half& half;
  const float* values;
  int64_t block;
  Activations x, dy;
  float* dx;
  int64_t lddx;
  float* gradient;
  bool accumulate;
};

// Sums of products, kept as vectors until there are kLanes of them, which are added up together.
struct Dots {
  alignas(64) float waiting[kLanes * kLanes];
  float* gradient;
  int64_t filled = 0;
  bool accumulate;

  GOSSAMER_INLINE void push(V products) {
    store(waiting + filled * kLanes, products);
    if (++filled == kLanes) flush();
  }
  GOSSAMER_INLINE void flush() {
    const V whole = sums(waiting);
    store(gradient, accumulate ? add(load(gradient), whole) : whole);
    gradient += kLanes;
    filled = 0;
  }
  GOSSAMER_INLINE void finish() {
    for (int64_t i = 0; i < filled; ++i) {
      const float whole = sum(load(waiting + i * kLanes));
      gradient[i] = accumulate ? gradient[i] + whole : whole;
    }
  }
};

template <int Width, bool Inputs, bool Weights>
int64_t backward_panel(const BackwardTask& task, int64_t panel, const uint16_t* counts, int64_t k, int64_t sample) {
  const Half& half = task.half;
  const int64_t ld = task.dy.ld;
  const float* dy = task.dy.data + panel * half.panel * ld + sample;
  const int64_t rows = rows_in(half, task.block), first = task.block * half.block;
  const float* x = task.x.data + first * task.x.ld + sample;
  float* dx = Inputs ? task.dx + first * task.lddx + sample : nullptr;
  Dots dots;
  if constexpr (Weights) dots.gradient = task.gradient + k, dots.accumulate = task.accumulate || sample > 0;
  for (int64_t r = 0; r < rows; ++r, x += task.x.ld) {
    V input[Width], sum[Width];
    GOSSAMER_UNROLL
    for (int j = 0; j < Width; ++j) {
      if constexpr (Weights) input[j] = load(x + j * kLanes);
      if constexpr (Inputs) sum[j] = panel ? load(dx + r * task.lddx + j * kLanes) : set(0.0f);
    }
    for (const int64_t end = k + counts[r]; k < end; ++k) {
      const float* row = dy + half.index[k] * ld;
      const V w = Inputs ? set(task.values[k]) : set(0.0f);
      V even = set(0.0f), odd = set(0.0f);
      GOSSAMER_UNROLL
      for (int j = 0; j < Width; ++j) {
        const V d = load(row + j * kLanes);
        if constexpr (Inputs) sum[j] = fma(w, d, sum[j]);
        if constexpr (Weights) (j % 2 ? odd : even) = fma(input[j], d, j % 2 ? odd : even);
      }
      if constexpr (Weights) dots.push(add(even, odd));
    }
    if constexpr (Inputs) {
      GOSSAMER_UNROLL
      for (int j = 0; j < Width; ++j) store(dx + r * task.lddx + j * kLanes, sum[j]);
    }
  }
  if constexpr (Weights) dots.finish();
  return k;
}

template <int Width, bool Inputs, bool Weights>
void backward_samples(const BackwardTask& task, int64_t panel, const uint16_t* counts, int64_t begin, int64_t sample,
                      int64_t samples, int64_t& end) {
  for (; samples - sample >= Width * kLanes; sample += Width * kLanes)
    end = backward_panel<Width, Inputs, Weights>(task, panel, counts, begin, sample);
  if constexpr (Width > 1) backward_samples<Width / 2, Inputs, Weights>(task, panel, counts, begin, sample, samples, end);
}

template <bool Inputs, bool Weights>
void backward_block(const BackwardTask& task, int64_t samples) {
  const Half& half = task.half;
  const uint16_t* counts = counts_in(half, task.block);
  const int64_t rows = rows_in(half, task.block);
  int64_t k = half.starts[task.block];
  for (int64_t panel = 0; panel < panels_of(half); ++panel, counts += rows) {
    int64_t end = k;
    backward_samples<kBackwardWidth, Inputs, Weights>(task, panel, counts, k, 0, samples, end);
    k = end;
  }
}

void backward(const Half& half, const float* values, int64_t block, Activations x, Activations dy, float* dx,
              int64_t lddx, float* gradient, bool accumulate, int64_t samples) {
  const BackwardTask task{half, values, block, x, dy, dx, lddx, gradient, accumulate};
  if (dx && gradient) return backward_block<true, true>(task, samples);
  if (dx) return backward_block<true, false>(task, samples);
  if (gradient) return backward_block<false, true>(task, samples);
}

// A row of a loaded activation: zero beyond `count`, gated, summed.
void finish_row(float* row, int64_t count, int64_t samples, const float* gate, float* total) {
  for (int64_t s = count; s < samples; ++s) row[s] = 0.0f;
  if (!gate && !total) return;
  V sums = set(0.0f);
  for (int64_t s = 0; s < samples; s += kLanes) {
    V v = load(row + s);
    if (gate) {
      v = where_above_zero(load(gate + s), v);
      store(row + s, v);
    }
    sums = add(sums, v);
  }
  if (total) *total = sum(sums);
}

void load_features(const float* source, int64_t of_sample, int64_t of_feature, int64_t begin, int64_t end,
                   int64_t count, float* target, int64_t ld, int64_t samples, const Activations* gate, float* sums) {
  int64_t f = begin;
  if (of_feature == 1) {  // neighbouring squares of a row one after the other: whole stretches of memory
    const int64_t last = begin + (end - begin) / kLanes * kLanes;
    int64_t s = 0;
    for (; s + kLanes <= count; s += kLanes)
      for (f = begin; f < last; f += kLanes) {
        V columns[kLanes];
        transpose(source + s * of_sample + f, of_sample, columns);
        GOSSAMER_UNROLL
        for (int l = 0; l < kLanes; ++l) store(target + (f + l) * ld + s, columns[l]);
      }
    for (; s < count; ++s)
      for (f = begin; f < last; ++f) target[f * ld + s] = source[s * of_sample + f];
    f = last;
  }
  for (; f < end; ++f) {
    float* row = target + f * ld;
    const float* from = source + f * of_feature;
    if (of_sample == 1) std::memcpy(row, from, count * sizeof(float));
    else
      for (int64_t s = 0; s < count; ++s) row[s] = from[s * of_sample];
  }
  for (f = begin; f < end; ++f)
    finish_row(target + f * ld, count, samples, gate ? gate->data + f * gate->ld : nullptr, sums ? sums + f : nullptr);
}

}  // namespace

extern const TrainKernels train_kernels;
const TrainKernels train_kernels = {forward, backward, load_features};

}  // namespace gossamer::GOSSAMER_NS
