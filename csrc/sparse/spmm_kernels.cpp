#include "tile_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// A register tile holds kRows x T sums: x vectors and weights are each used several times from registers.
constexpr int kWidest1 = 8;                           // tiles of one row: wider ones leave the first-level cache
constexpr int kWidest4 = kRegisters == 32 ? 6 : 3;    // of four rows
constexpr int kWidest8 = 3;                           // of eight rows, with 32 registers only

int64_t widest(int64_t block) { return block == 1 ? kWidest1 : block == 4 || kRegisters < 32 ? kWidest4 : kWidest8; }

// Where an entry's row of x begins: in the packed slab, in x itself, or anywhere.
template <int T>
struct InSlab {
  const float* x;
  GOSSAMER_INLINE const float* operator()(uint16_t column) const { return x + int64_t(column) * (T * kLanes); }
};
struct Strided {
  const float* x;
  int64_t stride;
  GOSSAMER_INLINE const float* operator()(uint16_t column) const { return x + column * stride; }
};
struct ByTaps {
  const float* x;
  const int64_t* taps;
  GOSSAMER_INLINE const float* operator()(uint16_t column) const { return x + taps[column]; }
};

// sums[r][t] += values[r] * x[t] for each entry. Small tiles keep several sums, to hide the latency of an addition.
template <int R, int T, class Rows>
GOSSAMER_INLINE void accumulate(V (&sums)[R][T], const uint16_t* index, const uint16_t* end, const float* values,
                                int64_t block, Rows rows) {
  constexpr int ways = R * T > 4 ? 1 : R * T == 4 ? 2 : 4;
  if constexpr (ways > 1) {
    V more[ways][R][T];
    GOSSAMER_UNROLL for (int w = 1; w < ways; ++w)
      GOSSAMER_UNROLL for (int r = 0; r < R; ++r)
        GOSSAMER_UNROLL for (int t = 0; t < T; ++t) more[w][r][t] = set(0.0f);
    for (; index + ways <= end; index += ways, values += ways * block) {
      GOSSAMER_UNROLL for (int w = 0; w < ways; ++w) {
        const float* x = rows(index[w]);
        GOSSAMER_UNROLL for (int r = 0; r < R; ++r) {
          const V weight = set(values[w * block + r]);
          GOSSAMER_UNROLL for (int t = 0; t < T; ++t) {
            V& s = w ? more[w][r][t] : sums[r][t];
            s = fma(weight, load(x + t * kLanes), s);
          }
        }
      }
    }
    GOSSAMER_UNROLL for (int w = 1; w < ways; ++w)
      GOSSAMER_UNROLL for (int r = 0; r < R; ++r)
        GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = add(sums[r][t], more[w][r][t]);
  }
  for (; index != end; ++index, values += block) {
    const float* x = rows(*index);
    if constexpr (R == 1) {
      const V weight = set(values[0]);
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[0][t] = fma(weight, load(x + t * kLanes), sums[0][t]);
    } else {
      V v[T];
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) v[t] = load(x + t * kLanes);
      GOSSAMER_UNROLL for (int r = 0; r < R; ++r) {
        const V weight = set(values[r]);
        GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[r][t] = fma(weight, v[t], sums[r][t]);
      }
    }
  }
}

// One tile of pixels: what the panels and strips of a matrix have in common.
struct Tile {
  const Spmm& job;
  int64_t first, count;  // pixels
};

constexpr int64_t kFar = 1 << 18;  // floats of x that the second-level cache does not hold
constexpr int64_t kAhead = 8;      // rows of y whose cache lines are asked for before they are written

// Rows r .. r + R - 1 of the strips [begin, end) over panel p. The sums start from the bias, are kept in `partial`
// from a panel to the next, and end in y.
template <int R, int T, class Rows>
void add_panel(const Tile& tile, int64_t p, int64_t begin, int64_t end, int64_t r, float* partial, Rows rows) {
  const Spmm& job = tile.job;
  const BlockMatrix& a = job.a;
  const int64_t block = a.block, strips = a.strips();
  const bool is_first = p == 0, is_last = p + 1 >= a.panels();
  const int32_t* pointers = a.pointers + p * strips;
  const float* const bias = is_first ? job.after.bias : nullptr;
  partial += r * T * kLanes;
  // Meanwhile this panel's rows of x come nearer for the next tile.
  const int64_t columns = a.columns - p * a.panel < a.panel ? a.columns - p * a.panel : a.panel;
  const float* ahead = job.x + p * a.panel * job.x_stride + tile.first + T * kLanes;
  const bool is_far = !job.taps && !job.token_stride && r == 0 && a.columns * job.pixels >= kFar;
  int64_t due = 0;
  for (int64_t s = begin; s < end; ++s, partial += block * T * kLanes) {
    const int64_t from = pointers[s], to = pointers[s + 1], row = s * block + r;
    for (due += is_far ? columns : 0; due > 0; due -= end - begin, ahead += job.x_stride)
      GOSSAMER_UNROLL for (int t = 0; t < T * kLanes; t += 16) prefetch_far(ahead + t);
    if (is_last && !job.pitch) {
      const float* next = job.y + (row + kAhead) * job.y_stride + tile.first;
      GOSSAMER_UNROLL for (int i = 0; i < R; ++i)
        GOSSAMER_UNROLL for (int t = 0; t < T * kLanes; t += 16) prefetch(next + i * job.y_stride + t);
    }
    V sums[R][T];
    GOSSAMER_UNROLL for (int i = 0; i < R; ++i) {
      const V start = set(bias && row + i < a.rows ? bias[row + i] : 0.0f);
      GOSSAMER_UNROLL for (int t = 0; t < T; ++t) sums[i][t] = is_first ? start : load(partial + (i * T + t) * kLanes);
    }
    accumulate<R, T>(sums, a.indices + from, a.indices + to, a.values + from * block + r, block, rows);
    if (is_last) {
      GOSSAMER_UNROLL for (int i = 0; i < R; ++i)
        if (row + i < a.rows) finish_row<T>(job, sums[i], row + i, tile.first, tile.count);
    } else {
      GOSSAMER_UNROLL for (int i = 0; i < R; ++i)
        GOSSAMER_UNROLL for (int t = 0; t < T; ++t) store(partial + (i * T + t) * kLanes, sums[i][t]);
    }
  }
}

// Whether x is better read where it lies than packed: when it is aligned, in whole vectors, its rows do not fall on
// the same cache lines, and there are few multiplications for each element.
bool reads_directly(const Spmm& job) {
  if (job.token_stride) return false;
  const bool fits = job.pixels % kLanes == 0 && job.x_stride % 16 == 0 && job.x_stride % 256 != 0;
  const int64_t entries = job.a.pointers[job.a.panels() * job.a.strips()];
  return fits && reinterpret_cast<uintptr_t>(job.x) % 64 == 0 && entries * job.a.block < 64 * job.a.columns;
}

bool packs(const Spmm& job) { return !job.taps && !reads_directly(job); }

template <int T>
void pack_tile(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
  slab += from * T * kLanes;
  if (job.token_stride) return turn(job, first, count, from, to, slab, T * kLanes);
  pack<T>(job.x + from * job.x_stride + first, job.x_stride, to - from, count, slab);
}

// Rows go in bands, so that the unfinished sums stay in the second-level cache.
template <int R, int T>
void run_tile(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
  const Tile tile{job, first, count};
  const BlockMatrix& a = job.a;
  const bool is_direct = reads_directly(job);
  const int64_t fitting = kBand / (a.block * T * kLanes), strips = fitting > 1 ? fitting : 1;
  for (int64_t band = begin; band < end; band += strips) {
    const int64_t band_end = band + strips < end ? band + strips : end;
    for (int64_t p = 0; p < a.panels(); ++p) {
      const int64_t k = p * a.panel;
      for (int64_t r = 0; r < a.block; r += R) {
        if (job.taps) {
          add_panel<R, T>(tile, p, band, band_end, r, sums, ByTaps{job.x + first, job.taps + k});
        } else if (is_direct) {
          add_panel<R, T>(tile, p, band, band_end, r, sums, Strided{job.x + k * job.x_stride + first, job.x_stride});
        } else {
          add_panel<R, T>(tile, p, band, band_end, r, sums, InSlab<T>{slab + k * T * kLanes});
        }
      }
    }
  }
}

void pack_any(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
  static constexpr decltype(&pack_any) by_width[] = {pack_tile<1>, pack_tile<2>, pack_tile<3>, pack_tile<4>,
                                                     pack_tile<5>, pack_tile<6>, pack_tile<7>, pack_tile<8>};
  by_width[(count + kLanes - 1) / kLanes - 1](job, first, count, from, to, slab);
}

using Run = void (*)(const Spmm&, int64_t, int64_t, int64_t, int64_t, float*, float*);

void run(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
  static constexpr Run one[] = {run_tile<1, 1>, run_tile<1, 2>, run_tile<1, 3>, run_tile<1, 4>,
                                run_tile<1, 5>, run_tile<1, 6>, run_tile<1, 7>, run_tile<1, kWidest1>};
#if defined(__AVX512F__)
  static constexpr Run four[] = {run_tile<4, 1>, run_tile<4, 2>, run_tile<4, 3>,
                                 run_tile<4, 4>, run_tile<4, 5>, run_tile<4, 6>};
  static constexpr Run eight[] = {run_tile<8, 1>, run_tile<8, 2>, run_tile<8, 3>};
  const Run* const many = job.a.block == 4 ? four : eight;
#else
  static constexpr Run four[] = {run_tile<4, 1>, run_tile<4, 2>, run_tile<4, 3>};
  const Run* const many = four;
#endif
  const int64_t tile = (count + kLanes - 1) / kLanes;
  (job.a.block == 1 ? one : many)[tile - 1](job, first, count, begin, end, slab, sums);
}

}  // namespace

extern const SpmmKernels spmm_kernels = {kLanes, widest, packs, pack_any, run};

}  // namespace gossamer::GOSSAMER_NS
