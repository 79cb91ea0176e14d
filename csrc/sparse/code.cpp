#include "code.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tiles.hpp"

#if defined(__x86_64__) && (defined(__linux__) || defined(__APPLE__))
#define GOSSAMER_ENCODES 1
#include <sys/mman.h>
#endif

namespace gossamer {

#if defined(GOSSAMER_ENCODES)

namespace {

constexpr int kVector = 64;  // bytes of a register
constexpr int kFirstInput = kCodeRows;    // zmm26 .. zmm31 hold x in turns
constexpr int kInputs = 32 - kCodeRows;
constexpr int kX = 7, kValues = 6, kSums = 2;  // rdi, rsi, rdx: the first three arguments
constexpr int64_t kReach = 128;                // values on either side of rsi that 8 bits of displacement reach

// The few instructions that are needed. Registers 0 to 31; addresses are a base below 8 and a displacement.
class Encoder {
 public:
  void load(int target, int base, int64_t bytes) { memory(1, 0, target, 0, 0x10, base, bytes, kVector, false); }
  void store(int source, int base, int64_t bytes) { memory(1, 0, source, 0, 0x11, base, bytes, kVector, false); }
  // sum += x * the float at the address, for every lane
  void multiply_add(int sum, int x, int base, int64_t bytes) { memory(2, 1, sum, x, 0xb8, base, bytes, 4, true); }
  void clear(int target) {  // vpxord with itself
    prefix(1, 1, target, target, (target & 8) == 0, (target & 16) == 0, false);
    put({0xef, 0xc0 | (target & 7) << 3 | (target & 7)});
  }
  void advance(int base, int32_t bytes) {
    put({0x48, 0x81, 0xc0 | base});
    number(bytes);
  }
  void finish() { put({0xc5, 0xf8, 0x77, 0xc3}); }  // vzeroupper, ret
  void align() {
    while (code.size() % kVector) code.push_back(0xcc);  // int3
  }

  std::vector<uint8_t> code;

 private:
  void put(std::initializer_list<int> more) {
    for (int byte : more) code.push_back(static_cast<uint8_t>(byte));
  }
  void number(int32_t value) {
    uint8_t raw[4];
    std::memcpy(raw, &value, 4);
    code.insert(code.end(), raw, raw + 4);
  }
  // EVEX for 512 bits; register numbers are stored inverted.
  void prefix(int map, int pp, int reg, int second, bool not_b, bool not_x, bool broadcast) {
    put({0x62, ((reg & 8) == 0) << 7 | not_x << 6 | not_b << 5 | ((reg & 16) == 0) << 4 | map,
         (~second & 15) << 3 | 4 | pp, 0x40 | broadcast << 4 | ((second & 16) == 0) << 3});
  }
  // A displacement that is a multiple of what is read takes one byte up to 127 times that.
  void memory(int map, int pp, int reg, int second, int opcode, int base, int64_t bytes, int unit, bool broadcast) {
    prefix(map, pp, reg, second, true, true, broadcast);
    const int64_t steps = bytes / unit;
    const bool is_short = bytes % unit == 0 && steps >= -128 && steps <= 127;
    put({opcode, (is_short ? 0x40 : 0x80) | (reg & 7) << 3 | base});
    if (is_short) put({static_cast<int>(steps & 0xff)});
    else number(static_cast<int32_t>(bytes));
  }
};

struct Entry {
  int32_t column;
  float value;
};

// The entries of each row of a group, by rising column.
std::vector<std::vector<Entry>> rows_of(const BlockMatrix& a, int64_t begin, int64_t end) {
  std::vector<std::vector<Entry>> rows(end - begin);
  for (int64_t p = 0; p < a.panels(); ++p)
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = a.pointers[p * a.strips() + row]; i < a.pointers[p * a.strips() + row + 1]; ++i)
        rows[row - begin].push_back({static_cast<int32_t>(p * a.panel + a.indices[i]), a.values[i]});
  return rows;
}

void encode_group(const std::vector<std::vector<Entry>>& rows, int64_t columns, Encoder& encoder,
                  std::vector<float>& values) {
  const int count = static_cast<int>(rows.size());
  std::vector<size_t> next(rows.size(), 0);
  for (int r = 0; r < count; ++r) encoder.clear(r);
  int64_t place = -kReach;  // of the next value, from rsi
  int inputs = 0;
  for (int64_t k = 0; k < columns; ++k) {
    int x = -1;
    for (int r = 0; r < count; ++r) {
      if (next[r] == rows[r].size() || rows[r][next[r]].column != k) continue;
      if (x < 0) encoder.load(x = kFirstInput + inputs++ % kInputs, kX, k * kVector);
      if (place == kReach) {
        encoder.advance(kValues, 2 * kReach * 4);
        place = -kReach;
      }
      encoder.multiply_add(r, x, kValues, 4 * place++);
      values.push_back(rows[r][next[r]++].value);
    }
  }
  for (int r = 0; r < count; ++r) encoder.store(r, kSums, r * kVector);
  encoder.finish();
  encoder.align();
}

class Pages {
 public:
  explicit Pages(const std::vector<uint8_t>& bytes) : size_(bytes.size()) {
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    std::memcpy(memory, bytes.data(), size_);
    if (mprotect(memory, size_, PROT_READ | PROT_EXEC) == 0) memory_ = memory;
    else munmap(memory, size_);
  }
  ~Pages() {
    if (memory_) munmap(memory_, size_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  const uint8_t* begin() const { return static_cast<const uint8_t*>(memory_); }

 private:
  void* memory_ = nullptr;
  size_t size_;
};

struct OwnedCode : Code {
  OwnedCode(const std::vector<uint8_t>& bytes, std::vector<float> numbers) : pages(bytes), floats(std::move(numbers)) {}
  Pages pages;
  std::vector<float> floats;
  std::vector<Group> groups_;
  std::vector<const float*> starts_;
};

constexpr int64_t kBytes = 7;  // of code for a non-zero

}  // namespace

std::shared_ptr<const Code> encode(const BlockMatrix& a, int64_t most) {
  constexpr int64_t farthest = (int64_t(1) << 31) / kVector - 1;  // column that 32 bits of displacement reach
  if (a.block != 1 || a.rows <= 0 || a.columns > farthest || !has("avx512f")) return nullptr;
  if (a.pointers[a.strips() * a.panels()] > most / kBytes) return nullptr;
  Encoder encoder;
  std::vector<float> values;
  std::vector<size_t> entries, starts;
  for (int64_t row = 0; row < a.rows; row += kCodeRows) {
    entries.push_back(encoder.code.size());
    starts.push_back(values.size());
    encode_group(rows_of(a, row, row + kCodeRows < a.rows ? row + kCodeRows : a.rows), a.columns, encoder, values);
    if (static_cast<int64_t>(encoder.code.size()) > most) return nullptr;
  }
  values.resize(values.size() + kReach);  // so that the pointers below stay inside
  const auto owned = std::make_shared<OwnedCode>(encoder.code, std::move(values));
  if (!owned->pages.begin()) return nullptr;
  for (size_t entry : entries) owned->groups_.push_back(reinterpret_cast<Code::Group>(
      reinterpret_cast<uintptr_t>(owned->pages.begin() + entry)));
  for (size_t start : starts) owned->starts_.push_back(owned->floats.data() + start + kReach);
  owned->groups = static_cast<int64_t>(entries.size());
  owned->entries = owned->groups_.data();
  owned->values = owned->starts_.data();
  return owned;
}

#else

std::shared_ptr<const Code> encode(const BlockMatrix&, int64_t) { return nullptr; }

#endif

namespace {

constexpr int64_t kCodeLanes = 16;
constexpr int64_t kCodeSlab = 1 << 16;  // floats of x that all groups read, one after the other

}  // namespace

bool runs_code(const Spmm& job) { return job.a.code && !job.taps && !job.pitch && level() == Level::avx512; }

void spmm_by_code(const Spmm& job, int threads, const Phase& last) {
  const int64_t columns = std::max<int64_t>(1, job.a.columns), vectors = divide_up(job.pixels, kCodeLanes);
  const int64_t widest = std::clamp<int64_t>(kCodeSlab / (columns * kCodeLanes), 1, vectors);
  const int64_t tile = divide_up(vectors, divide_up(vectors, widest)) * kCodeLanes;
  const auto& kernels = code_kernels();
  by_tiles(
      {job.pixels, tile, job.a.code->groups, job.a.columns, columns * tile, kCodeRows * kCodeLanes, job.token_stride > 0},
      threads,
      [&](int64_t first, int64_t count, int64_t from, int64_t to, float* slab) {
        kernels.pack(job, first, count, from, to, slab);
      },
      [&](int64_t first, int64_t count, int64_t begin, int64_t end, float* slab, float* sums) {
        kernels.run(job, first, count, begin, end, slab, sums);
      },
      last);
}

}  // namespace gossamer
