#include "cpu.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#define GOSSAMER_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace gossamer {
namespace {

#ifdef GOSSAMER_X86
struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {uint32_t(out[0]), uint32_t(out[1]), uint32_t(out[2]), uint32_t(out[3])};
#else
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
#endif
  return r;
}

uint64_t saved_state() {  // XCR0: which registers the operating system keeps across a context switch
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
#endif
}

std::vector<std::string> detect_features() {
  std::vector<std::string> found;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const auto bit = [](uint32_t word, int position) { return (word >> position & 1u) != 0; };
  const uint64_t state = bit(one.ecx, 27) ? saved_state() : 0;
  const bool ymm = (state & 0x6) == 0x6;
  const bool zmm = ymm && (state & 0xe0) == 0xe0;
  const bool tiles = (state & 0x60000) == 0x60000;
  const auto add = [&](bool present, const char* feature) {
    if (present) found.emplace_back(feature);
  };
  add(bit(one.ecx, 23), "popcnt");
  add(ymm && bit(one.ecx, 12), "fma");
  add(ymm && bit(one.ecx, 29), "f16c");
  add(bit(seven.ebx, 3), "bmi1");
  add(bit(seven.ebx, 8), "bmi2");
  add(ymm && bit(seven.ebx, 5), "avx2");
  add(ymm && bit(seven_one.eax, 4), "avxvnni");
  add(zmm && bit(seven.ebx, 16), "avx512f");
  add(zmm && bit(seven.ebx, 17), "avx512dq");
  add(zmm && bit(seven.ebx, 30), "avx512bw");
  add(zmm && bit(seven.ebx, 31), "avx512vl");
  add(zmm && bit(seven.ecx, 1), "avx512vbmi");
  add(zmm && bit(seven.ecx, 6), "avx512vbmi2");
  add(zmm && bit(seven.ecx, 11), "avx512vnni");
  add(zmm && bit(seven.ecx, 14), "avx512vpopcntdq");
  add(zmm && bit(seven_one.eax, 5), "avx512bf16");
  add(zmm && bit(seven.edx, 23), "avx512fp16");
  add(tiles && bit(seven.edx, 22), "amxbf16");
  add(tiles && bit(seven.edx, 25), "amxint8");
  return found;
}
#elif defined(__aarch64__) || defined(_M_ARM64)
std::vector<std::string> detect_features() { return {"neon"}; }  // part of the base architecture
#else
std::vector<std::string> detect_features() { return {}; }
#endif

bool has_all(std::initializer_list<const char*> wanted) {
  return std::all_of(wanted.begin(), wanted.end(), has);
}

// These sets match the flags that CMakeLists.txt gives to each level.
std::vector<Level> detect_levels() {
  std::vector<Level> levels{Level::portable};
  if (has("neon")) levels.push_back(Level::neon);
  if (!has_all({"avx2", "fma", "f16c", "bmi1", "bmi2", "popcnt"})) return levels;
  levels.push_back(Level::avx2);
  if (has_all({"avx512f", "avx512bw", "avx512vl", "avx512dq"})) levels.push_back(Level::avx512);
  return levels;
}

std::atomic<Level>& current() {
  static std::atomic<Level> chosen{available().back()};
  return chosen;
}

}  // namespace

const char* name(Level level) {
  static const char* const names[] = {"portable", "neon", "avx2", "avx512"};
  return names[static_cast<int>(level)];
}

const std::vector<std::string>& features() {
  static const std::vector<std::string> found = detect_features();
  return found;
}

bool has(const char* feature) {
  const auto& all = features();
  return std::find(all.begin(), all.end(), feature) != all.end();
}

const std::vector<Level>& available() {
  static const std::vector<Level> levels = detect_levels();
  return levels;
}

Level level() { return current().load(std::memory_order_relaxed); }

void set_level(const std::string& wanted) {
  for (Level candidate : available())
    if (wanted == name(candidate)) return current().store(candidate);
  throw std::invalid_argument("this processor has no level '" + wanted + "'");
}

}  // namespace gossamer
