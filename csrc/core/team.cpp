#include "team.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace gossamer {
namespace {

#if !defined(_WIN32)
#if defined(__APPLE__)
constexpr const char* kTorch[] = {"@rpath/libtorch_cpu.dylib", "libtorch_cpu.dylib"};
#else
constexpr const char* kTorch[] = {"libtorch_cpu.so"};
#endif

Team find() {
  const char* wanted = std::getenv("GOSSAMER_POOL");
  if (wanted != nullptr && std::strcmp(wanted, "own") == 0) return nullptr;
  for (const char* library : kTorch) {
    void* torch = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (torch == nullptr) continue;
    // searches what torch was linked with as well, so it is the runtime that torch itself calls
    return reinterpret_cast<Team>(dlsym(torch, "GOMP_parallel"));
  }
  return nullptr;
}

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

Team torch_team() {
#if defined(_WIN32)
  return nullptr;
#else
  static const Team team = find();
  return forked.load(std::memory_order_relaxed) ? nullptr : team;
#endif
}

}  // namespace gossamer
