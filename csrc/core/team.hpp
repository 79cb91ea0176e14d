// The OpenMP team that torch already keeps in this process, if there is one.
#pragma once

namespace gossamer {

// GOMP_parallel of the OpenMP runtime behind libtorch_cpu: runs f(data) on each thread of a team, the caller's among
// them, and waits. (LLVM's and Intel's runtimes export it too.)
using Team = void (*)(void (*f)(void*), void* data, unsigned threads, unsigned flags);

// Found once; nullptr without torch, in a forked child (a team does not survive a fork), and where the environment
// says GOSSAMER_POOL=own.
Team torch_team();

}  // namespace gossamer
