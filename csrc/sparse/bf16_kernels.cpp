#include "bf16.hpp"

#include "tile_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

uint16_t round_one(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float widen(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

void round(const float* x, uint16_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = round_one(x[i]);
}

// pack(rows of x, stride, k, n) for the columns k .. k + n - 1 of [from, to); where x lies by tokens, of a few at a time,
// which are transposed first.
template <class Pack>
void by_columns(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, Pack pack) {
  if (!job.token_stride) return pack(job.x + from * job.x_stride + first, job.x_stride, from, to - from);
  constexpr int64_t few = 16;
  alignas(64) float turned[few * kWidest];
  for (int64_t k = from; k < to; k += few) {
    const int64_t n = to - k < few ? to - k : few;
    transpose_block(job.x + first * job.token_stride + k, job.token_stride, count, n, turned, kWidest);
    pack(turned, kWidest, k, n);
  }
}

// ---- plain loops

// The values of row r of an entry: pairs of entries are zipped, a last one without a partner is not.
float value_at(const uint16_t* values, int64_t entry, int64_t entries, int64_t block, int64_t r) {
  const int64_t pair = entry / 2 * 2;
  return widen(pair + 1 < entries ? values[pair * block + 2 * r + entry % 2] : values[pair * block + r]);
}

void pack_rounded(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, uint16_t* slab) {
  by_columns(job, first, count, from, to, [&](const float* x, int64_t stride, int64_t k, int64_t n) {
    for (int64_t i = 0; i < n; ++i) round(x + i * stride, slab + (k + i) * count, count);
  });
}

void run(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, uint16_t* slab, float* sums) {
  const BlockMatrix& a = job.a;
  for (int64_t row = begin * a.block; row < end * a.block && row < a.rows; ++row) {
    const int64_t s = row / a.block, r = row % a.block;
    for (int64_t i = 0; i < count; ++i) sums[i] = job.after.bias ? job.after.bias[row] : 0.0f;
    for (int64_t p = 0; p < a.panels(); ++p) {
      const int32_t* range = a.pointers + p * a.strips() + s;
      for (int64_t e = range[0]; e < range[1]; ++e) {
        const int64_t column = p * a.panel + a.indices[e];
        const uint16_t* x = job.taps ? job.halves + job.taps[column] + first : slab + column * count;
        const float w = value_at(a.halves + range[0] * a.block, e - range[0], range[1] - range[0], a.block, r);
        for (int64_t i = 0; i < count; ++i) sums[i] += w * widen(x[i]);
      }
    }
    for (int64_t i = 0; i < count; i += kLanes) {
      const V tile[1] = {load_first(sums + i, count - i)};
      finish_row<1>(job, tile, row, first + i, count - i < kLanes ? count - i : kLanes);
    }
  }
}

// ---- instructions of their own

#if defined(__AVX512F__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512bf16")

constexpr int kZipped = 2 * kLanes;  // pixels of a vector of halves

GOSSAMER_INLINE __m512bh halves(__m512i v) { return reinterpret_cast<__m512bh&>(v); }
GOSSAMER_INLINE __m512i load_halves(const uint16_t* p) { return _mm512_loadu_si512(p); }

// Rows of x as halves, side by side, zero beyond the last pixel.
template <int T>
void pack_halves(const float* x, int64_t stride, int64_t rows, int64_t count, uint16_t* slab) {
  constexpr int64_t ahead = 8;
  for (int64_t k = 0; k < rows; ++k, x += stride, slab += T * kLanes) {
    for (int64_t i = 0; i < count; i += kLanes) prefetch(x + ahead * stride + i);
    GOSSAMER_UNROLL for (int t = 0; t < T; t += 2) {
      const int64_t left = count - t * kLanes;
      const V low = load_first(x + t * kLanes, left < 0 ? 0 : left);
      const V high = load_first(x + (t + 1) * kLanes, left < kLanes ? 0 : left - kLanes);
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(slab + t * kLanes, reinterpret_cast<const __m512i&>(both));
    }
  }
}

template <int T>
struct HalvesInSlab {
  const uint16_t* x;
  GOSSAMER_INLINE const uint16_t* operator()(uint16_t column) const { return x + int64_t(column) * (T * kLanes); }
};
struct HalvesByTaps {
  const uint16_t* x;
  const int64_t* taps;
  GOSSAMER_INLINE const uint16_t* operator()(uint16_t column) const { return x + taps[column]; }
};

// Two rows of x, zipped. Every two vectors hold 32 pixels, in the order of `unzip`.
template <int T>
GOSSAMER_INLINE void zip(const uint16_t* a, const uint16_t* b, __m512bh (&x)[T]) {
  GOSSAMER_UNROLL for (int t = 0; t < T; t += 2) {
    const __m512i one = load_halves(a + t * kLanes);
    const __m512i two = b ? load_halves(b + t * kLanes) : _mm512_setzero_si512();
    x[t] = halves(_mm512_unpacklo_epi16(one, two));
    x[t + 1] = halves(_mm512_unpackhi_epi16(one, two));
  }
}

template <int R, int T>
GOSSAMER_INLINE void add_pair(V (&sums)[R][T], const __m512bh (&x)[T], const uint16_t* values) {
  GOSSAMER_UNROLL for (int r = 0; r < R; ++r) {
    int32_t pair;
    std::memcpy(&pair, values + 2 * r, 4);
    const __m512bh weights = halves(_mm512_set1_epi32(pair));
    GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = _mm512_dpbf16_ps(sums[r][t], x[t], weights);
  }
}

// sums[r] += values[r] * x for the entries of a strip. Small tiles keep two sums, to hide the latency of an addition.
template <int R, int T, class Rows>
GOSSAMER_INLINE void accumulate(V (&sums)[R][T], const uint16_t* index, const uint16_t* end, const uint16_t* values,
                                int64_t block, int64_t r, Rows rows) {
  __m512bh x[T];
  if constexpr (R * T <= 4) {
    V more[R][T];
    GOSSAMER_UNROLL for (int i = 0; i < R; ++i)
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) more[i][t] = set(0.0f);
    for (; index + 4 <= end; index += 4, values += 4 * block) {
      zip<T>(rows(index[0]), rows(index[1]), x);
      add_pair<R, T>(sums, x, values + 2 * r);
      zip<T>(rows(index[2]), rows(index[3]), x);
      add_pair<R, T>(more, x, values + 2 * block + 2 * r);
    }
    GOSSAMER_UNROLL for (int i = 0; i < R; ++i)
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[i][t] = add(sums[i][t], more[i][t]);
  }
  for (; index + 2 <= end; index += 2, values += 2 * block) {
    zip<T>(rows(index[0]), rows(index[1]), x);
    add_pair<R, T>(sums, x, values + 2 * r);
  }
  if (index == end) return;
  uint16_t lonely[2 * R] = {};
  GOSSAMER_UNROLL for (int i = 0; i < R; ++i) lonely[2 * i] = values[r + i];
  zip<T>(rows(*index), nullptr, x);
  add_pair<R, T>(sums, x, lonely);
}

// Sums back in the order of pixels.
template <int T>
GOSSAMER_INLINE void unzip(V (&sums)[T]) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  GOSSAMER_UNROLL for (int t = 0; t < T; t += 2) {
    const V one = sums[t], two = sums[t + 1];
    sums[t] = _mm512_permutex2var_ps(one, low, two);
    sums[t + 1] = _mm512_permutex2var_ps(one, high, two);
  }
}

// As add_panel in spmm_kernels.cpp.
template <int R, int T, class Rows>
void add_panel(const Spmm& job, int64_t first, int64_t count, int64_t p, int64_t begin, int64_t end, int64_t r,
               float* partial, Rows rows) {
  const BlockMatrix& a = job.a;
  const bool is_first = p == 0, is_last = p + 1 >= a.panels();
  const int32_t* pointers = a.pointers + p * a.strips();
  const float* const bias = is_first ? job.after.bias : nullptr;
  partial += r * T * kLanes;
  for (int64_t s = begin; s < end; ++s, partial += a.block * T * kLanes) {
    const int64_t from = pointers[s], to = pointers[s + 1], row = s * a.block + r;
    V sums[R][T];
    GOSSAMER_UNROLL for (int i = 0; i < R; ++i) {
      const V start = set(bias && row + i < a.rows ? bias[row + i] : 0.0f);
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[i][t] = is_first ? start : load(partial + (i * T + t) * kLanes);
    }
    accumulate<R, T>(sums, a.indices + from, a.indices + to, a.halves + from * a.block, a.block, r, rows);
    GOSSAMER_UNROLL for (int i = 0; i < R; ++i) {
      if (is_last) {
        unzip<T>(sums[i]);
        if (row + i < a.rows) finish_row<T>(job, sums[i], row + i, first, count);
      } else {
        GOSSAMER_UNROLL for (int t = 0; t < T; ++t) store(partial + (i * T + t) * kLanes, sums[i][t]);
      }
    }
  }
}

template <int R, int T>
void run_tile(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, uint16_t* slab, float* sums) {
  const BlockMatrix& a = job.a;
  const int64_t fitting = kBand / (a.block * T * kLanes), strips = fitting > 1 ? fitting : 1;
  for (int64_t band = begin; band < end; band += strips) {
    const int64_t band_end = band + strips < end ? band + strips : end;
    for (int64_t p = 0; p < a.panels(); ++p)
      for (int64_t r = 0; r < a.block; r += R) {
        const int64_t k = p * a.panel;
        if (job.taps)
          add_panel<R, T>(job, first, count, p, band, band_end, r, sums, HalvesByTaps{job.halves + first, job.taps + k});
        else
          add_panel<R, T>(job, first, count, p, band, band_end, r, sums, HalvesInSlab<T>{slab + k * T * kLanes});
      }
  }
}

template <int T>
void pack_tile(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, uint16_t* slab) {
  by_columns(job, first, count, from, to, [&](const float* x, int64_t stride, int64_t k, int64_t n) {
    pack_halves<T>(x, stride, n, count, slab + k * T * kLanes);
  });
}

void pack_fast(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, uint16_t* slab) {
  static constexpr decltype(&pack_fast) by_width[] = {pack_tile<2>, pack_tile<4>, pack_tile<6>, pack_tile<8>};
  by_width[(count + kZipped - 1) / kZipped - 1](job, first, count, from, to, slab);
}

void run_fast(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, uint16_t* slab, float* sums) {
  using Run = void (*)(const Spmm&, int64_t, int64_t, int64_t, int64_t, uint16_t*, float*);
  static constexpr Run one[] = {run_tile<1, 2>, run_tile<1, 4>, run_tile<1, 6>, run_tile<1, 8>};
  static constexpr Run four[] = {run_tile<4, 2>, run_tile<4, 4>, run_tile<4, 6>};
  const int64_t pairs = (count + kZipped - 1) / kZipped;
  (job.a.block == 1 ? one : four)[pairs - 1](job, first, count, begin, end, slab, sums);
}

int64_t widest(int64_t block) { return block == 1 ? 8 : 6; }

#pragma GCC pop_options
#else

constexpr decltype(Bf16Kernels::pack_fast) pack_fast = nullptr;
constexpr decltype(Bf16Kernels::run_fast) run_fast = nullptr;
constexpr decltype(Bf16Kernels::widest) widest = nullptr;

#endif

}  // namespace

extern const Bf16Kernels bf16_kernels;
const Bf16Kernels bf16_kernels = {round, pack_rounded, run, pack_fast, run_fast, widest};

}  // namespace gossamer::GOSSAMER_NS
