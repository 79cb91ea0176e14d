#include "mask_kernels.hpp"

#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace gossamer::GOSSAMER_NS {
namespace {

// ---- bits

uint8_t pack_byte(const uint8_t* bools, int64_t count) {
  unsigned byte = 0;
  for (int64_t i = 0; i < count; ++i) byte |= unsigned(bools[i] != 0) << i;
  return static_cast<uint8_t>(byte);
}

void pack(const uint8_t* bools, uint8_t* bits, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  for (; i + 64 <= count; i += 64) {
    const __m512i v = _mm512_loadu_si512(bools + i);
    const uint64_t word = _mm512_test_epi8_mask(v, v);
    std::memcpy(bits + i / 8, &word, 8);
  }
#elif defined(__AVX2__)
  for (; i + 32 <= count; i += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bools + i));
    const uint32_t word = ~uint32_t(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())));
    std::memcpy(bits + i / 8, &word, 4);
  }
#elif defined(__ARM_NEON)
  const uint8x8_t weights = {1, 2, 4, 8, 16, 32, 64, 128};
  for (; i + 8 <= count; i += 8) {
    const uint8x8_t v = vld1_u8(bools + i);
    bits[i / 8] = vaddv_u8(vand_u8(vtst_u8(v, v), weights));
  }
#endif
  for (; i + 8 <= count; i += 8) bits[i / 8] = pack_byte(bools + i, 8);
  if (i < count) bits[i / 8] = pack_byte(bools + i, count - i);
}

void unpack(const uint8_t* bits, uint8_t* bools, int64_t count) {
  int64_t i = 0;
#if defined(__AVX512BW__)
  for (; i + 64 <= count; i += 64) {
    uint64_t word;
    std::memcpy(&word, bits + i / 8, 8);
    _mm512_storeu_si512(bools + i, _mm512_maskz_set1_epi8(word, 1));
  }
#endif
  for (; i + 8 <= count; i += 8)
    for (int j = 0; j < 8; ++j) bools[i + j] = bits[i / 8] >> j & 1u;
  for (int j = 0; i < count; ++i, ++j) bools[i] = bits[i / 8] >> j & 1u;
}

int64_t popcount(const uint8_t* bits, int64_t bytes) {
  const auto ones = [](uint64_t word) -> int64_t {
#if defined(__GNUC__)
    return __builtin_popcountll(word);
#else
    int64_t n = 0;
    for (; word; word &= word - 1) ++n;
    return n;
#endif
  };
  int64_t total = 0, i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, bits + i, 8);
    total += ones(word);
  }
  for (; i < bytes; ++i) total += ones(bits[i]);
  return total;
}

// ---- zero under a mask: on integers, so that NaN and infinity become zero too

template <class Word>
void zero(void* values, const uint8_t* mask, int64_t count) {
  Word* word = static_cast<Word*>(values);
  for (int64_t i = 0; i < count; ++i) word[i] = mask[i] ? word[i] : Word(0);
}

// ---- N:M: one lane per group; each element counts the elements that beat it

struct BFloat16 {
  uint16_t bits;
};
float value(BFloat16 x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return f;
}
float value(float x) { return x; }
double value(double x) { return x; }

constexpr int kLanes = 16;
constexpr int kMostM = 32;  // for larger groups the caller sorts

// M > 0: fixed at compile time; 0: read from m.
template <int M, class Raw, class Real>
bool nm_tile(const Raw* scores, uint8_t* mask, int lanes, int n, int m) {
  if constexpr (M > 0) m = M;
  constexpr int most = M > 0 ? M : kMostM;
  Real s[most][kLanes];
  int32_t beaten[most][kLanes];
  int32_t nan = 0;
  if (lanes == kLanes) {
    for (int l = 0; l < kLanes; ++l)
      for (int i = 0; i < m; ++i) s[i][l] = value(scores[l * m + i]);
  } else {
    for (int i = 0; i < m; ++i)
      for (int l = 0; l < kLanes; ++l) s[i][l] = l < lanes ? value(scores[l * m + i]) : Real(0);
  }
  for (int i = 0; i < m; ++i)
    for (int l = 0; l < kLanes; ++l) {
      beaten[i][l] = 0;
      nan |= s[i][l] != s[i][l];
    }
  for (int i = 0; i < m; ++i)
    for (int j = i + 1; j < m; ++j)
      for (int l = 0; l < kLanes; ++l) {
        const int32_t later_wins = s[j][l] > s[i][l];
        beaten[i][l] += later_wins;
        beaten[j][l] += 1 - later_wins;
      }
  for (int l = 0; l < lanes; ++l)
    for (int i = 0; i < m; ++i) mask[l * m + i] = beaten[i][l] < n;
  return nan == 0;
}

#if defined(__AVX2__)
__m256 load8(const float* p) { return _mm256_loadu_ps(p); }
__m256 load8(const BFloat16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// All ones where fewer than n of the other three of a group of four beat an element. A neighbour at distance d
// comes earlier in the group for the last d elements, and then also wins ties.
__m256i keep_of_four(__m256 v, __m256i minus_n) {
  const __m256 d1 = _mm256_permute_ps(v, 0x39), d2 = _mm256_permute_ps(v, 0x4e), d3 = _mm256_permute_ps(v, 0x93);
  const __m256 b1 = _mm256_blend_ps(_mm256_cmp_ps(d1, v, _CMP_GT_OQ), _mm256_cmp_ps(d1, v, _CMP_GE_OQ), 0x88);
  const __m256 b2 = _mm256_blend_ps(_mm256_cmp_ps(d2, v, _CMP_GT_OQ), _mm256_cmp_ps(d2, v, _CMP_GE_OQ), 0xcc);
  const __m256 b3 = _mm256_blend_ps(_mm256_cmp_ps(d3, v, _CMP_GT_OQ), _mm256_cmp_ps(d3, v, _CMP_GE_OQ), 0xee);
  const __m256i minus_beaten =
      _mm256_add_epi32(_mm256_castps_si256(b1), _mm256_add_epi32(_mm256_castps_si256(b2), _mm256_castps_si256(b3)));
  return _mm256_cmpgt_epi32(minus_beaten, minus_n);
}

// Eight groups of four at a time, within registers; returns how many groups are done.
template <class Raw>
int64_t nm_fours(const Raw* scores, uint8_t* mask, int64_t groups, int n, bool& clean) {
  const __m256i minus_n = _mm256_set1_epi32(-n), in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256 nan = _mm256_setzero_ps();
  int64_t g = 0;
  for (; g + 8 <= groups; g += 8) {
    __m256i keep[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 v = load8(scores + g * 4 + i * 8);
      nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
      keep[i] = keep_of_four(v, minus_n);
    }
    const __m256i bytes =
        _mm256_packs_epi16(_mm256_packs_epi32(keep[0], keep[1]), _mm256_packs_epi32(keep[2], keep[3]));
    const __m256i ordered = _mm256_and_si256(_mm256_permutevar8x32_epi32(bytes, in_order), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(mask + g * 4), ordered);
  }
  clean &= _mm256_movemask_ps(nan) == 0;
  return g;
}
#endif

template <int M, class Raw, class Real>
bool nm_groups(const Raw* scores, uint8_t* mask, int64_t groups, int n, int m) {
  bool clean = true;
  int64_t g = 0;
#if defined(__AVX2__)
  if constexpr (M == 4 && sizeof(Real) == 4) g = nm_fours(scores, mask, groups, n, clean);
#endif
  for (; g < groups; g += kLanes) {
    const int lanes = groups - g < kLanes ? static_cast<int>(groups - g) : kLanes;
    clean &= nm_tile<M, Raw, Real>(scores + g * m, mask + g * m, lanes, n, m);
  }
  return clean;
}

template <class Raw, class Real>
bool nm(const void* scores, uint8_t* mask, int64_t groups, int n, int m) {
  const Raw* raw = static_cast<const Raw*>(scores);
  switch (m) {
    case 2: return nm_groups<2, Raw, Real>(raw, mask, groups, n, m);
    case 4: return nm_groups<4, Raw, Real>(raw, mask, groups, n, m);
    case 8: return nm_groups<8, Raw, Real>(raw, mask, groups, n, m);
    case 16: return nm_groups<16, Raw, Real>(raw, mask, groups, n, m);
    default: return nm_groups<0, Raw, Real>(raw, mask, groups, n, m);
  }
}

}  // namespace

extern const MaskKernels mask_kernels = {
    pack,
    unpack,
    popcount,
    zero<uint16_t>,
    zero<uint32_t>,
    zero<uint64_t>,
    nm<float, float>,
    nm<double, double>,
    nm<BFloat16, float>,
};

}  // namespace gossamer::GOSSAMER_NS
