// Large outputs: fresh pages cost more to map than to fill.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fastvae {
namespace {

// Asks for huge pages under an output that is about to be written whole; a hint, whose refusal changes nothing.
inline void expect_full_write(void* data, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = 2u << 20;
  if (bytes < static_cast<int64_t>(2 * kHugePage)) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHugePage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace
}  // namespace fastvae
