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

struct Job {
  Body body;
  void* context;
  int64_t count, grain;
  std::atomic<int64_t> next{0};  // first element that nobody has taken

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(context, begin, std::min(begin + grain, count));
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

void parallel_for(int64_t count, int64_t grain, int threads, Body body, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  const int64_t chunks = (count - 1) / grain + 1;
  const int wanted = static_cast<int>(std::min<int64_t>(std::min(threads, kMostThreads), chunks));
  Job job{body, context, count, grain};
  if (wanted > 1 && !inside_loop && pool().run(job, wanted - 1)) return;
  job.work();
}

}  // namespace gossamer
