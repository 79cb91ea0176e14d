// Branch predictors for Python. Addresses come from gossamer/domains/branch_prediction, which has checked the arrays and
// every setting.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "corrector.hpp"
#include "counters.hpp"
#include "perceptron.hpp"
#include "side.hpp"
#include "tage.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

using Numbers = std::vector<int>;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

struct Stream {
  const uint64_t* pc;
  const uint8_t* taken;
  const uint8_t* quiet;  // branches that must not allocate; may be null
  uint8_t* guess;
  int64_t count;
};

template <class Predictor>
void play(Predictor predictor, const Stream& s) {
  for (int64_t i = 0; i < s.count; ++i) {
    s.guess[i] = predictor.predict(s.pc[i]);
    predictor.update(s.pc[i], s.taken[i], s.quiet && s.quiet[i]);
  }
}

// Calls `use` with the smallest sufficient room for `count` tables as a constant.
template <class Use>
void with_room(size_t count, Use use) {
  if (count <= 4) return use(std::integral_constant<int, 4>());
  if (count <= 8) return use(std::integral_constant<int, 8>());
  if (count <= 12) return use(std::integral_constant<int, 12>());
  if (count <= 16) return use(std::integral_constant<int, 16>());
  if (count <= 32) return use(std::integral_constant<int, 32>());
  throw std::invalid_argument("more than 32 tables");
}

// `numbers` are the predictor's settings; `lists` its history lengths, each ascending.
void run(const std::string& name, const Numbers& numbers, const std::vector<Numbers>& lists, uintptr_t pc,
         uintptr_t taken, uintptr_t quiet, uintptr_t guess, int64_t count) {
  const Stream s{at<uint64_t>(pc), at<uint8_t>(taken), at<uint8_t>(quiet), at<uint8_t>(guess), count};
  const auto is = [&](const char* wanted, size_t settings, size_t lengths) {
    return name == wanted && numbers.size() == settings && lists.size() == lengths;
  };
  const int* n = numbers.data();
  if (is("bimodal", 1, 0)) return play(Bimodal(n[0]), s);
  if (is("gshare", 2, 0)) return play(Gshare(n[0], n[1]), s);
  if (is("tournament", 3, 0)) return play(Tournament(n[0], n[1], n[2]), s);
  if (is("perceptron", 3, 0)) return play(Perceptron(n[0], n[1], n[2]), s);
  if (is("hashed-perceptron", 2, 1))
    return with_room(lists[0].size(), [&](auto room) { play(HashedPerceptron<room>(lists[0], n[0], n[1]), s); });
  if (is("tage", 3, 1))
    return with_room(lists[0].size(), [&](auto room) { play(Tage<room>(lists[0], n[0], n[1], n[2]), s); });
  if (is("tage-sc-l", 5, 3) && lists[1].size() <= 8)
    return with_room(lists[0].size(), [&](auto room) {
      play(TageScl<room>(lists[0], n[0], n[1], n[2], n[3], n[4], lists[1], lists[2]), s);
    });
  throw std::invalid_argument("no predictor " + name + " with so many settings");
}

void side(uintptr_t entry, uintptr_t taken, uintptr_t base, uintptr_t guess, int64_t count, const Numbers& offsets,
          const Numbers& positions, const Numbers& weights, const Numbers& biases, int history, int threshold,
          int highest) {
  const SideTable table{offsets, positions, weights, biases, history, threshold, highest};
  play_side(table, at<int32_t>(entry), at<uint8_t>(taken), at<uint8_t>(base), at<uint8_t>(guess), count);
}

}  // namespace

void bind_predictors(nb::module_& module) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  module.def("branch_run", &run, unlocked);
  module.def("branch_side", &side, unlocked);
}

}  // namespace gossamer
