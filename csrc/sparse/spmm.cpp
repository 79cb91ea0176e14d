#include "spmm.hpp"

#include <algorithm>

#include "bf16.hpp"
#include "code.hpp"
#include "pointwise.hpp"
#include "tiles.hpp"

namespace gossamer {
namespace {

constexpr int64_t kTurned = 32;     // rows of y that a thread transposes at a time: whole cache lines
constexpr int64_t kSlab = 1 << 14;  // floats of a panel of x that are read again and again

// Vectors in a tile: as wide as registers and cache allow, and about equally wide over the row of pixels.
int64_t tile_of(const Spmm& job, const SpmmKernels& kernels) {
  int64_t widest = kernels.widest(job.a.block);
  if (job.tile) return std::clamp<int64_t>(job.tile, 1, widest);
  const int64_t columns = std::max<int64_t>(1, std::min(job.a.panel, job.a.columns));
  if (job.a.block == 1) widest = std::clamp<int64_t>(kSlab / (columns * kernels.lanes), 4, widest);
  const int64_t vectors = divide_up(job.pixels, kernels.lanes);
  return divide_up(vectors, divide_up(vectors, widest));
}

Cut cut_of(const Spmm& job, int64_t tile, int64_t slab) {
  return {job.pixels, tile, job.a.strips(), job.a.columns, slab, std::max(kBand, job.a.block * tile),
          job.token_stride > 0};
}

void spmm_halves(const Spmm& job, int threads, const Phase& last) {
  const auto& kernels = bf16_kernels();
  static const bool has_instructions = has("avx512bf16");
  const bool is_fast = kernels.run_fast && has_instructions;
  const auto run = is_fast ? kernels.run_fast : kernels.run;
  const int64_t lanes = spmm_kernels().lanes, columns = std::max<int64_t>(1, std::min(job.a.panel, job.a.columns));
  int64_t widest = is_fast ? kernels.widest(job.a.block) : 8;
  if (job.a.block == 1) widest = std::clamp<int64_t>(2 * kSlab / (columns * lanes), 4, widest);
  const int64_t pairs = divide_up(job.pixels, 2 * lanes);  // tiles hold an even number of vectors
  const int64_t tile = divide_up(pairs, divide_up(pairs, widest / 2)) * 2 * lanes;
  const auto pack = is_fast ? kernels.pack_fast : kernels.pack;
  const auto halves = [](float* slab) { return reinterpret_cast<uint16_t*>(slab); };
  by_tiles(
      cut_of(job, tile, job.taps ? 0 : divide_up(job.a.columns * tile, 2)), threads,
      [&](int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
        pack(job, first, count, from, to, halves(slab));
      },
      [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
        run(job, first, count, begin, end, halves(slab), sums);
      },
      last);
}

}  // namespace

void spmm(const Spmm& job, int threads) {
  if (job.a.rows <= 0 || job.pixels <= 0) return;
  const auto turn = [&](int64_t begin, int64_t end) {
    pointwise_kernels().transpose(job.y, job.a.rows, job.pixels, job.y_tokens, begin, end);
  };
  const Phase last = phase(job.y_tokens ? job.a.rows : 0, kTurned, turn);
  if (job.a.halves) return spmm_halves(job, threads, last);
  if (runs_code(job)) return spmm_by_code(job, threads, last);
  const auto& kernels = spmm_kernels();
  const int64_t tile = tile_of(job, kernels) * kernels.lanes;
  by_tiles(
      cut_of(job, tile, kernels.packs(job) ? job.a.columns * tile : 0), threads,
      [&](int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
        kernels.pack(job, first, count, from, to, slab);
      },
      [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
        kernels.run(job, first, count, begin, end, slab, sums);
      },
      last);
}

bool is_valid(const BlockMatrix& a, int64_t entries) {
  if (a.rows < 0 || a.columns < 0 || a.panel < 1 || a.panel > 65536) return false;
  if (a.block != 1 && a.block != 4 && a.block != 8 && a.block != 16) return false;
  const int64_t strips = a.strips(), panels = a.panels();
  if (a.pointers[0] != 0 || a.pointers[strips * panels] != entries) return false;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t columns = std::min(a.panel, a.columns - p * a.panel);
    for (int64_t s = p * strips; s < (p + 1) * strips; ++s) {
      if (a.pointers[s] > a.pointers[s + 1] || a.pointers[s + 1] > entries) return false;
      for (int64_t i = a.pointers[s]; i < a.pointers[s + 1]; ++i)
        if (a.indices[i] >= columns || (i > a.pointers[s] && a.indices[i] <= a.indices[i - 1])) return false;
    }
  }
  return true;
}

}  // namespace gossamer
