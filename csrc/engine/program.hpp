// A network as a list of steps over values in an arena: one native call runs it all.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "../sparse/code.hpp"
#include "../sparse/conv.hpp"
#include "../sparse/gemv.hpp"
#include "../sparse/pointwise.hpp"

namespace gossamer {

enum class Op : int64_t {
  conv = 0, linear = 1, depthwise = 2, max_pool = 3, mean = 4, add = 5, copy = 6, scale = 7,
  separable = 8  // depthwise, then a 1x1 convolution, by strips of rows that stay in the cache
};

// A row of the step table. Indices of absent things are -1.
struct Step {
  int64_t op, in, out, other;        // values; `other` is the residual, or a second operand
  int64_t weights, rows;             // arrays (depthwise) or matrices; `rows`: the format for few images (linear),
                                     // or the array of the depthwise weight (separable)
  int64_t bias, activation;          // an array, an Activation
  int64_t shape[11];                 // by operator, see program.cpp
};

struct Value {
  int64_t offset;  // floats from the arena's start, for one image; -1: its address comes with each call
  int64_t size;    // floats of one image
};

struct Array {
  int64_t offset, count, type;  // bytes from the start of the constants; type: 0 f32, 1 i32, 2 u16, 3 u64, 4 bf16
};

struct Matrix {
  int64_t kind;  // 0: BlockMatrix, 1: RowMatrix, 2: BlockMatrix as machine code where it can, 3: of bfloat16
  int64_t rows, columns, block, panel;
  int64_t pointers, indices, values, bits;  // arrays
};

// Everything that steps say is checked on construction, so that a damaged file cannot reach outside of its memory.
class Program {
 public:
  // The constants are not copied and must outlive the program. Throws std::invalid_argument.
  Program(std::vector<Step> steps, std::vector<Value> values, std::vector<Array> arrays, std::vector<Matrix> matrices,
          const unsigned char* constants, int64_t bytes, int64_t arena);

  // Steps [begin, end) for `images` images, `chunk` at a time. addresses[v]: where value v is, if not in the arena;
  // `arena` has room for arena * chunk floats. nanoseconds: null, or one for each step of the program.
  void run(int64_t begin, int64_t end, int64_t images, int64_t chunk, const uintptr_t* addresses, float* arena,
           int threads, int64_t* nanoseconds) const;

  int64_t size() const { return static_cast<int64_t>(steps_.size()); }
  int64_t arena() const { return arena_; }

 private:
  struct Sparse {
    BlockMatrix block;
    RowMatrix row;
    std::shared_ptr<const Code> code;
    bool is_row = false, is_bf16 = false;
  };
  struct Call;

  const void* array(int64_t index, int64_t type, int64_t least) const;
  Sparse sparse(const Matrix& matrix) const;
  void check(const Step& step) const;
  void check_conv(const Step& step) const;
  void check_windows(const Step& step) const;
  void check_depthwise(const Step& step, int64_t weight, int64_t bias) const;
  void check_separable(const Step& step) const;
  const Sparse& matrix(int64_t index, bool is_row) const;
  void expect(int64_t value, int64_t size, const char* role) const;
  void step(const Step& step, const Call& call) const;
  void separable(const Step& step, const Call& call) const;

  std::vector<Step> steps_;
  std::vector<Value> values_;
  std::vector<Array> arrays_;
  std::vector<Sparse> matrices_;
  const unsigned char* constants_;
  int64_t bytes_, arena_;
};

}  // namespace gossamer
