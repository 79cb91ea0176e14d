// Programs for Python. Tables cross as addresses of int64 arrays, which gossamer/engine/runtime.py has sized.
#include <nanobind/nanobind.h>

#include "program.hpp"

namespace nb = nanobind;

namespace gossamer {
namespace {

template <class Row>
std::vector<Row> rows(uintptr_t address, int64_t count) {
  const Row* first = reinterpret_cast<const Row*>(address);
  return std::vector<Row>(first, first + count);
}

}  // namespace

void bind_engine(nb::module_& module) {
  nb::class_<Program>(module, "Program")
      .def("__init__",
           [](Program* self, uintptr_t steps, int64_t n_steps, uintptr_t values, int64_t n_values, uintptr_t arrays,
              int64_t n_arrays, uintptr_t matrices, int64_t n_matrices, uintptr_t constants, int64_t bytes,
              int64_t arena) {
             new (self) Program(rows<Step>(steps, n_steps), rows<Value>(values, n_values), rows<Array>(arrays, n_arrays),
                                rows<Matrix>(matrices, n_matrices), reinterpret_cast<const unsigned char*>(constants),
                                bytes, arena);
           })
      .def(
          "run",
          [](const Program& self, int64_t begin, int64_t end, int64_t images, int64_t chunk, uintptr_t addresses,
             uintptr_t arena, int threads, uintptr_t nanoseconds) {
            self.run(begin, end, images, chunk, reinterpret_cast<const uintptr_t*>(addresses),
                     reinterpret_cast<float*>(arena), threads, reinterpret_cast<int64_t*>(nanoseconds));
          },
          nb::call_guard<nb::gil_scoped_release>());
  module.attr("STEP_WIDTH") = static_cast<int>(sizeof(Step) / sizeof(int64_t));
}

}  // namespace gossamer
