#include "spmm.hpp"

#include <algorithm>

#include "../core/pool.hpp"
#include "bf16.hpp"
#include "code.hpp"
#include "workspace.hpp"

namespace gossamer {
namespace {

constexpr int64_t kSlab = 1 << 14;  // floats of a panel of x that are read again and again

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors in a tile: as wide as registers and cache allow, and about equally wide over the row of pixels.
int64_t tile_of(const Spmm& job, const SpmmKernels& kernels) {
  int64_t widest = kernels.widest(job.a.block);
  if (job.tile) return std::clamp<int64_t>(job.tile, 1, widest);
  const int64_t columns = std::max<int64_t>(1, std::min(job.a.panel, job.a.columns));
  if (job.a.block == 1) widest = std::clamp<int64_t>(kSlab / (columns * kernels.lanes), 4, widest);
  const int64_t vectors = divide_up(job.pixels, kernels.lanes);
  return divide_up(vectors, divide_up(vectors, widest));
}

// run(first pixel, pixels, first strip, last, slab, sums) for each part of the product.
template <class Run>
void by_tiles(const Spmm& job, int threads, int64_t tile, int64_t slab, Run run) {
  const int64_t strips = job.a.strips(), tiles = divide_up(job.pixels, tile);
  // More groups of rows repeat the packing of x: made only when there are too few tiles for the threads.
  const int64_t wanted = threads > 1 && tiles < 4 * threads ? divide_up(4 * threads, tiles) : 1;
  const int64_t strips_each = divide_up(strips, std::min(wanted, strips)), groups = divide_up(strips, strips_each);
  threads = static_cast<int>(std::min<int64_t>({threads, tiles * groups, Slots::kMost}));

  thread_local Scratch scratch;
  slab = divide_up(slab, 16) * 16;
  Slots slots(scratch, threads, slab + std::max(kBand, job.a.block * tile));
  parallel_for(tiles * groups, 1, threads, [&](int64_t chunk, int64_t) {
    const Slots::Lease lease(slots);
    const int64_t first = chunk / groups * tile, begin = chunk % groups * strips_each;
    run(first, std::min(tile, job.pixels - first), begin, std::min(begin + strips_each, strips), lease.floats(),
        lease.floats() + slab);
  });
}

void spmm_halves(const Spmm& job, int threads) {
  const auto& kernels = bf16_kernels();
  static const bool has_instructions = has("avx512bf16");
  const bool is_fast = kernels.run_fast && has_instructions;
  const auto run = is_fast ? kernels.run_fast : kernels.run;
  const int64_t lanes = spmm_kernels().lanes, columns = std::max<int64_t>(1, std::min(job.a.panel, job.a.columns));
  int64_t widest = is_fast ? kernels.widest(job.a.block) : 8;
  if (job.a.block == 1) widest = std::clamp<int64_t>(2 * kSlab / (columns * lanes), 4, widest);
  const int64_t pairs = divide_up(job.pixels, 2 * lanes);  // tiles hold an even number of vectors
  const int64_t tile = divide_up(pairs, divide_up(pairs, widest / 2)) * 2 * lanes;
  by_tiles(job, threads, tile, job.taps ? 0 : job.a.columns * tile / 2,
           [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
             run(job, first, count, begin, end, reinterpret_cast<uint16_t*>(slab), sums);
           });
}

}  // namespace

void spmm(const Spmm& job, int threads) {
  if (job.a.rows <= 0 || job.pixels <= 0) return;
  if (job.a.halves) return spmm_halves(job, threads);
  if (runs_code(job)) return spmm_by_code(job, threads);
  const auto& kernels = spmm_kernels();
  const int64_t tile = tile_of(job, kernels) * kernels.lanes;
  by_tiles(job, threads, tile, job.taps ? 0 : job.a.columns * tile,
           [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
             kernels.run(job, first, count, begin, end, slab, sums);
           });
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
