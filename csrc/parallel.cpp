#include "parallel.h"

#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fastvae {
namespace {

// Whether the system has room for so many more threads, all at once: they wait for the last of them.
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

// OpenMP's runtime ends the process where a thread cannot be started. A calling thread's first teams are therefore
// tried with threads of our own, whose stacks the C library keeps for those of the runtime; else one thread does all.
bool has_threads(int threads) {
  // In static storage of threads, which takes no memory at its first use.
  [[gnu::tls_model("initial-exec")]] static thread_local int had = 1;
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
    try {
      body(context, {omp_get_thread_num(), omp_get_num_threads(), &failed});
    } catch (...) {
#pragma omp critical(fastvae_failure)
      if (!first) first = std::current_exception();
#pragma omp atomic write
      failed = true;
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace fastvae
