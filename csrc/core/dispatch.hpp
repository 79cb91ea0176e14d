// One source, compiled once per instruction set into its own namespace; the level picks at run time.
//
// A file named *_kernels.cpp is compiled with GOSSAMER_NS = portable, avx2, avx512 or neon and defines one
// constant table of function pointers in that namespace:
//
//   kernels.hpp:  struct MaskKernels { ... };  GOSSAMER_DISPATCH(MaskKernels, mask_kernels)
//   kernels.cpp:  namespace gossamer::GOSSAMER_NS { const MaskKernels mask_kernels = {...}; }
//   elsewhere:    mask_kernels().pack(...)
//
// Kernel sources keep their helpers in an anonymous namespace and avoid the standard library's templates:
// the linker may keep any copy of an inline function, also one that needs an instruction this processor lacks.
#pragma once
#include "cpu.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#define GOSSAMER_DISPATCH(Type, table)                  \
  namespace portable { extern const Type table; }       \
  namespace avx2 { extern const Type table; }           \
  namespace avx512 { extern const Type table; }         \
  static inline const Type& table() {                   \
    switch (level()) {                                  \
      case Level::avx512: return avx512::table;         \
      case Level::avx2: return avx2::table;             \
      default: return portable::table;                  \
    }                                                   \
  }
#elif defined(__aarch64__) || defined(_M_ARM64)
#define GOSSAMER_DISPATCH(Type, table)                  \
  namespace portable { extern const Type table; }       \
  namespace neon { extern const Type table; }           \
  static inline const Type& table() {                   \
    return level() == Level::neon ? neon::table : portable::table; \
  }
#else
#define GOSSAMER_DISPATCH(Type, table)                  \
  namespace portable { extern const Type table; }       \
  static inline const Type& table() { return portable::table; }
#endif
