// What training kernels need of vectors beyond ../sparse/simd.hpp. For kernel sources only, inside GOSSAMER_NS.
#pragma once
#include "../sparse/simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

GOSSAMER_INLINE V positive(V v) { return at_least(v, set(0.0f)); }  // a NaN stays

#if defined(__AVX512F__)

// v where y is above 0 or NaN, else 0.
GOSSAMER_INLINE V where_above_zero(V y, V v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, set(0.0f), _CMP_NLE_UQ), v);
}

GOSSAMER_INLINE V low_pairs(V a, V b) {
  return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
GOSSAMER_INLINE V high_pairs(V a, V b) {
  return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
GOSSAMER_INLINE V even_quarters(V a, V b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
GOSSAMER_INLINE V odd_quarters(V a, V b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }

// Lane l of the result is the sum of all lanes of the l-th of kLanes vectors.
GOSSAMER_INLINE V sums(const float* p) {
  const auto pair = [&](int j) {
    const V a = load(p + j * kLanes), b = load(p + (j + 1) * kLanes);
    return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const auto four = [&](int j) {
    const V a = pair(j), b = pair(j + 2);
    return add(low_pairs(a, b), high_pairs(a, b));
  };
  const auto eight = [&](int j) {
    const V a = four(j), b = four(j + 4);
    return add(even_quarters(a, b), odd_quarters(a, b));
  };
  const V a = eight(0), b = eight(8);
  return add(even_quarters(a, b), odd_quarters(a, b));
}

// kLanes rows of kLanes floats to columns.
GOSSAMER_INLINE void transpose(const float* source, int64_t ld, V* out) {
  V a[16], b[16];
  GOSSAMER_UNROLL
  for (int j = 0; j < 16; j += 2) {
    const V x = load(source + j * ld), y = load(source + (j + 1) * ld);
    a[j] = _mm512_unpacklo_ps(x, y);
    a[j + 1] = _mm512_unpackhi_ps(x, y);
  }
  GOSSAMER_UNROLL
  for (int j = 0; j < 16; j += 4) {  // b[j + c]: rows j..j+3 of columns c, c + 4, c + 8, c + 12
    b[j] = low_pairs(a[j], a[j + 2]);
    b[j + 1] = high_pairs(a[j], a[j + 2]);
    b[j + 2] = low_pairs(a[j + 1], a[j + 3]);
    b[j + 3] = high_pairs(a[j + 1], a[j + 3]);
  }
  GOSSAMER_UNROLL
  for (int c = 0; c < 4; ++c) {
    const V even_low = even_quarters(b[c], b[c + 4]), even_high = even_quarters(b[c + 8], b[c + 12]);
    const V odd_low = odd_quarters(b[c], b[c + 4]), odd_high = odd_quarters(b[c + 8], b[c + 12]);
    out[c] = even_quarters(even_low, even_high);
    out[c + 8] = odd_quarters(even_low, even_high);
    out[c + 4] = even_quarters(odd_low, odd_high);
    out[c + 12] = odd_quarters(odd_low, odd_high);
  }
}

#elif defined(__AVX2__)

GOSSAMER_INLINE V where_above_zero(V y, V v) { return _mm256_and_ps(_mm256_cmp_ps(y, set(0.0f), _CMP_NLE_UQ), v); }

GOSSAMER_INLINE V sums(const float* p) {
  const auto four = [&](int j) {  // hadd adds neighbours within each half
    return _mm256_hadd_ps(_mm256_hadd_ps(load(p + j * kLanes), load(p + (j + 1) * kLanes)),
                          _mm256_hadd_ps(load(p + (j + 2) * kLanes), load(p + (j + 3) * kLanes)));
  };
  const V a = four(0), b = four(4);
  return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

GOSSAMER_INLINE void transpose(const float* source, int64_t ld, V* out) {
  V a[8], b[8];
  GOSSAMER_UNROLL
  for (int j = 0; j < 8; j += 2) {
    const V x = load(source + j * ld), y = load(source + (j + 1) * ld);
    a[j] = _mm256_unpacklo_ps(x, y);
    a[j + 1] = _mm256_unpackhi_ps(x, y);
  }
  GOSSAMER_UNROLL
  for (int j = 0; j < 8; j += 4) {
    b[j] = _mm256_shuffle_ps(a[j], a[j + 2], 0x44);
    b[j + 1] = _mm256_shuffle_ps(a[j], a[j + 2], 0xee);
    b[j + 2] = _mm256_shuffle_ps(a[j + 1], a[j + 3], 0x44);
    b[j + 3] = _mm256_shuffle_ps(a[j + 1], a[j + 3], 0xee);
  }
  GOSSAMER_UNROLL
  for (int c = 0; c < 4; ++c) {
    out[c] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x20);
    out[c + 4] = _mm256_permute2f128_ps(b[c], b[c + 4], 0x31);
  }
}

#else

GOSSAMER_INLINE V where_above_zero(V y, V v) {
  return each([&](int l) { return y[l] <= 0.0f ? 0.0f : v[l]; });
}
GOSSAMER_INLINE V sums(const float* p) {
  return each([=](int l) { return sum(load(p + l * kLanes)); });
}
GOSSAMER_INLINE void transpose(const float* source, int64_t ld, V* out) {
  for (int c = 0; c < kLanes; ++c) out[c] = each([=](int l) { return source[l * ld + c]; });
}

#endif

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
