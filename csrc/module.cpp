// The extension gossamer._native. Only gossamer/kernels/native.py imports it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/cpu.hpp"
#include "core/team.hpp"

namespace nb = nanobind;

namespace gossamer {
void bind_masks(nb::module_& module);
void bind_train(nb::module_& module);
void bind_sparse(nb::module_& module);
void bind_engine(nb::module_& module);
void bind_transport(nb::module_& module);
void bind_predictors(nb::module_& module);
}

NB_MODULE(_native, module) {
  using namespace gossamer;
  module.def("level", [] { return std::string(name(level())); });
  module.def("set_level", &set_level);
  module.def("features", [] { return features(); });
  module.def("pool", [] { return torch_team() ? "torch" : "own"; });
  module.def("levels", [] {
    std::vector<std::string> names;
    for (Level candidate : available()) names.emplace_back(name(candidate));
    return names;
  });
  bind_masks(module);
  bind_train(module);
  bind_sparse(module);
  bind_engine(module);
  bind_transport(module);
  bind_predictors(module);
}
