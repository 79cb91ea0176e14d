#include "pool.hpp"

#include "team.hpp"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace gossamer {
namespace {

constexpr int kSpins = 4000;  // some ten microseconds: a step's kernels follow one another faster than a wake-up
constexpr int kMostThreads = 256;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits until `value` differs from `old`: spins, then sleeps.
uint32_t await_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

int64_t chunks_of(const Phase& phase) { return phase.count > 0 ? (phase.count - 1) / phase.grain + 1 : 0; }

struct Job {
  const Phase* phases;
  int number;
  std::atomic<int64_t> next[kMostPhases] = {};  // first element that nobody has taken
  std::atomic<int64_t> done[kMostPhases] = {};  // chunks

  void work() {
    for (int p = 0; p < number; ++p) {
      const Phase& phase = phases[p];
      for (int64_t begin; (begin = next[p].fetch_add(phase.grain, std::memory_order_relaxed)) < phase.count;) {
        phase.body(phase.context, begin, std::min(begin + phase.grain, phase.count));
        done[p].fetch_add(1, std::memory_order_release);
      }
      if (p + 1 < number) await_chunks(done[p], chunks_of(phase));
    }
  }

  // Only chunks that a running thread has taken are waited for, so a thread that the system holds back stops nobody.
  static void await_chunks(const std::atomic<int64_t>& done, int64_t chunks) {
    for (int i = 0; done.load(std::memory_order_acquire) < chunks; ++i) {
      relax();
      if (i >= kSpins) std::this_thread::yield();
    }
  }
};

thread_local bool inside_loop = false;

void help(Job& job) {
  inside_loop = true;
  job.work();
  inside_loop = false;
}

class Pool {
 public:
  // False when another caller holds the pool.
  bool run(Job& job, int helpers) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock) return false;
    if (const Team team = torch_team()) {
      team([](void* work) { help(*static_cast<Job*>(work)); }, &job, static_cast<unsigned>(helpers + 1), 0);
      return true;
    }
    grow(helpers);
    job_ = &job;
    pending_.store(static_cast<uint32_t>(helpers), std::memory_order_relaxed);
    for (int i = 0; i < helpers; ++i) {
      workers_[i]->tickets.fetch_add(1, std::memory_order_release);
      workers_[i]->tickets.notify_one();
    }
    help(job);
    for (uint32_t left; (left = pending_.load(std::memory_order_acquire)) != 0;) await_change(pending_, left);
    return true;
  }

 private:
  struct Worker {
    std::atomic<uint32_t> tickets{0};  // one more for each job
  };

  void grow(int helpers) {
    while (static_cast<int>(workers_.size()) < helpers) {
      workers_.push_back(std::make_unique<Worker>());
      std::thread([this, me = workers_.back().get()] { serve(*me); }).detach();
    }
  }

  void serve(Worker& me) {
    for (uint32_t seen = 0;;) {
      seen = await_change(me.tickets, seen);
      help(*job_);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
    }
  }

  std::mutex busy_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Job* job_ = nullptr;
  std::atomic<uint32_t> pending_{0};
};

// Never destroyed: helpers sleep in it until the process ends. A forked child has no helpers and gets a new one.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    the_pool = new Pool;
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, [] {
      the_pool = new Pool;
      inside_loop = false;
    });
#endif
  });
  return *the_pool;
}

}  // namespace

void parallel_phases(const Phase* phases, int number, int threads) {
  int64_t chunks = 0;
  for (int p = 0; p < number; ++p) chunks = std::max(chunks, chunks_of(phases[p]));
  if (chunks == 0) return;
  const int wanted = static_cast<int>(std::min<int64_t>(std::min(threads, kMostThreads), chunks));
  Job job{phases, number};
  if (wanted > 1 && !inside_loop && pool().run(job, wanted - 1)) return;
  job.work();
}

}  // namespace gossamer
