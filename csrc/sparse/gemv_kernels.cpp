#include "gemv.hpp"

#include "rows_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

struct BFloat16 {
  uint16_t bits;
};

GOSSAMER_INLINE float value(float x) { return x; }
GOSSAMER_INLINE float value(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}

// ---- columns by bits: what one word of 64 columns adds; returns how many values it took

#if defined(__AVX512F__)

GOSSAMER_INLINE __m512 load_values(const float* p) { return _mm512_loadu_ps(p); }
GOSSAMER_INLINE __m512 load_values(const BFloat16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// Lanes without a weight keep their sum, so that an infinite x beside a zero weight does no harm.
template <class Value>
GOSSAMER_INLINE int64_t add_word(uint64_t word, const Value* values, const float* x, int64_t left, V (&sums)[4]) {
  const Value* const begin = values;
  GOSSAMER_UNROLL for (int i = 0; i < 4; ++i) {
    const __mmask16 mask = static_cast<__mmask16>(word >> (16 * i));
    const __m512 weights = _mm512_maskz_expand_ps(mask, load_values(values));
    const __m512 inputs = left >= 64 ? load(x + 16 * i) : _mm512_maskz_loadu_ps(mask, x + 16 * i);
    sums[i] = _mm512_mask3_fmadd_ps(weights, inputs, sums[i], mask);
    values += _mm_popcnt_u32(mask);
  }
  return values - begin;
}

#elif defined(__AVX2__)

// Lane l of entry m: which of the values following belongs to bit l of m.
struct Places {
  uint8_t lanes[256][8];
};
constexpr Places make_places() {
  Places places{};
  for (int m = 0; m < 256; ++m)
    for (int l = 0, next = 0; l < 8; ++l) places.lanes[m][l] = static_cast<uint8_t>(m >> l & 1 ? next++ : 0);
  return places;
}
constexpr Places kPlaces = make_places();

GOSSAMER_INLINE __m256 load_values(const float* p) { return _mm256_loadu_ps(p); }
GOSSAMER_INLINE __m256 load_values(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

template <class Value>
GOSSAMER_INLINE int64_t add_word(uint64_t word, const Value* values, const float* x, int64_t, V (&sums)[4]) {
  const Value* const begin = values;
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  GOSSAMER_UNROLL for (int i = 0; i < 8; ++i) {
    const int mask = static_cast<int>(word >> (8 * i) & 0xff);
    const __m256i lanes = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(mask), bit), bit);
    int64_t packed;
    std::memcpy(&packed, kPlaces.lanes[mask], 8);
    const __m256i places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(packed));
    const __m256 weights = _mm256_permutevar8x32_ps(load_values(values), places);
    const __m256 inputs = _mm256_maskload_ps(x + 8 * i, lanes);
    sums[i % 4] = fma(_mm256_and_ps(weights, _mm256_castsi256_ps(lanes)), inputs, sums[i % 4]);
    values += _mm_popcnt_u32(static_cast<unsigned>(mask));
  }
  return values - begin;
}

#else

template <class Value>
GOSSAMER_INLINE int64_t add_word(uint64_t word, const Value* values, const float* x, int64_t, V (&sums)[4]) {
  int64_t taken = 0;
  for (; word; word &= word - 1, ++taken) {
    V& s = sums[taken & 3];
    s[0] = value(values[taken]) * x[lowest_bit(word)] + s[0];
  }
  return taken;
}

#endif

template <class Value>
float bitmap_row(const RowMatrix& a, const float* x, int64_t n) {
  const int64_t words = (a.columns + 63) / 64;
  const Value* values = static_cast<const Value*>(a.values) + a.pointers[n];
  V sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = set(0.0f);
  for (int64_t j = 0; j < words; ++j)
    values += add_word(a.bits[n * words + j], values, x + 64 * j, a.columns - 64 * j, sums);
  return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

// ---- columns by index

float indexed_row(const RowMatrix& a, const float* x, int64_t n) {
  const float* values = static_cast<const float*>(a.values) + a.pointers[n];
  const uint16_t* indices = a.indices + a.pointers[n];
  const int64_t count = a.pointers[n + 1] - a.pointers[n];
  int64_t i = 0;
  V s0 = set(0.0f), s1 = set(0.0f);
#if defined(__AVX512F__)
  const auto gather = [&](int64_t at, __mmask16 mask) {
    const __m512i places = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, indices + at));
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, places, x, 4);
  };
  for (; i + 32 <= count; i += 32) {
    s0 = fma(load(values + i), gather(i, 0xffff), s0);
    s1 = fma(load(values + i + 16), gather(i + 16, 0xffff), s1);
  }
  for (; i < count; i += 16) s0 = fma(load_first(values + i, count - i), gather(i, first(count - i)), s0);
#elif defined(__AVX2__)
  const auto gather = [&](int64_t at) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices + at));
    return _mm256_i32gather_ps(x, _mm256_cvtepu16_epi32(narrow), 4);
  };
  for (; i + 16 <= count; i += 16) {
    s0 = fma(load(values + i), gather(i), s0);
    s1 = fma(load(values + i + 8), gather(i + 8), s1);
  }
#endif
  for (; i + kLanes <= count; i += kLanes) {
    V v;
    for (int l = 0; l < kLanes; ++l) v[l] = x[indices[i + l]];
    s0 = fma(load(values + i), v, s0);
  }
  float rest = 0.0f;
  for (; i < count; ++i) rest += values[i] * x[indices[i]];
  return sum(add(s0, s1)) + rest;
}

// ---- all rows

template <class Value>
void bitmap(const RowMatrix& a, const float* x, float* y, const Epilogue& after, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) y[n] = bitmap_row<Value>(a, x, n);
  finish_rows(y, after, begin, end);
}

void indexed(const RowMatrix& a, const float* x, float* y, const Epilogue& after, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) y[n] = indexed_row(a, x, n);
  finish_rows(y, after, begin, end);
}

}  // namespace

extern const GemvKernels gemv_kernels = {bitmap<float>, bitmap<BFloat16>, indexed};

}  // namespace gossamer::GOSSAMER_NS
