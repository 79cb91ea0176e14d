// Lines of a sparse transport plan for Python. Addresses come from gossamer/kernels, which has checked them.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../core/pool.hpp"
#include "line_kernels.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

constexpr int64_t kLines = 64;  // of a chunk; each chunk sums on its own, and the sums are added in order

template <class T>
struct Entry {
  T score;
  int32_t index;
  bool operator<(const Entry& other) const {  // larger scores first, equal ones by index
    return score > other.score || (score == other.score && index < other.index);
  }
};

template <class T>
struct Scratch {
  std::vector<T> scores;
  std::vector<int32_t> indices;
  std::vector<Entry<T>> entries;
  explicit Scratch(int64_t m) : scores(m), indices(m + 16) { entries.reserve(m); }
};

template <class T>
struct Problem {
  const T *cost, *alpha, *by;  // (batch, n, m), (batch, m), (batch, n)
  int64_t batch, n, m, k;
  T gamma;
  bool semi;
  T *sums, *level, *star, *filled, *plan;  // (batch, m), (batch, n) three times, (batch, n, m) of zeros or null
};

// Level below which an entry has no mass, for falling scores whose total is to be gamma_total above it.
template <class T, class At>
T project(int64_t count, T gamma_total, At score) {
  T sum = 0, excess = 0;
  int64_t support = 0;
  for (int64_t r = 0; r < count; ++r) {
    sum += score(r);
    if (r > 0 && !(score(r) * T(r + 1) > sum - gamma_total)) break;
    excess = sum - gamma_total;
    support = r + 1;
  }
  return excess / T(support);
}

// A score that no entry with mass is below. The largest scores of the lanes are scores of different entries: with these
// alone the level would be lower, and so would the k-th largest score.
template <class T>
T bound(const Problem<T>& p, T by, T* largest) {
  const int64_t lanes = std::min<int64_t>({kLanes, p.m, p.k});
  std::partial_sort(largest, largest + lanes, largest + kLanes, [](T x, T y) { return x > y; });
  T least = p.semi ? project(lanes, p.gamma * by, [&](int64_t r) { return largest[r]; }) : -by;
  if (p.semi) least = std::min(least, largest[0]);                   // whatever the rounding, one entry stays
  return lanes == p.k ? std::max(least, largest[lanes - 1]) : least;
}

template <class T>
void line(const Problem<T>& p, const LineKernel<T>& kernel, int64_t row, const T* alpha, T* sums, Scratch<T>& scratch) {
  const T by = p.by[row];
  T largest[kLanes];
  kernel.scores(alpha, p.cost + row * p.m, scratch.scores.data(), p.m, largest);
  // a hair lower, as the bound is rounded otherwise than the level
  T least = bound(p, by, largest);
  least -= (std::abs(least) + p.gamma * std::abs(by)) * std::numeric_limits<T>::epsilon() * kLanes;
  const int64_t found = kernel.reach(scratch.scores.data(), p.m, least, scratch.indices.data());
  auto& entries = scratch.entries;
  entries.clear();
  for (int64_t i = 0; i < found; ++i) entries.push_back({scratch.scores[scratch.indices[i]], scratch.indices[i]});
  if (found > p.k) {
    std::nth_element(entries.begin(), entries.begin() + p.k, entries.end());
    entries.resize(p.k);
  }
  T level = -by, squares = 0, filled = 0;
  if (p.semi) {
    std::sort(entries.begin(), entries.end());
    const auto score = [&](int64_t r) { return entries[r].score; };
    level = entries.empty() ? largest[0] : project<T>(entries.size(), p.gamma * by, score);  // empty: alpha is NaN
  }
  for (const Entry<T>& entry : entries) {
    const T mass = std::max(entry.score - level, T(0)) / p.gamma;
    sums[entry.index] += mass;
    filled += mass;
    squares += mass * mass;
    if (p.plan) p.plan[row * p.m + entry.index] = mass;
  }
  p.level[row] = level;
  p.filled[row] = filled;
  p.star[row] = p.gamma / 2 * squares + (p.semi ? level * by : T(0));
}

template <class T>
void run(const Problem<T>& p, const LineKernel<T>& kernel, int threads) {
  const int64_t chunks = (p.n + kLines - 1) / kLines;
  std::vector<T> partial(chunks > 1 ? p.batch * chunks * p.m : 0);
  if (chunks == 1) std::fill(p.sums, p.sums + p.batch * p.m, T(0));
  // problems of few lines share a chunk, and with it the scratch
  const int64_t grain = std::max<int64_t>(1, kLines / p.n);
  std::vector<Scratch<T>> scratch((p.batch * chunks + grain - 1) / grain, Scratch<T>(0));
  for (auto& one : scratch) one = Scratch<T>(p.m);
  parallel_for(p.batch * chunks, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t problem = c / chunks, first = c % chunks * kLines;
      T* sums = chunks == 1 ? p.sums + problem * p.m : partial.data() + c * p.m;
      for (int64_t j = first; j < std::min(p.n, first + kLines); ++j)
        line(p, kernel, problem * p.n + j, p.alpha + problem * p.m, sums, scratch[begin / grain]);
    }
  });
  if (chunks == 1) return;
  for (int64_t problem = 0; problem < p.batch; ++problem) {
    T* sums = p.sums + problem * p.m;
    std::fill(sums, sums + p.m, T(0));
    for (int64_t c = problem * chunks; c < (problem + 1) * chunks; ++c)
      for (int64_t i = 0; i < p.m; ++i) sums[i] += partial[c * p.m + i];
  }
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
Problem<T> problem(uintptr_t cost, uintptr_t alpha, uintptr_t by, int64_t batch, int64_t n, int64_t m, int64_t k,
                   double gamma, bool semi, uintptr_t sums, uintptr_t level, uintptr_t star, uintptr_t filled,
                   uintptr_t plan) {
  return {at<T>(cost), at<T>(alpha), at<T>(by),    batch,        n,           m,            k,
          T(gamma),    semi,         at<T>(sums),  at<T>(level), at<T>(star), at<T>(filled), at<T>(plan)};
}

// size: 4 = float32, 8 = float64, of all arrays.
void sparse_lines(uintptr_t cost, uintptr_t alpha, uintptr_t by, int64_t batch, int64_t n, int64_t m, int64_t k,
                  double gamma, bool semi, uintptr_t sums, uintptr_t level, uintptr_t star, uintptr_t filled,
                  uintptr_t plan, int size, int threads) {
  const auto with = [&](auto zero, const auto& kernel) {
    using T = decltype(zero);
    run(problem<T>(cost, alpha, by, batch, n, m, k, gamma, semi, sums, level, star, filled, plan), kernel, threads);
  };
  if (size == 4) with(0.0f, line_kernels().f32);
  else with(0.0, line_kernels().f64);
}

}  // namespace

void bind_transport(nb::module_& module) {
  module.def("sparse_lines", &sparse_lines, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace gossamer
