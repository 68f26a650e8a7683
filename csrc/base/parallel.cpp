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

}  // namespace

// Kernels of every instruction set run in this one region, which is compiled for all processors.
void run_team(int threads, void (*body)(const void* context, Member member), const void* context) {
  bool failed = false;
  if (!has_threads(threads)) return body(context, {0, 1, &failed});
  std::exception_ptr first;
#pragma omp parallel num_threads(threads)
  {
    bool done = can_throw();
    if (done) {
      try {
        body(context, {omp_get_thread_num(), omp_get_num_threads(), &failed});
      } catch (...) {
        done = false;
#pragma omp critical(fastvae_failure)
        if (!first) first = std::current_exception();
      }
    }
    if (!done) {
#pragma omp atomic write
      failed = true;
    }
  }
  if (first) std::rethrow_exception(first);
  if (failed) throw std::bad_alloc();
}

}  // namespace fastvae
