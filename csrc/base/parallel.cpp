#include "base/parallel.h"

#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

// Thread-local variables whose memory exists from the thread's start. The loader takes that of others at their first
// use, and ends the process where there is none.
#define FASTVAE_THREAD_LOCAL __attribute__((tls_model("initial-exec"))) thread_local

namespace fastvae {
namespace {

// Whether this thread can throw an exception. The first exception of a thread takes memory for the C++ runtime's own
// variables: a trial makes them early, while there is more memory than they need.
bool can_throw() noexcept {
  static FASTVAE_THREAD_LOCAL bool ready = false;
  if (ready) return true;
  constexpr size_t plenty = 4096;
  void* volatile probe = std::malloc(plenty);
  if (!probe) return false;
  std::free(probe);
  ready = std::uncaught_exceptions() >= 0;
  return ready;
}

// Whether the system can start this many more threads at once: each waits until all are started.
bool can_start(int count) {
  std::vector<std::thread> started;
  std::mutex gate;
  bool all = true;
  {
    const std::lock_guard<std::mutex> closed(gate);
    try {
      started.reserve(count);
      for (int i = 0; i < count; ++i) started.emplace_back([&gate] { const std::lock_guard<std::mutex> pass(gate); });
    } catch (...) {
      all = false;
    }
  }
  for (std::thread& thread : started) thread.join();
  return all;
}

// OpenMP's runtime ends the process where it cannot start a thread. Before a thread calls its first team, threads of
// our own try; the C library keeps their stacks for the runtime's. If they fail, one thread does all the work.
bool has_threads(int threads) {
  static FASTVAE_THREAD_LOCAL int had = 1;
  if (threads <= had) return true;
  if (!can_start(threads - had)) return false;
  had = threads;
  return true;
}

// A call of run_team, and what its threads share.
struct Team {
  void (*body)(const void* context, Member member);
  const void* context;
  bool failed = false;
  std::exception_ptr first{};
  std::mutex gate{};
};

// What each thread of a team does.
void take_part(void* of_team) {
  Team& team = *static_cast<Team*>(of_team);
  bool done = can_throw();
  if (done) {
    try {
      team.body(team.context, {omp_get_thread_num(), omp_get_num_threads(), &team.failed});
    } catch (...) {
      done = false;
      const std::lock_guard<std::mutex> lock(team.gate);
      if (!team.first) team.first = std::current_exception();
    }
  }
  if (!done) {
#pragma omp atomic write
    team.failed = true;
  }
}

}  // namespace

#ifdef __linux__
// What GCC makes of a parallel region. Clang would ask for a second runtime beside PyTorch's.
extern "C" void GOMP_parallel(void (*region)(void*), void* data, unsigned threads, unsigned flags);
#endif

// Kernels of every instruction set run in this one region, which is compiled for all processors.
void run_team(int threads, void (*body)(const void* context, Member member), const void* context) {
  Team team{body, context};
  if (!has_threads(threads)) return body(context, {0, 1, &team.failed});
#ifdef __linux__
  GOMP_parallel(take_part, &team, static_cast<unsigned>(threads), 0);
#else
#pragma omp parallel num_threads(threads)
  take_part(&team);
#endif
  if (team.first) std::rethrow_exception(team.first);
  if (team.failed) throw std::bad_alloc();
}

}  // namespace fastvae
