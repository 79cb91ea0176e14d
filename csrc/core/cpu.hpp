// What this processor can do, asked once; the level that kernels are dispatched to.
#pragma once
#include <string>
#include <vector>

namespace gossamer {

// Ordered: a level is usable when it is one of `available()`.
enum class Level : int { portable = 0, neon = 1, avx2 = 2, avx512 = 3 };

const char* name(Level level);
const std::vector<Level>& available();            // worst first; never empty
const std::vector<std::string>& features();       // e.g. "avx2", "avx512bf16"
bool has(const char* feature);

Level level();                                    // the best available one, unless set
void set_level(const std::string& wanted);        // throws std::invalid_argument when not available

}  // namespace gossamer
