#include "line_kernels.hpp"

namespace gossamer::GOSSAMER_NS {
namespace {

template <class T>
void scores(const T* alpha, const T* cost, T* out, int64_t count, T* largest) {
  const T least = -static_cast<T>(__builtin_inf());
  T best[kLanes];
  for (int j = 0; j < kLanes; ++j) best[j] = least;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const T s = alpha[i + j] - cost[i + j];
      out[i + j] = s;
      best[j] = s > best[j] ? s : best[j];
    }
  for (int j = 0; i < count; ++i, ++j) {
    out[i] = alpha[i] - cost[i];
    best[j] = out[i] > best[j] ? out[i] : best[j];
  }
  for (int j = 0; j < kLanes; ++j) largest[j] = best[j];
}

constexpr int kGroup = 16;

// Few scores reach the threshold, so whole groups are passed over.
template <class T>
int64_t reach(const T* scores, int64_t count, T least, int32_t* indices) {
  int64_t found = 0, i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    int any = 0;
    for (int j = 0; j < kGroup; ++j) any += scores[i + j] >= least;
    if (!any) continue;
    for (int j = 0; j < kGroup; ++j) {
      indices[found] = static_cast<int32_t>(i + j);
      found += scores[i + j] >= least;
    }
  }
  for (; i < count; ++i) {
    indices[found] = static_cast<int32_t>(i);
    found += scores[i] >= least;
  }
  return found;
}

}  // namespace

extern const LineKernels line_kernels = {{scores<float>, reach<float>}, {scores<double>, reach<double>}};

}  // namespace gossamer::GOSSAMER_NS
