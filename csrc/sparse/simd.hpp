// One vector type for every level: V of kLanes floats. For kernel sources only, inside GOSSAMER_NS.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__GNUC__)
#define GOSSAMER_INLINE inline __attribute__((always_inline))
#define GOSSAMER_OUTLINED __attribute__((noinline, unused))
#define GOSSAMER_UNROLL _Pragma("GCC unroll 16")
#else
#define GOSSAMER_INLINE inline
#define GOSSAMER_OUTLINED
#define GOSSAMER_UNROLL
#endif

namespace gossamer::GOSSAMER_NS {
namespace {

// Asks for the cache line of any address, valid or not.
GOSSAMER_INLINE void prefetch(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}
// The same, into the second-level cache.
GOSSAMER_INLINE void prefetch_far(const float* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}

#if defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr int kRegisters = 32;
using V = __m512;

GOSSAMER_INLINE __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }
// Lanes l with 0 <= i + l < n.
GOSSAMER_INLINE __mmask16 between(int64_t i, int64_t n) {
  const __mmask16 below = n - i <= 0 ? 0 : first(n - i);
  return i >= 0 ? below : i <= -16 ? __mmask16(0) : static_cast<__mmask16>(below & (0xffffu << -i));
}
GOSSAMER_INLINE V set(float x) { return _mm512_set1_ps(x); }
GOSSAMER_INLINE V load(const float* p) { return _mm512_loadu_ps(p); }
GOSSAMER_INLINE V load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
GOSSAMER_INLINE V load_between(const float* row, int64_t i, int64_t n) {
  return _mm512_maskz_loadu_ps(between(i, n), row + i);
}
GOSSAMER_INLINE void store(float* p, V v) { _mm512_storeu_ps(p, v); }
GOSSAMER_INLINE void store_first(float* p, V v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
GOSSAMER_INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
GOSSAMER_INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
GOSSAMER_INLINE V div(V a, V b) { return _mm512_div_ps(a, b); }
GOSSAMER_INLINE V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
GOSSAMER_INLINE V at_least(V v, V low) { return _mm512_max_ps(low, v); }  // a NaN in v stays
GOSSAMER_INLINE V at_most(V v, V high) { return _mm512_min_ps(high, v); }
GOSSAMER_INLINE V larger(V a, V b) {  // a NaN in either stays
  return _mm512_mask_mov_ps(_mm512_max_ps(b, a), _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q), b);
}
GOSSAMER_INLINE V magnitude(V v) { return _mm512_abs_ps(v); }
GOSSAMER_INLINE V power_of_two(V n) { return _mm512_scalef_ps(set(1.0f), n); }  // n whole, -126 <= n <= 127
GOSSAMER_INLINE float sum(V v) { return _mm512_reduce_add_ps(v); }
// Every second lane of a and then b, from the first.
GOSSAMER_INLINE V evens(V a, V b) {
  const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return _mm512_permutex2var_ps(a, places, b);
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;
constexpr int kRegisters = 16;
using V = __m256;

GOSSAMER_INLINE __m256i lanes_from(int64_t i) {
  const int32_t start = i < -1000 ? -1000 : i > 1000 ? 1000 : static_cast<int32_t>(i);
  return _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GOSSAMER_INLINE __m256i first(int64_t n) { return _mm256_cmpgt_epi32(_mm256_setzero_si256(), lanes_from(-n)); }
GOSSAMER_INLINE V set(float x) { return _mm256_set1_ps(x); }
GOSSAMER_INLINE V load(const float* p) { return _mm256_loadu_ps(p); }
GOSSAMER_INLINE V load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
GOSSAMER_INLINE V load_between(const float* row, int64_t i, int64_t n) {
  const __m256i from = _mm256_cmpgt_epi32(lanes_from(i), _mm256_set1_epi32(-1));
  return _mm256_maskload_ps(row + i, _mm256_and_si256(from, first(n - i)));
}
GOSSAMER_INLINE void store(float* p, V v) { _mm256_storeu_ps(p, v); }
GOSSAMER_INLINE void store_first(float* p, V v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
GOSSAMER_INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
GOSSAMER_INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
GOSSAMER_INLINE V div(V a, V b) { return _mm256_div_ps(a, b); }
GOSSAMER_INLINE V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
GOSSAMER_INLINE V at_least(V v, V low) { return _mm256_max_ps(low, v); }
GOSSAMER_INLINE V at_most(V v, V high) { return _mm256_min_ps(high, v); }
GOSSAMER_INLINE V larger(V a, V b) {
  return _mm256_blendv_ps(_mm256_max_ps(b, a), b, _mm256_cmp_ps(b, b, _CMP_UNORD_Q));
}
GOSSAMER_INLINE V magnitude(V v) { return _mm256_andnot_ps(set(-0.0f), v); }
GOSSAMER_INLINE V power_of_two(V n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
GOSSAMER_INLINE float sum(V v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
GOSSAMER_INLINE V evens(V a, V b) {
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88));
  return _mm256_castpd_ps(_mm256_permute4x64_pd(pairs, 0xd8));
}

#else  // four lanes: SSE2 or NEON through the compiler's vectors, plain loops elsewhere

constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#if defined(__GNUC__)
typedef float V __attribute__((vector_size(16)));
#else
struct V {
  float lane[4];
  float& operator[](int i) { return lane[i]; }
  float operator[](int i) const { return lane[i]; }
};
#endif

template <class F>
GOSSAMER_INLINE V each(F f) {
  V v;
  for (int l = 0; l < kLanes; ++l) v[l] = f(l);
  return v;
}
GOSSAMER_INLINE V set(float x) {
  return each([=](int) { return x; });
}
GOSSAMER_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
GOSSAMER_INLINE V load_between(const float* row, int64_t i, int64_t n) {
  if (i >= 0 && i + kLanes <= n) return load(row + i);
  return each([=](int l) { return i + l >= 0 && i + l < n ? row[i + l] : 0.0f; });
}
GOSSAMER_INLINE V load_first(const float* p, int64_t n) { return load_between(p, 0, n); }
GOSSAMER_INLINE void store(float* p, V v) { std::memcpy(p, &v, sizeof(V)); }
GOSSAMER_INLINE void store_first(float* p, V v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  for (int l = 0; l < n; ++l) p[l] = v[l];
}
#if defined(__GNUC__)
GOSSAMER_INLINE V add(V a, V b) { return a + b; }
GOSSAMER_INLINE V mul(V a, V b) { return a * b; }
GOSSAMER_INLINE V div(V a, V b) { return a / b; }
GOSSAMER_INLINE V fma(V a, V b, V c) { return a * b + c; }
GOSSAMER_INLINE V at_least(V v, V low) { return v < low ? low : v; }
GOSSAMER_INLINE V at_most(V v, V high) { return v > high ? high : v; }
#else
GOSSAMER_INLINE V add(V a, V b) { return each([&](int l) { return a[l] + b[l]; }); }
GOSSAMER_INLINE V mul(V a, V b) { return each([&](int l) { return a[l] * b[l]; }); }
GOSSAMER_INLINE V div(V a, V b) { return each([&](int l) { return a[l] / b[l]; }); }
GOSSAMER_INLINE V fma(V a, V b, V c) { return each([&](int l) { return a[l] * b[l] + c[l]; }); }
GOSSAMER_INLINE V at_least(V v, V low) { return each([&](int l) { return v[l] < low[l] ? low[l] : v[l]; }); }
GOSSAMER_INLINE V at_most(V v, V high) { return each([&](int l) { return v[l] > high[l] ? high[l] : v[l]; }); }
#endif
GOSSAMER_INLINE float from_bits(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
GOSSAMER_INLINE uint32_t bits_of(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
GOSSAMER_INLINE V larger(V a, V b) {
  return each([&](int l) { return b[l] > a[l] || b[l] != b[l] ? b[l] : a[l]; });
}
GOSSAMER_INLINE V magnitude(V v) {
  return each([&](int l) { return from_bits(bits_of(v[l]) & 0x7fffffffu); });
}
GOSSAMER_INLINE V power_of_two(V n) {
  return each([&](int l) { return from_bits(static_cast<uint32_t>(static_cast<int32_t>(n[l]) + 127) << 23); });
}
GOSSAMER_INLINE float sum(V v) { return (v[0] + v[2]) + (v[1] + v[3]); }
GOSSAMER_INLINE V evens(V a, V b) {
  return each([&](int l) { return l < 2 ? a[2 * l] : b[2 * l - 4]; });
}

#endif

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
