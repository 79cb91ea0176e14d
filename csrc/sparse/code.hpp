// A sparse matrix as machine code: the pattern is burnt into AVX-512 instructions, so that nothing is looked up and no
// branch is taken while multiplying. An option beside the generic kernels, to be chosen by measurement: it pays at
// 50 to 80 % zeros, while the code (7 bytes a non-zero) can be fetched as fast as it runs.
#pragma once
#include <cstdint>
#include <memory>

#include "../core/pool.hpp"
#include "spmm.hpp"

namespace gossamer {

constexpr int64_t kCodeRows = 26;  // whose sums stay in registers; the other six hold entries of x

constexpr int64_t kMostCode = 1 << 22;  // bytes for one matrix, unless said otherwise

// What the kernels see. Group g is rows [g * kCodeRows, ...): sums[row][lane] = sum_k a[row][k] x[k][lane], for
// x (columns, 16) and sums (kCodeRows, 16), aligned to 64 bytes; each sum by rising column.
struct Code {
  using Group = void (*)(const float* x, const float* values, float* sums);
  int64_t groups = 0;
  const Group* entries = nullptr;
  const float* const* values = nullptr;
};

// Code for a matrix with rows of its own (block 1), which need not live on. Written first and made executable
// afterwards: no page is ever both. Null where the code would be longer than `most` bytes, the processor lacks
// AVX-512, or the system refuses.
std::shared_ptr<const Code> encode(const BlockMatrix& a, int64_t most);

// As SpmmKernels, with groups in place of strips. `slab` has room for columns * count floats, rounded up to
// whole vectors, and `sums` for kCodeRows vectors; both are aligned to 64 bytes.
struct CodeKernels {
  void (*pack)(const Spmm& job, int64_t first, int64_t count, int64_t from, int64_t to, float* slab);
  void (*run)(const Spmm& job, int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums);
};

GOSSAMER_DISPATCH(CodeKernels, code_kernels)

// Whether `spmm` runs the matrix's code for this job.
bool runs_code(const Spmm& job);
void spmm_by_code(const Spmm& job, int threads, const Phase& last);

}  // namespace gossamer
