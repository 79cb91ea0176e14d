// A product cut into tiles of pixels and groups of rows, over threads. For the drivers of kernels that pack x.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>

#include "../core/pool.hpp"
#include "workspace.hpp"

namespace gossamer {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Cut {
  int64_t pixels, tile;    // all, and those of a tile
  int64_t strips;          // of rows
  int64_t columns, slab;   // of x, and the floats that a packed tile of them takes; slab 0: x is read where it lies
  int64_t sums;            // floats of scratch for a thread
  // Whether a tile is packed once for all groups of rows: half of it is then in another core's cache, so only where
  // packing is dear.
  bool is_shared;
};

// pack(first pixel, pixels, first column, last, slab) and run(first pixel, pixels, first strip, last, slab, sums) for
// each part, then `last`.
template <class Pack, class Run>
void by_tiles(const Cut& cut, int threads, Pack pack, Run run, const Phase& last) {
  constexpr int64_t kPiece = 64;  // columns
  const int64_t tiles = divide_up(cut.pixels, cut.tile), slab = divide_up(cut.slab, 16) * 16;
  const auto pixels_of = [&](int64_t tile) { return std::min(cut.tile, cut.pixels - tile * cut.tile); };
  // Groups of rows are made only where there are too few tiles for the threads.
  const int64_t wanted = threads > 1 && tiles < 4 * threads ? divide_up(4 * threads, tiles) : 1;
  const int64_t each = divide_up(cut.strips, std::min(wanted, cut.strips)), groups = divide_up(cut.strips, each);
  const bool is_shared = cut.is_shared && slab > 0 && groups > 1;
  thread_local Scratch shared, scratch;
  float* const slabs = is_shared ? shared.floats(tiles * slab) : nullptr;
  const int64_t pieces = divide_up(cut.columns, kPiece);
  const auto pack_piece = [&](int64_t chunk, int64_t) {
    const int64_t tile = chunk / pieces, from = chunk % pieces * kPiece;
    pack(tile * cut.tile, pixels_of(tile), from, std::min(from + kPiece, cut.columns), slabs + tile * slab);
  };
  const int64_t own = is_shared ? 0 : slab;
  threads = std::min<int>(threads, Slots::kMost);
  Slots slots(scratch, static_cast<int>(std::min<int64_t>(threads, tiles * groups)), own + cut.sums);
  const auto multiply = [&](int64_t chunk, int64_t) {
    const Slots::Lease lease(slots);
    const int64_t tile = chunk / groups, first = tile * cut.tile, begin = chunk % groups * each;
    float* const packed = is_shared ? slabs + tile * slab : lease.floats();
    if (own) pack(first, pixels_of(tile), 0, cut.columns, packed);
    run(first, pixels_of(tile), begin, std::min(begin + each, cut.strips), packed, lease.floats() + own);
  };
  const Phase phases[] = {
      phase(is_shared ? tiles * pieces : 0, 1, pack_piece), phase(tiles * groups, 1, multiply), last};
  static_assert(std::size(phases) <= kMostPhases);
  parallel_phases(phases, 3, threads);
}

}  // namespace gossamer
