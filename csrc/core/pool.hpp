// Loops over several threads: those of torch's OpenMP where torch is in the process, as they spin after each of torch's
// own loops and would fight others for the cores; else a small pool of our own. Chunk boundaries depend on (count,
// grain) alone, never on the number of threads, so a kernel that writes each chunk's result in its own place gives the
// same bits for any thread count.
#pragma once
#include <cstdint>
#include <memory>

namespace gossamer {

// Work on the chunk [begin, end). It must not throw: allocate before the loop.
using Body = void (*)(void* context, int64_t begin, int64_t end);

// Runs `body` over [0, count) in chunks of `grain`, on at most `threads` threads, the caller among them.
// Returns when all is done. Serial when one chunk suffices, inside another loop, or when the pool is busy.
void parallel_for(int64_t count, int64_t grain, int threads, Body body, void* context);

template <class F>
void parallel_for(int64_t count, int64_t grain, int threads, F&& f) {
  using Function = std::remove_reference_t<F>;
  parallel_for(
      count, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Function*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(std::addressof(f))));
}

}  // namespace gossamer
