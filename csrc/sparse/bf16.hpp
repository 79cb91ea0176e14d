// Products in bfloat16: weights and activations are rounded to it, products are summed in float32.
//
// The instruction that adds two products at a time wants the two factors of each side next to each other. Weights are
// stored that way (BlockMatrix::halves); rows of x are zipped, two at a time, when they meet.
#pragma once
#include "spmm.hpp"

namespace gossamer {

struct Bf16Kernels {
  void (*round)(const float* x, uint16_t* y, int64_t count);  // to nearest, ties to even; a NaN stays one
  // As SpmmKernels, for tiles of an even number of vectors. `slab` has room for columns * tile halves.
  void (*pack)(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, uint16_t* slab);
  void (*run)(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, uint16_t* slab, float* sums);
  // The same by instructions of their own (avx512bf16), with tiles of up to widest(block) vectors; null: none.
  void (*pack_fast)(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, uint16_t* slab);
  void (*run_fast)(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, uint16_t* slab,
                   float* sums);
  int64_t (*widest)(int64_t block);
};

GOSSAMER_DISPATCH(Bf16Kernels, bf16_kernels)

}  // namespace gossamer
