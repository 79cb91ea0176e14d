#include "int8.hpp"

#include "rows_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

constexpr int64_t kWord = 64;

float round_all(const float* x, int64_t count, uint8_t* out) {
  V largest = set(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) largest = larger(largest, magnitude(load_first(x + i, count - i)));
  alignas(64) float lanes[kLanes];
  store(lanes, largest);
  float most = 0.0f;
  for (int l = 0; l < kLanes; ++l) most = lanes[l] > most || lanes[l] != lanes[l] ? lanes[l] : most;
  const bool is_finite = most - most == 0.0f;
  const float factor = most > 0.0f && is_finite ? 127.0f / most : 0.0f;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, ties to even
  for (int64_t i = 0; i < count; ++i) {
    const float scaled = is_finite ? x[i] * factor : 0.0f;
    const float whole = (scaled < -127.0f ? -127.0f : scaled > 127.0f ? 127.0f : scaled) + shift;
    int32_t bits;
    std::memcpy(&bits, &whole, 4);
    out[i] = static_cast<uint8_t>(bits + 128);
  }
  for (int64_t i = count; i % kWord; ++i) out[i] = 128;
  return most / 127.0f;
}

// y of the rows [n, n + count) from their integer sums, for at most kLanes rows.
template <class Matrix>
GOSSAMER_INLINE void scale_rows(const Matrix& a, const int32_t* sums, float scale, float* y, int64_t n, int64_t count) {
  for (int64_t r = 0; r < count; ++r)
    y[n + r] = static_cast<float>(sums[r] - a.offsets[n + r]) * (a.scales[n + r] * scale);
}

void multiply(const Int8Matrix& a, const uint8_t* x, float scale, float* y, const Epilogue& after, int64_t begin,
              int64_t end) {
  const int64_t words = (a.columns + kWord - 1) / kWord;
  for (int64_t n = begin; n < end; ++n) {
    const int8_t* value = a.values + a.pointers[n];
    int32_t total = 0;
    for (int64_t j = 0; j < words; ++j)
      for (uint64_t left = a.bits[n * words + j]; left; left &= left - 1)
        total += *value++ * x[j * kWord + lowest_bit(left)];
    scale_rows(a, &total, scale, y, n, 1);
  }
  finish_rows(y, after, begin, end);
}

// Rows of a group that exist.
int64_t rows_of(const Int8Steps& a, int64_t group) {
  const int64_t left = a.rows - group * Int8Steps::kGroup;
  return left < Int8Steps::kGroup ? left : Int8Steps::kGroup;
}

void finish_groups(const Int8Steps& a, float* y, const Epilogue& after, int64_t begin, int64_t end) {
  const int64_t last = end * Int8Steps::kGroup;
  finish_rows(y, after, begin * Int8Steps::kGroup, last < a.rows ? last : a.rows);
}

void multiply_steps(const Int8Steps& a, const uint8_t* x, float scale, float* y, const Epilogue& after, int64_t begin,
                    int64_t end) {
  constexpr int64_t size = Int8Steps::kStep;
  const int64_t panels = a.panels();
  for (int64_t g = begin; g < end; ++g) {
    int32_t sums[Int8Steps::kGroup] = {};
    for (int64_t p = 0; p < panels; ++p) {
      const uint8_t* from = x + p * Int8Steps::kPanel;
      const int32_t* start = a.starts + g * panels + p;
      for (int64_t i = start[0] * size; i < start[1] * size; ++i)
        sums[i % size / 4] += a.values[i] * from[a.places[i]];
    }
    scale_rows(a, sums, scale, y, g * Int8Steps::kGroup, rows_of(a, g));
  }
  finish_groups(a, y, after, begin, end);
}

#if defined(__AVX512F__) && defined(__GNUC__)

// A step is one permutation of a panel's bytes and one instruction of 64 products.
__attribute__((target("avx512vnni,avx512vbmi"))) void multiply_steps_fast(const Int8Steps& a, const uint8_t* x,
                                                                          float scale, float* y, const Epilogue& after,
                                                                          int64_t begin, int64_t end) {
  const int64_t panels = a.panels();
  for (int64_t g = begin; g < end; ++g) {
    __m512i even = _mm512_setzero_si512(), odd = even;
    const int32_t* starts = a.starts + g * panels;
    for (int64_t p = 0; p < panels; ++p) {
      const __m512i low = _mm512_loadu_si512(x + p * Int8Steps::kPanel);
      const __m512i high = _mm512_loadu_si512(x + p * Int8Steps::kPanel + 64);
      const int8_t* value = a.values + starts[p] * Int8Steps::kStep;
      const uint8_t* place = a.places + starts[p] * Int8Steps::kStep;
      const int64_t steps = starts[p + 1] - starts[p];
      for (int64_t s = 0; s + 2 <= steps; s += 2, value += 2 * Int8Steps::kStep, place += 2 * Int8Steps::kStep) {
        const __m512i first = _mm512_permutex2var_epi8(low, _mm512_loadu_si512(place), high);
        const __m512i second = _mm512_permutex2var_epi8(low, _mm512_loadu_si512(place + Int8Steps::kStep), high);
        even = _mm512_dpbusd_epi32(even, first, _mm512_loadu_si512(value));
        odd = _mm512_dpbusd_epi32(odd, second, _mm512_loadu_si512(value + Int8Steps::kStep));
      }
      if (steps % 2) {
        const __m512i last = _mm512_permutex2var_epi8(low, _mm512_loadu_si512(place), high);
        even = _mm512_dpbusd_epi32(even, last, _mm512_loadu_si512(value));
      }
    }
    alignas(64) int32_t sums[Int8Steps::kGroup];
    _mm512_store_si512(sums, _mm512_add_epi32(even, odd));
    scale_rows(a, sums, scale, y, g * Int8Steps::kGroup, rows_of(a, g));
  }
  finish_groups(a, y, after, begin, end);
}

// A word of 64 columns is one expansion of bytes and one instruction of 64 products, which it adds up four by four.
__attribute__((target("avx512vnni,avx512vbmi2"))) void multiply_fast(const Int8Matrix& a, const uint8_t* x, float scale,
                                                                     float* y, const Epilogue& after, int64_t begin,
                                                                     int64_t end) {
  const int64_t words = (a.columns + kWord - 1) / kWord;
  for (int64_t n = begin; n < end; ++n) {
    const int8_t* value = a.values + a.pointers[n];
    const uint64_t* bits = a.bits + n * words;
    __m512i sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = _mm512_setzero_si512();
    int64_t j = 0;
    for (; j + 4 <= words; j += 4) {
      GOSSAMER_UNROLL for (int i = 0; i < 4; ++i) {
        const uint64_t word = bits[j + i];
        const __m512i weights = _mm512_maskz_expand_epi8(word, _mm512_loadu_si512(value));
        sums[i] = _mm512_dpbusd_epi32(sums[i], _mm512_loadu_si512(x + (j + i) * kWord), weights);
        value += _mm_popcnt_u64(word);
      }
    }
    for (; j < words; ++j) {
      const __m512i weights = _mm512_maskz_expand_epi8(bits[j], _mm512_loadu_si512(value));
      sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_loadu_si512(x + j * kWord), weights);
      value += _mm_popcnt_u64(bits[j]);
    }
    const __m512i all = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    const int32_t total = _mm512_reduce_add_epi32(all);
    scale_rows(a, &total, scale, y, n, 1);
  }
  finish_rows(y, after, begin, end);
}

#else

constexpr decltype(Int8Kernels::multiply_fast) multiply_fast = nullptr;
constexpr decltype(Int8Kernels::multiply_steps_fast) multiply_steps_fast = nullptr;

#endif

}  // namespace

extern const Int8Kernels int8_kernels;
const Int8Kernels int8_kernels = {round_all, multiply, multiply_fast, multiply_steps, multiply_steps_fast};

}  // namespace gossamer::GOSSAMER_NS
