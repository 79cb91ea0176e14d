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

// A loop over [0, count) in chunks of `grain`.
struct Phase {
  Body body;
  void* context;
  int64_t count, grain;
};
constexpr int kMostPhases = 3;

// Runs loops one after the other on at most `threads` threads, the caller among them: each starts when all chunks of the
// one before are done, which is quicker than to call all threads anew. Returns when all is done. Serial when one chunk
// suffices, inside another loop, or when the pool is busy.
void parallel_phases(const Phase* phases, int number, int threads);

// The loop that calls f(begin, end); f must outlive it.
template <class F>
Phase phase(int64_t count, int64_t grain, F& f) {
  return {[](void* context, int64_t begin, int64_t end) { (*static_cast<F*>(context))(begin, end); },
          const_cast<void*>(static_cast<const void*>(std::addressof(f))), count, grain > 0 ? grain : 1};
}

// One loop.
template <class F>
void parallel_for(int64_t count, int64_t grain, int threads, F&& f) {
  const Phase only = phase(count, grain, f);
  parallel_phases(&only, 1, threads);
}

}  // namespace gossamer
