#include "code.hpp"
#include "tile_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// Each vector of pixels is a slab of its own.
void pack_vectors(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
  slab += from * kLanes;
  for (int64_t q = 0; q < count; q += kLanes, slab += job.a.columns * kLanes) {
    const int64_t left = count - q < kLanes ? count - q : kLanes;
    if (job.token_stride)
      turn(job, first + q, left, from, to, slab, kLanes);
    else
      pack<1>(job.x + from * job.x_stride + first + q, job.x_stride, to - from, left, slab);
  }
}

// Machine code exists for vectors of 16 only; `spmm` asks no other level.
void run(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
  const Code& code = *job.a.code;
  const int64_t columns = job.a.columns;
  for (int64_t g = begin; g < end; ++g) {
    const int64_t row = g * kCodeRows, rows = job.a.rows - row < kCodeRows ? job.a.rows - row : kCodeRows;
    for (int64_t q = 0; q < count; q += kLanes) {
      code.entries[g](slab + q * columns, code.values[g], sums);
      for (int64_t r = 0; r < rows; ++r) {
        const V bias = set(job.after.bias ? job.after.bias[row + r] : 0.0f);
        const V sum[1] = {add(load(sums + r * kLanes), bias)};
        finish_row<1>(job, sum, row + r, first + q, count - q);
      }
    }
  }
}

}  // namespace

extern const CodeKernels code_kernels;
const CodeKernels code_kernels = {pack_vectors, run};

}  // namespace gossamer::GOSSAMER_NS
