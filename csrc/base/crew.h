// Threads that stand by while one of them works, and take parts of its larger steps.
#pragma once

#include <sched.h>

#include <cstdint>

#include "base/parallel.h"

namespace fastvae {
inline namespace FASTVAE_ISA {

// A parallel region costs as much as a step of some microseconds, and waits for threads that the system has not
// scheduled. Here whoever shares a step takes all parts that nobody has begun: a busy machine delays nothing.
class Crew {
 public:
  // Calls body(crew) on one of at most `threads` threads; the others help until it returns.
  template <class Body>
  static void run(int64_t threads, const Body& body) {
    Crew crew;
    parallel_team(static_cast<int>(threads), [&](Member m) {
      if (m.index > 0) return crew.help(m);
      crew.size_ = m.count;
      const Dismissal at_end{crew};
      body(crew);
    });
  }

  int64_t size() const { return size_; }

  // Calls part(i) for every i in [0, parts), at most 2^16 of them. A part must not throw, and shares nothing itself.
  template <class Part>
  void share(int64_t parts, const Part& part) {
    call_ = [](const void* context, int64_t i) { (*static_cast<const Part*>(context))(i); };
    context_ = &part;
    __atomic_store_n(&done_, 0, __ATOMIC_RELAXED);
    // The number of the step makes old claims fail.
    const uint64_t step = (__atomic_load_n(&ticket_, __ATOMIC_RELAXED) >> 32) + 1;
    __atomic_store_n(&ticket_, step << 32 | static_cast<uint64_t>(parts) << 16, __ATOMIC_RELEASE);
    while (take_part()) {
    }
    for (int64_t spins = 0; __atomic_load_n(&done_, __ATOMIC_ACQUIRE) < parts; ++spins) wait(spins);
  }

 private:
  struct Dismissal {
    Crew& crew;
    ~Dismissal() { __atomic_store_n(&crew.dismissed_, true, __ATOMIC_RELEASE); }
  };

  // Until the body has returned, or has not begun since its thread failed.
  void help(Member m) {
    for (int64_t spins = 0; !__atomic_load_n(&dismissed_, __ATOMIC_ACQUIRE) && !m.should_stop(); ++spins)
      if (take_part())
        spins = 0;
      else
        wait(spins);
  }

  // Takes one part of the present step; false where none is left.
  bool take_part() {
    uint64_t ticket = __atomic_load_n(&ticket_, __ATOMIC_ACQUIRE);
    const uint64_t next = ticket & 0xFFFF, parts = ticket >> 16 & 0xFFFF;
    if (next >= parts) return false;
    if (!__atomic_compare_exchange_n(&ticket_, &ticket, ticket + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      return true;
    call_(context_, static_cast<int64_t>(next));
    __atomic_fetch_add(&done_, 1, __ATOMIC_RELEASE);
    return true;
  }

  // Some microseconds without the system; then whoever else wants the core gets it.
  static void wait(int64_t spins) {
    if (spins > 256)
      sched_yield();
    else
      pause();
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  // The step's number, its parts, and the next part that nobody has taken: 32, 16 and 16 bits.
  alignas(64) uint64_t ticket_ = 0;
  alignas(64) int64_t done_ = 0;
  alignas(64) bool dismissed_ = false;
  int64_t size_ = 1;
  void (*call_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
};

}  // namespace FASTVAE_ISA
}  // namespace fastvae
