// What products row by row have in common. For kernel sources only.
#pragma once
#include "activation_simd.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

// Of a word that is not 0.
GOSSAMER_INLINE int lowest_bit(uint64_t word) {
#if defined(__GNUC__)
  return __builtin_ctzll(word);
#else
  int place = 0;
  for (; !(word & 1); word >>= 1) ++place;
  return place;
#endif
}

// y = activation(y + bias + residual) for rows [begin, end).
GOSSAMER_OUTLINED void finish_rows(float* y, const Epilogue& after, int64_t begin, int64_t end) {
  const Finish finish(after.activation);
  for (int64_t n = begin; n < end; n += kLanes) {
    V v = load_first(y + n, end - n);
    if (after.bias) v = add(v, load_first(after.bias + n, end - n));
    if (after.residual) v = add(v, load_first(after.residual + n, end - n));
    store_first(y + n, finish(v), end - n);
  }
}

}  // namespace
}  // namespace gossamer::GOSSAMER_NS
