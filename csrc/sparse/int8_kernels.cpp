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
GOSSAMER_INLINE void scale_rows(const Int8Matrix& a, const int32_t* sums, float scale, float* y, int64_t n, int64_t count) {
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

#if defined(__AVX512F__) && defined(__GNUC__)

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

#endif

}  // namespace

extern const Int8Kernels int8_kernels;
const Int8Kernels int8_kernels = {round_all, multiply, multiply_fast};

}  // namespace gossamer::GOSSAMER_NS
